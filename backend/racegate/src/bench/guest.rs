//! Disks as a guest sees them: one machine that has all of them, and fio in it, by turns.
//!
//! In: contenders' names, the name of a kernel. Out: contenders.
//! Must not know: how results are compared.
//!
//! All disks belong to one guest, so that they share its kernel and its processors; each is a device
//! at a PCI address of its own, by which the guest's kernel name for it is found.

use std::cell::RefCell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use campaign::backend::BackendConfig;
use campaign::cache::Cache;
use campaign::guest::{Guest, GuestConfig};
use campaign::image::{self, ImageSpec};
use campaign::kernels::{Kernels, Spec};
use campaign::qemu::Qemu;
use tempfile::TempPath;

use super::contender::{Contender, Place, Sample};
use super::fio;
use super::job::Job;
use super::processors::Processors;
use super::served::{Served, cpu_of_process};
use super::spec;

/// PCI slot of the first disk: QEMU puts what has no address into lower ones.
const FIRST_SLOT: usize = 0x10;
/// PCI slots of a root bus that are left.
const MOST_DISKS: usize = 14;
/// Entries of each virtqueue: what qemu-storage-daemon offers at most.
const QUEUE_SIZE: u16 = 128;
/// The serial number of a racegate disk, so that the agent does not take it for its own.
const SERIAL: &str = "bench";
/// The guest's own disk, which is not measured.
const OWN_DISK_BYTES: u64 = 16 << 20;
/// How long a program of the guest may take beyond what it is asked to.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a disk may take to be filled under emulation.
const FILL_LIMIT: Duration = Duration::from_secs(600);

/// What a disk of the guest is served by.
enum Server {
    /// A process behind a socket.
    Daemon(Served),
    /// QEMU itself, from a file.
    Qemu { image: PathBuf, aio: String, direct: bool, _guard: Option<TempPath> },
}

/// One disk of the guest.
struct Disk {
    name: String,
    server: Server,
    guest: Rc<RefCell<Guest>>,
    /// As the guest's kernel calls it.
    block: String,
    bytes: u64,
    filled: bool,
}

/// Boots a guest of that kernel with a disk for each of `names`.
pub(super) fn boot(
    kernel: &str,
    names: &[&String],
    place: &Place,
) -> anyhow::Result<Vec<Box<dyn Contender>>> {
    ensure!(names.len() <= MOST_DISKS, "a guest takes at most {MOST_DISKS} disks");
    let mut servers = Vec::new();
    let mut qemu_args = Vec::new();
    for (index, text) in names.iter().enumerate() {
        let server = Server::open(text, index, place).with_context(|| (*text).clone())?;
        qemu_args.extend(server.qemu_args(index, place));
        servers.push(server);
    }
    let cache = Cache::open()?;
    let qemu = Qemu::find(&cache)?;
    let accel = qemu.accel()?;
    let spec = Spec::parse(kernel, None)?;
    let own = image::base(&cache, &ImageSpec::new(OWN_DISK_BYTES))?;
    let config = GuestConfig {
        qemu,
        accel,
        kernel: Kernels::new(&cache).fetch(&spec)?,
        cmdline: Vec::new(),
        qemu_args,
        vcpus: 2,
        backend: BackendConfig::new(own),
        programs: [("fio", "fio"), ("ls", "coreutils")].map(|(a, b)| (a.into(), b.into())).into(),
        unpacked: Vec::new(),
    };
    let mut guest = Guest::boot(&config)?;
    let blocks = blocks(&mut guest, names.len())?;
    let guest = Rc::new(RefCell::new(guest));
    let disks = servers.into_iter().zip(names).zip(blocks).map(|((server, name), block)| {
        let guest = guest.clone();
        let (name, filled) = ((*name).clone(), place.image.is_some());
        Box::new(Disk { name, server, guest, block, bytes: place.bytes, filled }) as Box<_>
    });
    Ok(disks.collect())
}

impl Server {
    fn open(text: &str, index: usize, place: &Place) -> anyhow::Result<Server> {
        let first = text.split_whitespace().next().unwrap_or_default();
        if let Some((aio, medium)) =
            first.strip_prefix("qemu-").and_then(|name| name.split_once('@'))
        {
            ensure!(first == text, "QEMU's own disk takes no arguments here");
            let direct = spec::is_direct(aio, medium)?;
            let (image, guard) = spec::image_in(spec::folder_of(medium, place), place)?;
            return Ok(Server::Qemu { image, aio: aio.to_owned(), direct, _guard: guard });
        }
        let text = if first.starts_with("racegate@") {
            format!("{text} --serial {SERIAL}")
        } else {
            text.to_owned()
        };
        match spec::daemon(&text, index, place)? {
            Some(daemon) => Ok(Server::Daemon(daemon)),
            None => {
                bail!("a guest cannot have that as a disk: racegate@, qsd-, qemu- or a command")
            }
        }
    }

    /// The device in QEMU's words.
    fn qemu_args(&self, index: usize, place: &Place) -> Vec<OsString> {
        let queues = place.queues;
        let device = format!(
            "id=bench{index},addr={:#x},num-queues={queues},queue-size={QUEUE_SIZE}",
            FIRST_SLOT + index
        );
        let words: [String; 6] = match self {
            Server::Daemon(daemon) => [
                "-chardev".into(),
                format!("socket,id=bench{index}-socket,path={}", escaped(daemon.socket())),
                "-device".into(),
                format!("vhost-user-blk-pci,chardev=bench{index}-socket,{device}"),
                String::new(),
                String::new(),
            ],
            Server::Qemu { image, aio, direct, .. } => [
                "-blockdev".into(),
                format!(
                    "driver=file,node-name=bench{index}-file,filename={},aio={aio},\
                     cache.direct={},read-only={}",
                    escaped(image),
                    on(*direct),
                    on(place.image.is_some())
                ),
                "-object".into(),
                format!("iothread,id=bench{index}-thread"),
                "-device".into(),
                format!(
                    "virtio-blk-pci,drive=bench{index}-file,iothread=bench{index}-thread,{device}"
                ),
            ],
        };
        words.into_iter().filter(|word| !word.is_empty()).map(OsString::from).collect()
    }
}

fn on(yes: bool) -> &'static str {
    if yes { "on" } else { "off" }
}

/// A path inside a QEMU option list, where a comma is written twice.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// The guest's names for the disks, by the PCI addresses in the links of /sys/block.
fn blocks(guest: &mut Guest, disks: usize) -> anyhow::Result<Vec<String>> {
    let listed = guest.exec("/bin/ls", &["-l", "/sys/block"], LIMIT)?;
    (0..disks)
        .map(|index| {
            let address = format!("/0000:00:{:02x}.0/", FIRST_SLOT + index);
            let line = listed.stdout.lines().find(|line| line.contains(&address));
            let name = line.and_then(|line| line.rsplit('/').next());
            name.map(str::to_owned)
                .with_context(|| format!("the guest has no disk at {address}: {}", listed.stdout))
        })
        .collect()
}

impl Disk {
    fn fio(&self, options: &[String], limit: Duration) -> anyhow::Result<fio::Report> {
        let mut args = vec!["--ioengine=libaio".to_owned()];
        args.extend(fio::options(&format!("/dev/{}", self.block), self.bytes));
        args.extend_from_slice(options);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let done = self.guest.borrow_mut().exec("/bin/fio", &args, limit)?;
        ensure!(done.status == 0, "fio failed in the guest ({}): {}", done.status, done.stderr);
        fio::Report::parse(&done.stdout)
    }
}

impl Contender for Disk {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&mut self, job: &Job, window: Duration) -> anyhow::Result<Option<Sample>> {
        let Some(options) = fio::job(job, window) else { return Ok(None) };
        if !self.filled {
            self.fio(&fio::fill(), FILL_LIMIT).context("while the disk was filled")?;
            self.filled = true;
        }
        let pid = match &self.server {
            Server::Daemon(daemon) => daemon.pid(),
            Server::Qemu { .. } => None,
        };
        let (all_before, began) = (Processors::now(), Instant::now());
        let before = pid.and_then(cpu_of_process);
        let sample = self.fio(&options, window + LIMIT)?.sample();
        let after = pid.and_then(cpu_of_process);
        let stolen = Processors::stolen_in(sample.elapsed, all_before, began);
        let backend_cpu = after.zip(before).map(|(after, before)| after.saturating_sub(before));
        Ok(Some(Sample { backend_cpu, stolen, ..sample }))
    }
}
