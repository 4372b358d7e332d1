//! Goal: however a page server ends under a running guest, nobody hangs and nothing is left:
//! no process, no FUSE connection, no mount.
//! Method: a guest writes all over its persistent memory while every touch of a page is delayed,
//! so that a virtual CPU is in the middle of one. Then the server is killed, or interrupted as a
//! terminal does it, or its disk is full. QEMU must be gone by SIGBUS, or the guest told.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use agent::random_writes::parse_synced;
use agent::wire::{Op, Thread};
use anyhow::{Context, Result, bail, ensure};
use campaign::backend::{Attachment, Storage};
use campaign::device::Device;
use campaign::guest::{Ended, Guest};
use libtest_mimic::Trial;
use pipeline::RuleSet;
use pipeline::control::Request;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, geteuid, kill_process, kill_process_group};

use crate::durable::writing;
use crate::machine::{Machine, Which, boot, must};

const KERNEL: &str = "debian-6.12.107";
const IMAGE_MIB: u64 = 64;
/// Writes that are durable before the end, as far as the guest knows.
const WRITES: u64 = 500;
const MARK_LIMIT: Duration = Duration::from_secs(120);
const END_LIMIT: Duration = Duration::from_secs(30);
/// What the supervisor calls itself.
const SUPERVISOR: &str = "racegate-umount";
/// Room on the small disk, in MiB.
const SMALL_MIB: u64 = 16;

/// Blocks for which there is room on it, at most.
const BLOCKS_THAT_FIT: u64 = (SMALL_MIB << 20) / 4096;

/// Every touch takes its time, and no page stays in the host's cache.
const SLOW: &str = r#"
[[rule]]
name = "every-touch"
match = { op = "fault" }
action = { delay = "500us" }
"#;

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    let no_mounts = why_no_mounts();
    let mut tests = Vec::new();
    for device in Device::ALL.into_iter().filter(|device| device.is_pmem()) {
        let which = Which::for_device(device);
        let killed = move |machine: &Machine| killed(machine, device);
        let name = format!("pmem_ends::killed_server::{device}");
        tests.push(machine.test_unless(no_mounts, &name, which, killed));
    }
    let interrupted = "pmem_ends::interrupted_server::nvdimm";
    tests.push(machine.test_unless(no_mounts, interrupted, Which::Own, interrupted_server));
    for device in [Device::Nvdimm, Device::VirtioPmem] {
        let full = move |machine: &Machine| full_disk(machine, device);
        let name = format!("pmem_ends::full_disk::{device}");
        tests.push(machine.test_unless(no_mounts, &name, Which::Own, full));
    }
    tests
}

/// Without the right to mount there is no small disk, and no look at FUSE connections.
fn why_no_mounts() -> Option<&'static str> {
    let may = || Command::new("unshare").args(["--mount", "true"]).status();
    let may = geteuid().is_root() && may().is_ok_and(|status| status.success());
    (!may).then_some("not root, or not permitted to mount")
}

/// A file system of the test's own, unmounted at the end.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(kind: &str, options: &str) -> Result<Mounted> {
        let mounted = Mounted(tempfile::tempdir()?);
        let mut mount = Command::new("mount");
        mount.args(["-t", kind, "-o", options, "none"]).arg(mounted.path());
        ensure!(mount.status()?.success(), "mount of {kind}");
        Ok(mounted)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// What a running page server must not leave behind.
struct Traces {
    mount: PathBuf,
    connections: Mounted,
    connection: String,
    supervisor: u32,
}

impl Traces {
    /// Those of the server of a guest; they are all seen to be there.
    fn of(guest: &Guest, mount: &Path) -> Result<Traces> {
        let connections = Mounted::new("fusectl", "ro")?;
        let device = fs::metadata(mount)?.dev();
        let connection = rustix::fs::minor(device).to_string();
        let server = guest.backend().pid();
        let supervisor = child(server, SUPERVISOR)?.context("the server has no supervisor")?;
        let traces = Traces { mount: mount.to_owned(), connections, connection, supervisor };
        let left = traces.left()?;
        ensure!(left.len() == 3, "of mount, connection and supervisor there is only {left:?}");
        Ok(traces)
    }

    /// What is still there.
    fn left(&self) -> Result<Vec<&'static str>> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mount = self.mount.to_string_lossy();
        let mounted = mounts.lines().any(|line| line.split(' ').nth(4) == Some(&*mount));
        let connected = self.connections.path().join(&self.connection).exists();
        let supervised = Path::new(&format!("/proc/{}", self.supervisor)).exists();
        let all = [("mount", mounted), ("connection", connected), ("supervisor", supervised)];
        Ok(all.into_iter().filter_map(|(what, there)| there.then_some(what)).collect())
    }

    /// Waits until nothing of it is left.
    fn vanish(&self) -> Result<()> {
        let started = Instant::now();
        let mounts = fs::File::open("/proc/self/mountinfo")?;
        let moment = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        loop {
            let left = self.left()?;
            if left.is_empty() {
                return Ok(());
            }
            ensure!(started.elapsed() < END_LIMIT, "left behind: {left:?}");
            // The kernel tells of changed mounts; the rest is looked at again after a moment.
            poll(&mut [PollFd::new(&mounts, PollFlags::PRI)], Some(&moment))?;
        }
    }
}

/// The child of a process that has this name.
fn child(parent: u32, name: &str) -> Result<Option<u32>> {
    let wanted = format!("({name}) ");
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // It may have ended since.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((_, rest)) = stat.split_once(&wanted) else { continue };
        if rest.split(' ').nth(1) == Some(&parent.to_string()) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// A guest that writes, and the mount point of its server.
fn writing_guest(machine: &Machine, device: Device, image: &Path) -> Result<(Guest, PathBuf)> {
    let mut config = machine.guest(Which::for_device(device), KERNEL, image)?;
    config.backend.device = device;
    config.backend.storage = Storage::File;
    let guest = boot(&config)?;
    let mount = match guest.backend().attachment() {
        Attachment::File(file) => file.parent().map(Path::to_owned),
        Attachment::Socket(socket) => socket.parent().map(|folder| folder.join("mount")),
    };
    Ok((guest, mount.context("a file in a folder")?))
}

fn write_a_while(guest: &mut Guest) -> Result<()> {
    let mut order = writing("/dev/{disk}");
    // A writer that waits for a flush touches no page, and nobody may answer that flush any more.
    let reads = Op::TimeReads {
        path: "/dev/{disk}".into(),
        offset: 0,
        step: (IMAGE_MIB << 20) / 4096,
        count: 4096,
        pause_us: 0,
        name: "reads".into(),
    };
    let reader = Thread { name: "reader".into(), ops: vec![reads; 64], ..Thread::default() };
    order.workload.threads.push(reader);
    guest.begin(order)?;
    guest.wait_mark(MARK_LIMIT, |mark| parse_synced(mark).filter(|n| *n >= WRITES))?;
    Ok(())
}

/// How QEMU and the page server ended, whichever came first.
fn both_ends(guest: &mut Guest, device: Device) -> Result<(ExitStatus, ExitStatus)> {
    let (mut machine, mut servers) = (None, Vec::new());
    // What hands the memory to QEMU serves the next one when that is gone.
    while machine.is_none() || servers.is_empty() {
        match guest.wait_ended(END_LIMIT).with_context(|| format!("{device}: somebody hangs"))? {
            Ended::Machine(status) => machine = Some(status),
            Ended::Backend(status, _) => servers.push(status),
        }
    }
    match (machine, servers.as_slice()) {
        (Some(machine), [server]) => Ok((machine, *server)),
        ended => bail!("{ended:?}"),
    }
}

fn raw(pid: u32) -> Result<Pid> {
    Pid::from_raw(pid.cast_signed()).context("a process id")
}

fn killed(machine: &Machine, device: Device) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("image");
    fs::File::create(&image)?.set_len(IMAGE_MIB << 20)?;
    let (mut guest, mount) = writing_guest(machine, device, &image)?;
    let traces = Traces::of(&guest, &mount)?;
    guest.load(&RuleSet::parse(SLOW, "pmem_ends")?)?;
    write_a_while(&mut guest)?;
    kill_process(raw(guest.backend().pid())?, Signal::KILL)?;
    let (qemu, server) = both_ends(&mut guest, device)?;
    ensure!(server.signal() == Some(Signal::KILL.as_raw()), "the server: {server}");
    ensure!(qemu.signal() == Some(Signal::BUS.as_raw()), "QEMU: {qemu}\n{}", guest.console());
    if device == Device::VhostUserPmem {
        // What handed the memory to QEMU has the file open, and would hand it to the next one.
        drop(guest);
    }
    traces.vanish()
}

/// Ctrl-C reaches every process of the terminal's foreground group.
fn interrupted_server(machine: &Machine) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("image");
    fs::File::create(&image)?.set_len(IMAGE_MIB << 20)?;
    let (mut guest, mount) = writing_guest(machine, Device::Nvdimm, &image)?;
    let traces = Traces::of(&guest, &mount)?;
    guest.load(&RuleSet::parse(SLOW, "pmem_ends")?)?;
    write_a_while(&mut guest)?;
    kill_process_group(raw(guest.backend().pid())?, Signal::INT)?;
    let (qemu, server) = both_ends(&mut guest, Device::Nvdimm)?;
    ensure!(server.success(), "the server: {server}");
    ensure!(qemu.signal() == Some(Signal::BUS.as_raw()), "QEMU: {qemu}\n{}", guest.console());
    traces.vanish()?;
    let stored = fs::read(&image)?;
    let written = stored.chunks(4096).filter(|page| page.iter().any(|byte| *byte != 0)).count();
    // Some blocks are drawn more than once.
    ensure!(written as u64 > WRITES * 9 / 10, "only {written} of {WRITES} blocks are in the image");
    Ok(())
}

/// The image is sparse, and there is no room for all of it.
fn full_disk(machine: &Machine, device: Device) -> Result<()> {
    let small = Mounted::new("tmpfs", &format!("size={SMALL_MIB}M"))?;
    let image = small.path().join("image");
    fs::File::create(&image)?.set_len(IMAGE_MIB << 20)?;
    let (mut guest, mount) = writing_guest(machine, device, &image)?;
    let traces = Traces::of(&guest, &mount)?;
    guest.load(&RuleSet::parse(SLOW, "pmem_ends")?)?;
    // A flush of a virtio-pmem device fails and the guest's fsync with it; an NVDIMM has none, and
    // what does not fit is gone, as when memory wears out.
    guest.begin(writing("/dev/{disk}"))?;
    let too_many = |mark: &str| parse_synced(mark).filter(|n| *n >= 2 * BLOCKS_THAT_FIT);
    let told = guest.wait_mark(MARK_LIMIT, too_many);
    match (device, told) {
        (Device::Nvdimm, told) => drop(told?),
        (_, Err(error)) => {
            let text = error.to_string();
            ensure!(text.contains("Input/output error"), "{text}");
        }
        (_, Ok(synced)) => {
            bail!("{synced} writes are durable on a disk of {BLOCKS_THAT_FIT} blocks")
        }
    }
    // It still answers, and so does the guest, unless it is writing.
    guest.control().call(&Request::List)?;
    if device == Device::Nvdimm {
        drop(guest);
    } else {
        must(&mut guest, "/bin/cat", &["/proc/uptime"])?;
        guest.shutdown()?;
    }
    traces.vanish()
}
