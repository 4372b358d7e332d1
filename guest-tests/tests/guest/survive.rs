//! Goal: a real guest loses nothing when the daemon behind one of its disks is killed, when its
//! machine is paused, when its driver is unbound, and it learns of a new size.
//! Method: a disk of its own daemon beside the harness's, with a QEMU that reconnects; random
//! writes with an fsync after every few while a rule holds and delays some of them; at the end
//! every block of the image is compared with the writes that the guest was told are durable, and
//! the console with what a kernel says of a disk that answers wrongly.
//!
//! `RACEGATE_DEATHS=N` kills the daemon N times, and pauses the machine as often.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use agent::draws::Draws;
use agent::random_writes::parse_synced;
use agent::wire::{Op, Workload};
use anyhow::{Context, Result, bail, ensure};
use campaign::backend::Storage;
use campaign::guest::{Guest, GuestConfig};
use campaign::image;
use campaign::process::{self, Running};
use libtest_mimic::Trial;
use pipeline::control::{Request, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::durable::{IMAGE_MIB, compare, writing};
use crate::machine::{Machine, Which, boot, must, run};

const KERNEL: &str = "debian-6.12.107";
const SERIAL: &str = "survivor";
const FEW: u64 = 6;
/// Writes that have to be durable in the end, so that most of the disk was written.
const WRITES: u64 = 6000;
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// What a kernel says when a disk answers wrongly, or not.
const COMPLAINTS: [&str; 4] = ["I/O error", "is not a head", "blocked for more than", "BUG:"];

const RULES: &str = r#"
[[rule]]
name = "hold"
match = { op = ["read", "write"], probability = 0.005 }
action = { hold = { until = "control", at_most = "150ms" } }

[[rule]]
name = "delay"
match = { op = ["read", "write", "flush"], probability = 0.2 }
action = { delay = { uniform = ["1ms", "15ms"] } }
"#;

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    vec![
        // The machine's own may be one that reconnects after whole seconds only.
        machine.test("survive::killed_daemon", Which::Other, killed_daemon),
        machine.test("survive::paused_and_unbound", Which::Other, paused_and_unbound),
        machine.test("survive::new_size", Which::Own, new_size),
    ]
}

fn deaths() -> Result<u64> {
    match std::env::var("RACEGATE_DEATHS") {
        Ok(text) => text.parse().with_context(|| format!("RACEGATE_DEATHS={text}")),
        Err(_) => Ok(FEW),
    }
}

/// A disk with a daemon that may be killed.
struct Survivor {
    folder: TempDir,
    before: Vec<u8>,
    daemon: Running,
}

impl Survivor {
    fn new(machine: &Machine) -> Result<Survivor> {
        let folder = tempfile::tempdir()?;
        let disk = folder.path().join("disk");
        image::copy(&machine.image(IMAGE_MIB)?, &disk)?;
        std::fs::write(folder.path().join("rules.toml"), RULES)?;
        let before = std::fs::read(&disk)?;
        let daemon = start(&folder)?;
        Ok(Survivor { folder, before, daemon })
    }

    fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// SIGKILL, and another one: at once, or after two seconds in which the guest goes on.
    fn kill(&mut self, guest: &mut Guest, at_once: bool, durable: &mut u64) -> Result<()> {
        self.daemon.kill();
        self.daemon.wait(LIMIT)?;
        if !at_once {
            let until = Instant::now() + Duration::from_secs(2);
            run_on(guest, until, durable);
        }
        self.daemon = start(&self.folder)?;
        Ok(())
    }

    /// Machine and daemon end; gives the number of blocks compared.
    fn finish(self, mut guest: Guest, mut durable: u64) -> Result<usize> {
        guest.kill_machine(|mark| durable = parse_synced(mark).unwrap_or(durable).max(durable))?;
        let console = guest.console();
        drop(guest);
        self.daemon.terminate();
        let status = self.daemon.wait(LIMIT)?;
        ensure!(status.success(), "the daemon ended with {status}");
        let bad = console.lines().find(|line| COMPLAINTS.iter().any(|said| line.contains(said)));
        ensure!(bad.is_none(), "the guest complains: {bad:?}");
        let compared = compare(&self.disk(), &self.before, durable)?;
        let canary = compare(&self.disk(), &self.before, durable + 2000);
        ensure!(canary.is_err(), "writes that were never made were taken for durable");
        Ok(compared)
    }
}

/// Starts the daemon and waits until it is ready.
pub(crate) fn start(folder: &TempDir) -> Result<Running> {
    let mut command = process::command_at(&std::env::current_exe()?);
    command.arg("blk").current_dir(folder.path()).stdout(Stdio::piped()).args([
        "--blk-file=disk",
        "--socket-path=s",
        "--rules=rules.toml",
        "--num-queues=2",
        "--queue-size=128",
        "--ready-fd=1",
    ]);
    command.arg(format!("--serial={SERIAL}"));
    let mut daemon = Running::start(command)?;
    let (stdout, _) = daemon.take_pipes();
    let mut line = String::new();
    BufReader::new(stdout.context("its output")?).read_line(&mut line)?;
    ensure!(line.trim() == "ready", "the daemon says {line:?}");
    Ok(daemon)
}

/// A guest with the survivor as its third disk, and a way to command its machine.
fn boot_with(machine: &Machine, survivor: &Survivor) -> Result<(Guest, Qmp)> {
    let mut config = machine.guest(Which::Other, KERNEL, &machine.image(IMAGE_MIB)?)?;
    config.programs.push(("readlink".to_owned(), "coreutils".to_owned()));
    let socket = survivor.folder.path().join("s");
    let qmp = survivor.folder.path().join("qmp");
    config.qemu_args = [
        "-chardev".to_owned(),
        format!("socket,id=survivor,path={},reconnect-ms=20", socket.display()),
        "-device".to_owned(),
        "vhost-user-blk-pci,id=survivor,chardev=survivor,num-queues=2,queue-size=128".to_owned(),
        "-qmp".to_owned(),
        format!("unix:{},server=on,wait=off", qmp.display()),
    ]
    .map(Into::into)
    .to_vec();
    let mut guest = boot(&config)?;
    let serial = must(&mut guest, "/bin/cat", &["/sys/block/vdc/serial"])?;
    ensure!(serial.stdout.trim() == SERIAL, "vdc is another disk: {}", serial.stdout);
    Ok((guest, Qmp::connect(&qmp)?))
}

/// Lets the guest write until then, and keeps what it says is durable.
fn run_on(guest: &mut Guest, until: Instant, durable: &mut u64) {
    let left = until.saturating_duration_since(Instant::now());
    // A limit that passes is what is waited for; an error of another kind meets the next wait.
    let _ = guest.wait_mark(left, |mark| {
        *durable = parse_synced(mark).unwrap_or(*durable).max(*durable);
        None::<()>
    });
}

/// Waits until so many writes are durable.
fn wait_durable(guest: &mut Guest, at_least: u64, durable: &mut u64) -> Result<()> {
    if *durable < at_least {
        *durable = guest
            .wait_mark(LIMIT, |mark| parse_synced(mark).filter(|n| *n >= at_least))
            .with_context(|| format!("{at_least} durable writes, there were {durable}"))?;
    }
    Ok(())
}

fn killed_daemon(machine: &Machine) -> Result<()> {
    let mut survivor = Survivor::new(machine)?;
    let (mut guest, _qmp) = boot_with(machine, &survivor)?;
    guest.begin(writing("/dev/vdc"))?;
    let mut draws = Draws::new(1, "kills");
    let mut durable = 0;
    let deaths = deaths()?;
    for death in 0..deaths {
        // After at least one flush more, so that each one finds a disk at work.
        let next = durable + 1;
        wait_durable(&mut guest, next, &mut durable)?;
        let for_ms = draws.between(0, 250);
        run_on(&mut guest, Instant::now() + Duration::from_millis(for_ms), &mut durable);
        survivor.kill(&mut guest, death % 2 == 0, &mut durable)?;
    }
    let enough = WRITES.max(durable + 500);
    wait_durable(&mut guest, enough, &mut durable)?;
    let compared = survivor.finish(guest, durable)?;
    eprintln!(
        "survive: {deaths} kills of the daemon under a guest: {durable} durable writes, {compared} \
         blocks compared, none lost"
    );
    Ok(())
}

fn paused_and_unbound(machine: &Machine) -> Result<()> {
    let survivor = Survivor::new(machine)?;
    let (mut guest, mut qmp) = boot_with(machine, &survivor)?;
    let link = must(&mut guest, "/bin/readlink", &["/sys/block/vdc/device"])?;
    let device = link.stdout.trim().rsplit('/').next().context("a device")?.to_owned();
    // The same disk again, by the same driver.
    for trial in 1..=3 {
        let driver = |file: &str| Op::WriteValue {
            path: format!("/sys/bus/virtio/drivers/virtio_blk/{file}"),
            value: device.clone(),
        };
        let workload =
            Workload { setup: vec![driver("unbind"), driver("bind")], ..Workload::default() };
        run(&mut guest, trial, workload, LIMIT)?;
    }
    guest.begin(writing("/dev/vdc"))?;
    let mut draws = Draws::new(1, "pauses");
    let mut durable = 0;
    let pauses = deaths()?;
    for _ in 0..pauses {
        let for_ms = draws.between(1, 200);
        run_on(&mut guest, Instant::now() + Duration::from_millis(for_ms), &mut durable);
        qmp.order("stop")?;
        qmp.order("cont")?;
    }
    let enough = WRITES.max(durable + 500);
    wait_durable(&mut guest, enough, &mut durable)?;
    let compared = survivor.finish(guest, durable)?;
    eprintln!("survive: {pauses} pauses and 3 unbinds: {compared} blocks compared, none lost");
    Ok(())
}

/// Up and down, while it is in use; what cannot be told to a guest is refused.
fn new_size(machine: &Machine) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    image::copy(&machine.image(IMAGE_MIB)?, &disk)?;
    let mut config: GuestConfig = machine.guest(Which::Own, KERNEL, &disk)?;
    config.backend.storage = Storage::File;
    let mut guest = boot(&config)?;
    for mib in [IMAGE_MIB + 32, IMAGE_MIB - 32, IMAGE_MIB] {
        let done = guest.control().call(&Request::Resize { bytes: mib << 20 })?;
        ensure!(done == Response::Done, "resize: {done:?}");
        let deadline = Instant::now() + LIMIT;
        let sectors = (mib << 11).to_string();
        while must(&mut guest, "/bin/cat", &["/sys/block/{disk}/size"])?.stdout.trim() != sectors {
            ensure!(Instant::now() < deadline, "the guest never saw {mib} MiB");
        }
        ensure!(disk.metadata()?.len() == mib << 20, "the image has another size");
    }
    let refused = guest.control().call(&Request::ReadOnly { on: true });
    match refused {
        Err(error) if format!("{error:#}").contains("writable") => {}
        other => bail!("read-only under a guest that writes: {other:?}"),
    }
    for on in [false, true] {
        let done = guest.control().call(&Request::WriteCache { on })?;
        ensure!(done == Response::Done, "write cache: {done:?}");
    }
    must(&mut guest, "/bin/mkfs.ext4", &["-q", "-F", "/dev/{disk}"])?;
    must(&mut guest, "/bin/e2fsck", &["-f", "-n", "/dev/{disk}"])?;
    guest.shutdown()?;
    Ok(())
}

/// QEMU's monitor.
pub(crate) struct Qmp(BufReader<UnixStream>);

impl Qmp {
    pub(crate) fn connect(path: &std::path::Path) -> Result<Qmp> {
        let socket = UnixStream::connect(path).context("QEMU's monitor")?;
        socket.set_read_timeout(Some(LIMIT))?;
        let mut qmp = Qmp(BufReader::new(socket));
        let mut greeting = String::new();
        qmp.0.read_line(&mut greeting)?;
        qmp.order("qmp_capabilities")?;
        Ok(qmp)
    }

    pub(crate) fn order(&mut self, command: &str) -> Result<()> {
        self.ask(&json!({ "execute": command })).map(drop)
    }

    /// Gives a command, and waits for what it returns.
    pub(crate) fn ask(&mut self, command: &Value) -> Result<Value> {
        writeln!(self.0.get_mut(), "{command}")?;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            let mut answer: Value =
                serde_json::from_str(&line).with_context(|| format!("QEMU says {line:?}"))?;
            if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            }
            ensure!(answer.get("event").is_some(), "{command}: {line}");
        }
    }
}
