//! `racegate stores`: the first store to each page of a guest's persistent memory.
//!
//! In: a file on tmpfs, and maybe the command line of the VMM that maps it. Out: events, as text
//! and as a log.
//! Must not know: how stores are seen.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use campaign::stores::ShimFile;
use clap::{Parser, Subcommand};
use device::stop::Stop;
use device::stores::{Times, Watch};
use pipeline::Event;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::ctl::show;
use crate::daemon::{CommandLine, Ready, stop_on_signal};

/// Events that may wait to be written; then whoever stores waits.
const BACKLOG: usize = 1 << 16;

/// The first store to each page of a guest's persistent memory: which byte, which virtual
/// processor, which ext4 object
#[derive(Debug, Parser)]
#[command(name = "racegate stores", version)]
struct Args {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Watch a file that QEMU maps
    #[command(after_help = "\
        Example: cp disk.img /dev/shm/pmem; racegate stores watch --pmem-file /dev/shm/pmem -- \
        qemu-system-x86_64 -name x,debug-threads=on ... -object memory-backend-file,id=m,share=on,\
        mem-path=/dev/shm/pmem,size=64M -device virtio-pmem-pci,memdev=m\n\
        QEMU has to be linked dynamically; its threads tell which virtual processor they are only \
        with debug-threads=on. Pages are protected again, so that the next store to each is seen, \
        at every flush of a virtio-pmem device (NVDIMMs have none), after --every, and by \
        `racegate stores protect`.")]
    Watch(WatchArgs),
    /// Have all pages protected again by a running `watch`
    Protect {
        /// Its --socket
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct WatchArgs {
    /// The file that QEMU maps; on tmpfs
    #[arg(long, value_name = "PATH")]
    pmem_file: PathBuf,

    /// Where QEMU and `protect` reach this program [default: in a folder of its own]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Write every event to this file, one JSON object a line; an existing file is replaced
    #[arg(long, value_name = "FILE")]
    event_log: Option<PathBuf>,

    /// Protect all pages again after this time, over and over (10ms)
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    every: Option<Duration>,

    /// How long COMMAND may take to map the file
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "30s")]
    within: Duration,

    /// Print no events
    #[arg(long)]
    quiet: bool,

    /// Write "ready", the environment for QEMU as JSON, and a newline to this inherited file
    /// descriptor
    #[arg(long, value_name = "FDNUM")]
    ready_fd: Option<i32>,

    /// QEMU's command line; without it, QEMU is to be started with the variables that are printed
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl CommandLine for Args {}

/// Runs the mode with a command line, program name included, and gives its exit status: 0 after a
/// clean end, 1 if it could not start or go on, 2 if the command line is wrong.
pub fn main(command_line: impl IntoIterator<Item = OsString>) -> ExitCode {
    crate::daemon::main("racegate stores", command_line.into_iter().collect(), run)
}

/// Its command line as a mode of the tool, for the man page.
pub(crate) fn command() -> clap::Command {
    <Args as clap::CommandFactory>::command().name("stores")
}

fn run(args: &Args) -> anyhow::Result<()> {
    match &args.mode {
        Mode::Watch(args) => watch(args),
        Mode::Protect { socket } => device::stores::protect(socket)
            .with_context(|| format!("nobody watches stores at {}", socket.display())),
    }
}

fn watch(args: &WatchArgs) -> anyhow::Result<()> {
    let ready = Ready::inherited(args.ready_fd)?;
    let folder = tempfile::Builder::new().prefix("racegate-").tempdir()?;
    let socket = args.socket.clone().unwrap_or_else(|| folder.path().join("stores.sock"));
    let watch = Watch::new(&args.pmem_file, &socket)?;
    let log = args.event_log.as_deref().map(create).transpose()?;
    let shim = ShimFile::write().context("cannot write the library for QEMU")?;
    let environment = watch.environment(shim.path());
    let stop = stop_on_signal()?;

    let (events, written) = sync_channel(BACKLOG);
    let quiet = args.quiet;
    let writer = std::thread::spawn(move || write(&written, log, quiet));
    let mut command = None;
    if let [program, arguments @ ..] = &args.command[..] {
        let mut started = Command::new(program);
        started.args(arguments).envs(environment);
        command = Some(Running::start(&mut started, Arc::clone(&stop))?);
    } else {
        let variables: BTreeMap<&str, String> = environment
            .iter()
            .map(|(name, value)| (*name, value.to_string_lossy().into_owned()))
            .collect();
        if args.ready_fd.is_none() {
            for (name, value) in &variables {
                println!("{name}={value}");
            }
        }
        ready.tell(&format!("ready {}", serde_json::to_string(&variables)?));
    }
    let times = Times { every: args.every, mapped_within: command.as_ref().map(|_| args.within) };
    let seen = watch.run(times, stop.as_fd(), &mut |event| {
        // A writer that has failed says so below.
        let _ = events.send(event);
    });
    drop(events);
    let status = command.map(Running::end).transpose()?;
    let Ok(written) = writer.join() else { bail!("the thread that writes events panicked") };
    written?;
    if let Some(status) = status
        && seen.as_ref().is_ok_and(|seen| seen.mappings == 0)
    {
        bail!(
            "the command ended ({status}) without having mapped {} as it must be: shared, for \
             writing, by a program that LD_PRELOAD has an effect on",
            args.pmem_file.display()
        );
    }
    let seen = seen?;
    if !args.quiet {
        println!("{} first stores, {} mappings", seen.stores, seen.mappings);
    }
    ensure!(status.is_none_or(|status| status.success()), "the command ended badly");
    Ok(())
}

fn create(path: &Path) -> anyhow::Result<BufWriter<File>> {
    let file = File::create(path)
        .with_context(|| format!("cannot create the event log {}", path.display()))?;
    Ok(BufWriter::new(file))
}

/// Writes events until there are no more.
fn write(
    events: &Receiver<Event>,
    mut log: Option<BufWriter<File>>,
    quiet: bool,
) -> anyhow::Result<()> {
    let mut text = (!quiet).then(io::stdout);
    for event in events {
        if let Some(log) = &mut log {
            serde_json::to_writer(&mut *log, &event)
                .map_err(io::Error::from)
                .and_then(|()| log.write_all(b"\n"))
                .context("cannot write the event log")?;
        }
        // A closed pipe is the reader's choice; the log goes on.
        text = text.filter(|mut text| show::event(&mut text, &event).is_ok());
    }
    log.map_or(Ok(()), |mut log| log.flush()).context("cannot write the event log")
}

/// The command.
struct Running {
    pidfd: rustix::fd::OwnedFd,
    waiter: JoinHandle<io::Result<ExitStatus>>,
}

impl Running {
    /// Starts it; its end sets `stop`.
    fn start(command: &mut Command, stop: Arc<Stop>) -> anyhow::Result<Running> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).inspect_err(|_| {
            // Not to be left behind, whatever the reason.
            let _ = child.kill();
        })?;
        let wait = move |mut child: Child| {
            let status = child.wait();
            stop.set();
            status
        };
        Ok(Running { pidfd, waiter: std::thread::spawn(move || wait(child)) })
    }

    /// Asks it to end, unless it has, and gives how it did.
    fn end(self) -> anyhow::Result<ExitStatus> {
        // It may be gone.
        let _ = pidfd_send_signal(&self.pidfd, Signal::TERM);
        match self.waiter.join() {
            Ok(status) => Ok(status?),
            Err(_) => bail!("the thread that waits for the command panicked"),
        }
    }
}
