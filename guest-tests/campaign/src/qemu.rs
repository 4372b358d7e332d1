//! QEMU: which one, with which accelerator, and one virtual machine as a value.
//!
//! In: a [`VmConfig`]. Out: a running [`Vm`] whose console lines and end arrive as
//! [`Notice`]s.
//! Must not know: what the guest does, what the backend does.

mod command;
mod find;
mod private;
mod probe;
mod qmp;

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use find::{Qemu, Version};
pub use private::VHOST_USER_DEVICE;
pub use probe::Accel;
pub use qmp::{Qmp, QmpError};

use crate::apt::AptError;
use crate::cache::CacheError;
use crate::device::Device;
use crate::notice::{Line, Notice, Source};
use crate::process::{self, ProcessError, Running};

/// Console lines that are kept; a guest that says more has gone wrong, and its first words tell why.
const TRANSCRIPT_LINES: usize = 200_000;

/// QEMU cannot be found or used.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// No QEMU.
    #[error(
        "qemu-system-x86_64 is not installed; install it with: apt-get install \
             --no-install-recommends qemu-system-x86"
    )]
    Missing,
    /// No release to take a QEMU from.
    #[error("/etc/os-release names no Debian release whose QEMU could be fetched")]
    NotDebian,
    /// The path given is not a program.
    #[error("{} is not a program that can be run; give the path of qemu-system-x86_64",
            path.display())]
    NotAProgram {
        /// The path.
        path: PathBuf,
    },
    /// It did not say which version it is.
    #[error("{} does not look like QEMU: `--version` says {said:?}", path.display())]
    NotQemu {
        /// The path.
        path: PathBuf,
        /// What it said.
        said: String,
    },
    /// No accelerator works.
    #[error("{} can run no guest code, neither with KVM nor with TCG: {message}", path.display())]
    NoAccel {
        /// The path.
        path: PathBuf,
        /// What QEMU said about TCG.
        message: String,
    },
    /// A helper file could not be written.
    #[error("Could not write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The QEMU of another suite cannot be had or cannot run on this machine.
    #[error("The QEMU of {suite} cannot be run beside this machine's own")]
    NotHere {
        /// The suite.
        suite: String,
        /// Why.
        source: Box<QemuError>,
    },
    /// Neither the machine's QEMU nor those of newer suites have a device.
    #[error("Neither this machine's QEMU nor that of {suites} has the device {device}")]
    NoDevice {
        /// The device.
        device: &'static str,
        /// Where it was looked for.
        suites: String,
    },
    /// This one does not have the device.
    #[error(
        "{} (QEMU {version}) has no {model}, which {device} needs; give another QEMU (--qemu PATH; \
         without it one that has the device is looked for), or take another device",
        path.display()
    )]
    Lacks {
        /// Its path.
        path: PathBuf,
        /// Its version.
        version: Version,
        /// What QEMU calls the device.
        model: &'static str,
        /// What we call it.
        device: Device,
    },
    /// Its packages cannot be had.
    #[error(transparent)]
    Apt(#[from] AptError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Running it failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// One disk of the guest: a vhost-user-blk backend that listens on a socket.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Name of the device, unique in the machine; letters, digits and dashes.
    pub id: String,
    /// The backend's socket.
    pub socket: PathBuf,
    /// Virtqueues.
    pub queues: u16,
    /// Entries of each virtqueue, a power of two.
    pub queue_size: u16,
}

/// Persistent memory of the guest.
#[derive(Clone, Debug)]
pub enum Pmem {
    /// A file that QEMU maps: an NVDIMM, or a virtio-pmem device of QEMU's own.
    Mapped {
        /// Which of them.
        device: Device,
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
    },
    /// A vhost-user device of type pmem that listens on a socket.
    VhostUser {
        /// The socket.
        socket: PathBuf,
    },
}

/// One virtual machine.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// The program.
    pub qemu: Qemu,
    /// How guest code runs.
    pub accel: Accel,
    /// The kernel's bzImage.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// Kernel parameters added to the harness's own.
    pub cmdline: Vec<String>,
    /// Memory in MiB, shared with the backends.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<Disk>,
    /// Persistent memory, if the guest has any.
    pub pmem: Option<Pmem>,
    /// A file that is the guest's memory; QEMU makes some if it is not given.
    pub memory: Option<PathBuf>,
    /// The socket on which somebody waits for QEMU to speak its machine protocol.
    pub qmp: Option<PathBuf>,
    /// Whether it waits for a state ([`Qmp::load`]) in place of booting.
    pub incoming: bool,
    /// Variables added to QEMU's environment.
    pub environment: Vec<(String, String)>,
    /// Arguments added at the end of QEMU's command line.
    pub extra: Vec<OsString>,
}

impl VmConfig {
    /// A machine of 2 virtual CPUs and 512 MiB without disks.
    pub fn new(qemu: Qemu, accel: Accel, kernel: PathBuf, initramfs: PathBuf) -> VmConfig {
        VmConfig {
            qemu,
            accel,
            kernel,
            initramfs,
            cmdline: Vec::new(),
            memory_mib: 512,
            vcpus: 2,
            disks: Vec::new(),
            pmem: None,
            memory: None,
            qmp: None,
            incoming: false,
            environment: Vec::new(),
            extra: Vec::new(),
        }
    }
}

/// A running virtual machine; dropping it kills QEMU and everything in its process group.
#[derive(Debug)]
pub struct Vm {
    running: Running,
    transcript: Arc<Mutex<Vec<Line>>>,
    command_line: String,
}

impl Vm {
    /// Starts QEMU. Every console line, then the end, is sent to `notices`.
    ///
    /// A mistake in the arguments or a kernel that does not boot shows as [`Notice::VmExited`]
    /// after QEMU's or the kernel's own words.
    pub fn start(config: &VmConfig, notices: &Sender<Notice>) -> Result<Vm, QemuError> {
        let mut command = config.qemu.command();
        command.args(command::arguments(config));
        command.envs(config.environment.iter().map(|(name, value)| (name, value)));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let command_line = command::printable(&command);
        tracing::debug!(command = %command_line, "starting QEMU");

        let mut running = Running::start(command)?;
        let transcript = Arc::new(Mutex::new(Vec::new()));
        let (stdout, stderr) = running.take_pipes();
        let console = stdout.map(|pipe| reader(pipe, Source::Guest, &transcript, notices));
        let errors = stderr.map(|pipe| reader(pipe, Source::Qemu, &transcript, notices));
        let notices = notices.clone();
        let watched = running.on_exit(move |status| {
            // All words come before the end.
            for thread in [console, errors].into_iter().flatten() {
                let _ = thread.join();
            }
            let _ = notices.send(Notice::VmExited(status));
        });
        watched.map_err(|source| ProcessError::Watch { program: "QEMU".to_owned(), source })?;
        Ok(Vm { running, transcript, command_line })
    }

    /// Everything that the console and QEMU said so far, at most the first 200,000 lines.
    pub fn transcript(&self) -> Vec<Line> {
        self.transcript.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for QEMU's end, at most for `limit`; an interrupt ends the wait.
    pub fn wait_exit(&self, limit: Duration) -> Result<ExitStatus, ProcessError> {
        self.running.wait(limit)
    }

    /// How QEMU ended, if it has.
    pub fn status(&self) -> Option<ExitStatus> {
        self.running.status()
    }

    /// QEMU's process id, which is also the id of its process group.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Readable when QEMU has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.running.pidfd()
    }

    /// The command line, quoted for a shell.
    pub fn command_line(&self) -> &str {
        &self.command_line
    }

    /// Kills the machine (SIGKILL); its end arrives as [`Notice::VmExited`].
    pub fn kill(&self) {
        self.running.kill();
    }

    /// Kills the machine and waits until it is gone; as dropping it, but visible.
    pub fn stop(self) {
        drop(self);
    }
}

/// Starts the thread that turns `pipe` into lines.
fn reader(
    pipe: impl io::Read + Send + 'static,
    source: Source,
    transcript: &Arc<Mutex<Vec<Line>>>,
    notices: &Sender<Notice>,
) -> std::thread::JoinHandle<()> {
    let (transcript, notices) = (Arc::clone(transcript), notices.clone());
    std::thread::spawn(move || {
        process::read_lines(pipe, |text| {
            let line = Line { at: Instant::now(), source, text };
            let mut lines = transcript.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.len() < TRANSCRIPT_LINES {
                lines.push(line.clone());
            }
            drop(lines);
            // Nobody may be listening any more; the transcript has it.
            let _ = notices.send(Notice::Console(line));
        });
    })
}
