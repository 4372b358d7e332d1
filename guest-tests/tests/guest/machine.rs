//! What this machine offers to guest tests, found out once.
//!
//! In: nothing. Out: QEMUs, kernels, images; or the reason why one is not to be had.
//! Must not know: what is tested.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent::wire::{Trial as Order, Workload};
use anyhow::{Context, Result, bail};
use campaign::backend::{BackendConfig, Storage};
use campaign::cache::Cache;
use campaign::device::Device;
use campaign::guest::{Executed, Guest, GuestConfig};
use campaign::image::{self, ImageSpec};
use campaign::interrupt;
use campaign::kernels::{Kernel, Kernels, Spec};
use campaign::plan::Plan;
use campaign::qemu::{Accel, Qemu};
use campaign::runner::{Limits, Order as Campaign};
use libtest_mimic::{Failed, Trial};
use pipeline::control::{Request, Response};

/// The suite whose QEMU is tried beside the machine's own.
const OTHER_QEMU: &str = "bookworm-backports";

/// Enough for any program that a test runs in a guest.
pub(crate) const EXEC_LIMIT: Duration = Duration::from_secs(120);

/// The machine, shared by all tests.
#[derive(Clone)]
pub(crate) struct Machine(Arc<Parts>);

struct Parts {
    cache: Cache,
    own: (Qemu, Accel),
    other: Result<Qemu, String>,
    with_pmem: Result<Qemu, String>,
}

/// Which QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// The machine's own.
    Own,
    /// That of [`OTHER_QEMU`].
    Other,
    /// One that has a vhost-user device of type pmem.
    WithPmem,
}

impl Which {
    /// The QEMU that has the device.
    pub(crate) fn for_device(device: Device) -> Which {
        if device == Device::VhostUserPmem { Which::WithPmem } else { Which::Own }
    }
}

impl Machine {
    /// Checks and, where allowed, installs what the tests need.
    pub(crate) fn prepare() -> Result<Machine> {
        interrupt::install().context("cannot watch for interrupts")?;
        let cache = Cache::open()?;
        campaign::setup::ensure(true, &cache)?;
        let qemu = Qemu::find(&cache)?;
        let accel = qemu.accel()?;
        let other = Qemu::of_suite(&cache, OTHER_QEMU).map_err(|error| error.to_string());
        let with_pmem = Qemu::with_vhost_user_pmem(&cache).map_err(|error| error.to_string());
        Ok(Machine(Arc::new(Parts { cache, own: (qemu, accel), other, with_pmem })))
    }

    /// A test, or a skipped one with its reason when that QEMU is not to be had.
    pub(crate) fn test(
        &self,
        name: &str,
        which: Which,
        body: impl FnOnce(&Machine) -> Result<()> + Send + 'static,
    ) -> Trial {
        self.test_unless(None, name, which, body)
    }

    /// The same, and skipped as well for a reason that is known already.
    pub(crate) fn test_unless(
        &self,
        why_not: Option<&str>,
        name: &str,
        which: Which,
        body: impl FnOnce(&Machine) -> Result<()> + Send + 'static,
    ) -> Trial {
        let machine = self.clone();
        let run = move || body(&machine).map_err(|error| Failed::from(format!("{error:#}")));
        match why_not.or(self.qemu_of(which).err().map(String::as_str)) {
            Some(reason) => {
                eprintln!("guest tests: {name} is skipped: {reason}");
                Trial::test(name, run).with_ignored_flag(true)
            }
            None => Trial::test(name, run),
        }
    }

    /// A QEMU, or why it is not to be had.
    pub(crate) fn qemu_of(&self, which: Which) -> Result<&Qemu, &String> {
        match which {
            Which::Own => Ok(&self.0.own.0),
            Which::Other => self.0.other.as_ref(),
            Which::WithPmem => self.0.with_pmem.as_ref(),
        }
    }

    /// A guest's configuration on this machine: one overlay disk over `image`, two processors.
    pub(crate) fn guest(&self, which: Which, kernel: &str, image: &Path) -> Result<GuestConfig> {
        let (own, accel) = &self.0.own;
        let qemu = self.qemu_of(which).unwrap_or(own).clone();
        let package = "e2fsprogs".to_owned();
        let mut backend = BackendConfig::new(image.to_owned());
        backend.storage = Storage::Overlay;
        Ok(GuestConfig {
            qemu,
            accel: *accel,
            kernel: self.kernel(kernel)?,
            cmdline: Vec::new(),
            qemu_args: Vec::new(),
            vcpus: 2,
            backend,
            programs: ["mkfs.ext4", "e2fsck"]
                .map(|program| (program.to_owned(), package.clone()))
                .into_iter()
                .chain([("cat".to_owned(), "coreutils".to_owned())])
                .collect(),
            unpacked: Vec::new(),
        })
    }

    /// A kernel of the catalogue, fetched if need be.
    pub(crate) fn kernel(&self, name: &str) -> Result<Kernel> {
        Ok(Kernels::new(&self.0.cache).fetch(&Spec::parse(name, None)?)?)
    }

    /// The QEMU that has the device; the machine's own where none has.
    pub(crate) fn qemu_for(&self, device: Device) -> Qemu {
        self.qemu_of(Which::for_device(device)).unwrap_or(&self.0.own.0).clone()
    }

    /// How guest code runs.
    pub(crate) fn accel(&self) -> Accel {
        self.0.own.1
    }

    /// Where kernels and images are kept.
    pub(crate) fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// The machine's own QEMU.
    pub(crate) fn qemu(&self) -> &Qemu {
        &self.0.own.0
    }

    /// A cached image made with mkfs.ext4's defaults; it must not be changed.
    pub(crate) fn image(&self, mib: u64) -> Result<PathBuf> {
        self.made(mib << 20, &[])
    }

    /// A cached image made with these arguments of mkfs.ext4; it must not be changed.
    pub(crate) fn made(&self, bytes: u64, mkfs: &[String]) -> Result<PathBuf> {
        Ok(image::base(&self.0.cache, &ImageSpec { bytes, mkfs: mkfs.to_vec() })?)
    }

    /// The cached base image of a plan; it must not be changed.
    pub(crate) fn image_of(&self, plan: &Plan) -> Result<PathBuf> {
        let filesystem = &plan.filesystem;
        self.made(filesystem.bytes, &filesystem.mkfs).context("making the base image")
    }

    /// A campaign of this plan on these kernels, of every arm, as a disk, from seed 1.
    pub(crate) fn campaign<'a>(
        &self,
        plan: Plan,
        kernels: impl IntoIterator<Item = &'a str>,
        trials: u32,
    ) -> Result<Campaign> {
        let kernels = kernels.into_iter().map(|name| self.kernel(name));
        Ok(Campaign {
            device: Device::Blk,
            isolation: plan.guest.isolation,
            image: self.image_of(&plan)?,
            kernels: kernels.collect::<Result<Vec<_>>>()?,
            qemu: self.qemu_for(Device::Blk),
            accel: self.accel(),
            vcpus: 2,
            queues: 1,
            trials,
            only_trial: None,
            only_arms: Vec::new(),
            seed: 1,
            keep: None,
            shadow: false,
            jobs: 1,
            limits: Limits::default(),
            plan,
        })
    }
}

/// Boots, and on failure tells the last lines of the console.
pub(crate) fn boot(config: &GuestConfig) -> Result<Guest> {
    let guest = Guest::boot(config).with_context(|| format!("booting {}", config.kernel.name))?;
    for error in guest.failed_boots() {
        eprintln!("guest tests: {} was booted anew: {error}", config.kernel.name);
    }
    Ok(guest)
}

/// Runs a trial of which every step must succeed, without an error of ext4.
pub(crate) fn run(
    guest: &mut Guest,
    trial: u64,
    workload: Workload,
    limit: Duration,
) -> Result<()> {
    let observed = guest.run(Order { trial, seed: trial, workload }, limit)?;
    let failed = observed.result.steps.iter().find(|step| step.errno.is_some());
    anyhow::ensure!(
        observed.result.error.is_none() && failed.is_none(),
        "trial {trial}: {:?}, {failed:?}",
        observed.result.error
    );
    let bad = observed.result.kernel.iter().find(|line| line.text.contains("EXT4-fs error"));
    anyhow::ensure!(bad.is_none(), "trial {trial}: {bad:?}");
    Ok(())
}

/// Runs a program that must succeed.
pub(crate) fn must(guest: &mut Guest, program: &str, args: &[&str]) -> Result<Executed> {
    let done = guest.exec(program, args, EXEC_LIMIT)?;
    anyhow::ensure!(
        done.status == 0,
        "{program} {} ended with {}: {}{}",
        args.join(" "),
        done.status,
        done.stdout,
        done.stderr
    );
    Ok(done)
}

/// How often a rule has fired.
pub(crate) fn fired(guest: &mut Guest, rule: &str) -> Result<u64> {
    let Response::Rules { rules, .. } = guest.control().call(&Request::List)? else {
        bail!("rules were asked for");
    };
    Ok(rules.iter().find(|known| known.name == rule).context("the rule")?.fired)
}
