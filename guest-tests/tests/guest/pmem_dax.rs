//! Goal: with `-o dax` a guest's programs store into the memory itself, the page server sees it
//! by class, and what was msynced survives the death of the machine.
//! Method: a file is made and its blocks are committed; in a second trial, with the file system
//! mounted with `dax`, its mapping is stored to and msynced, under rules that let everything pass
//! and count it by class. QEMU is killed, the journal is replayed by e2fsck, and the file is
//! compared. The founding bug's plan with `dax` must not hit on the kernel that has the bug: nothing
//! is delayed there that could be allocated twice. An NVDIMM without a label has no page structs and
//! refuses `dax`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use agent::wire::{Op, Thread, Trial as Order, Workload};
use anyhow::{Context, Result, ensure};
use campaign::backend::Storage;
use campaign::device::Device;
use campaign::guest::{Guest, Observed};
use campaign::image;
use campaign::plan::Plan;
use campaign::runner::{self, Order as Campaign};
use libtest_mimic::Trial;
use pipeline::RuleSet;

use crate::machine::{Machine, Which, boot, fired};

const KERNELS: [&str; 2] = ["debian-5.10.223", "debian-6.12.107"];
const IMAGE_BYTES: u64 = 64 << 20;
const PAGE: u64 = 4096;
const FILE_BYTES: u64 = 16 * PAGE;
const FILL: u8 = 0x11;
const LIMIT: Duration = Duration::from_secs(60);
const EINVAL: i32 = 22;
const TRIALS: u32 = 4;

/// The first file of a fresh file system is inode 12.
const RULES: &str = r#"
[[rule]]
name = "fault"
match = { op = "fault", class = "file_data", inode = 12 }
action = { pass = true }

[[rule]]
name = "store"
match = { op = "store", class = "file_data", inode = 12 }
action = { pass = true }

[[rule]]
name = "flush"
match = { op = "flush" }
action = { pass = true }
"#;

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    let mut tests = Vec::new();
    for device in [Device::VirtioPmem, Device::VhostUserPmem] {
        for kernel in KERNELS {
            let name = format!("pmem_dax::stores_are_seen_and_kept::{device}::{kernel}");
            let body = move |machine: &Machine| stores(machine, device, kernel);
            tests.push(machine.test(&name, Which::for_device(device), body));
        }
    }
    let no_delay = "pmem_dax::founding_plan_misses::virtio-pmem";
    tests.push(machine.test(no_delay, Which::Own, founding_plan_misses));
    tests.push(machine.test("pmem_dax::refused::nvdimm", Which::Own, refused));
    tests
}

fn open(create: bool) -> Op {
    Op::Open { file: "f".into(), path: "f".into(), create, direct: false, sync: false }
}

fn mount(options: &str) -> Op {
    Op::Mount { options: options.into() }
}

fn run(guest: &mut Guest, trial: u64, setup: Vec<Op>, ops: Vec<Op>) -> Result<Observed> {
    let thread = Thread { name: "user".into(), ops, ..Thread::default() };
    let workload = Workload { setup, threads: vec![thread], ..Workload::default() };
    Ok(guest.run(Order { trial, seed: 1, workload }, LIMIT)?)
}

fn done(observed: &Observed) -> Result<()> {
    ensure!(observed.result.error.is_none(), "{:?}", observed.result.error);
    Ok(())
}

/// Where the program stores, and what.
fn stored() -> impl Iterator<Item = (u64, u8)> {
    (0..FILE_BYTES / PAGE).map(|page| (page * PAGE + 7 * page, 0xa0 + page as u8))
}

fn stores(machine: &Machine, device: Device, kernel: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    // `dax` asks for blocks of a page.
    let made = machine.made(IMAGE_BYTES, &["-b".to_owned(), PAGE.to_string()])?;
    image::copy(&made, &disk)?;
    let mut config = machine.guest(Which::for_device(device), kernel, &disk)?;
    config.backend.device = device;
    config.backend.storage = Storage::File;
    let mut guest = boot(&config)?;
    let write = Op::Write { file: "f".into(), offset: 0, bytes: FILE_BYTES, fill: FILL };
    let sync = Op::Fsync { file: "f".into() };
    let made = vec![open(true), write, sync, Op::Umount {}];
    done(&run(&mut guest, 1, vec![mount("dax")], made)?)?;

    guest.load(&RuleSet::parse(RULES, "pmem_dax")?)?;
    let mut ops = vec![Op::Map { file: "f".into(), bytes: FILE_BYTES }];
    ops.extend(stored().map(|(offset, value)| Op::Store { file: "f".into(), offset, value }));
    ops.push(Op::Msync { file: "f".into(), bytes: FILE_BYTES });
    ops.push(Op::ReadValue { path: "/proc/mounts".into(), name: "mounts".into() });
    let observed = run(&mut guest, 2, vec![mount("dax"), open(false)], ops)?;
    done(&observed)?;
    let mounts = observed.result.values.get("mounts").context("the mounts")?;
    ensure!(mounts.lines().any(|line| line.contains("ext4") && line.contains("dax")), "{mounts}");

    let pages = FILE_BYTES / PAGE;
    for (rule, least) in [("fault", pages), ("store", 1), ("flush", 1)] {
        let fired = fired(&mut guest, rule)?;
        ensure!(fired >= least, "{rule}: seen {fired} times, {least} were to be expected");
    }
    guest.kill_machine(|_| {})?;
    drop(guest);
    compare(&disk)
}

fn compare(disk: &Path) -> Result<()> {
    let disk = disk.to_string_lossy();
    let e2fsck = tool("e2fsck", &["-f", "-y", &disk])?;
    // 1: the journal was replayed.
    ensure!(matches!(e2fsck.status.code(), Some(0 | 1)), "{e2fsck:?}");
    let mut found = tool("debugfs", &["-R", "cat f", &disk])?.stdout;
    ensure!(found.len() as u64 == FILE_BYTES, "the file has {} bytes", found.len());
    for (offset, value) in stored() {
        let byte = &mut found[offset as usize];
        ensure!(*byte == value, "byte {offset}: {byte:#x} instead of {value:#x}");
        *byte = FILL;
    }
    ensure!(found.iter().all(|byte| *byte == FILL), "something else was stored");
    Ok(())
}

fn tool(name: &str, args: &[&str]) -> Result<std::process::Output> {
    let mut command = Command::new(name);
    command.args(args).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").env("LC_ALL", "C");
    command.output().with_context(|| name.to_owned())
}

fn founding_plan_misses(machine: &Machine) -> Result<()> {
    let mut plan = Plan::find("mkwrite-fallocate")?;
    plan.mount_with("dax");
    let device = Device::VirtioPmem;
    let campaign = runner::run(
        &Campaign {
            device,
            isolation: plan.guest.isolation,
            image: machine.image_of(&plan)?,
            kernels: vec![machine.kernel(KERNELS[0])?],
            qemu: machine.qemu_for(device),
            accel: machine.accel(),
            vcpus: 2,
            queues: 1,
            trials: TRIALS,
            only_trial: None,
            only_arms: vec!["rules".to_owned()],
            seed: 1,
            keep: None,
            shadow: false,
            jobs: 1,
            limits: runner::Limits::default(),
            plan,
        },
        &|_| (),
    )?;
    let tally = campaign.arms.first().context("an arm")?.tally();
    // A trial whose mount is refused, or whose bitmap nobody reads, would not count.
    ensure!(tally.trials == u64::from(TRIALS) && tally.hits == 0, "{tally:?}");
    Ok(())
}

fn refused(machine: &Machine) -> Result<()> {
    let image = machine.made(IMAGE_BYTES, &["-b".to_owned(), PAGE.to_string()])?;
    let mut config = machine.guest(Which::Own, KERNELS[1], &image)?;
    config.backend.device = Device::Nvdimm;
    let mut guest = boot(&config)?;
    let observed = run(&mut guest, 1, vec![mount("dax")], Vec::new())?;
    let errno = observed.result.steps.iter().find_map(|step| step.errno);
    ensure!(errno == Some(EINVAL), "{:?}", observed.result.steps);
    let said =
        |line: &agent::wire::KernelLine| line.text.contains("DAX unsupported by block device");
    ensure!(observed.result.kernel.iter().any(said), "{:?}", observed.result.kernel);
    guest.shutdown()?;
    Ok(())
}
