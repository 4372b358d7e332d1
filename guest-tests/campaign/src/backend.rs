//! The block backend as a child of a trial, and the client of its control socket.
//!
//! In: a [`BackendConfig`]. Out: a running [`Backend`] with its sockets in a folder of its own,
//! answers to control requests, and its events as [`Notice`]s.
//! Must not know: virtual machines, what the rules mean.

mod control;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use control::{ControlClient, ControlError, Subscription};

use crate::interrupt;
use crate::notice::Notice;
use crate::process::{self, ProcessError, Running};

/// Names another program to run as the backend, instead of this one with the mode `blk`.
pub const PROGRAM_VARIABLE: &str = "RACEGATE_BLK";

/// How long a backend may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a backend may take to end after it was asked to.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of the backend's standard error that are kept for messages.
const STDERR_BYTES: usize = 8 << 10;

/// The backend could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Its own program is not to be found.
    #[error("Could not find the backend's program; name it with {PROGRAM_VARIABLE}")]
    NoProgram {
        /// Why.
        source: io::Error,
    },
    /// No folder for its sockets.
    #[error("Could not make a folder for the backend's sockets")]
    Folder {
        /// Why.
        source: io::Error,
    },
    /// It ended before it listened.
    #[error("The backend ended ({status}): {stderr}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// The last lines of its standard error.
        stderr: String,
    },
    /// It does not listen in time.
    #[error("The backend is not ready after {START_LIMIT:?}: {stderr}")]
    NotReady {
        /// The last lines of its standard error.
        stderr: String,
    },
    /// The operator asked racegate to end.
    #[error("Interrupted while the backend was starting")]
    Interrupted,
    /// Its control socket does not answer.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Running it failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// Where the disk's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In the image, which the guest changes.
    File,
    /// In memory, read from the image at start.
    Memory,
    /// In the image until they are written, then in memory; the image is never changed.
    Overlay,
}

impl Storage {
    /// Its name on the backend's command line.
    pub fn name(self) -> &'static str {
        match self {
            Storage::File => "file",
            Storage::Memory => "memory",
            Storage::Overlay => "overlay",
        }
    }
}

/// One disk.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// The image.
    pub image: PathBuf,
    /// Where its bytes are.
    pub storage: Storage,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Virtqueues, 1 to 16.
    pub queues: u16,
    /// Entries of each virtqueue, a power of two.
    pub queue_size: u16,
    /// Seed of every random draw of the rules.
    pub seed: u64,
    /// Rules in force from the start.
    pub rules: Option<PathBuf>,
    /// Whether a link disk is served beside the disk.
    pub link: bool,
    /// Where every event is written.
    pub event_log: Option<PathBuf>,
    /// Arguments added at the end.
    pub extra: Vec<OsString>,
}

impl BackendConfig {
    /// An overlay over `image` with one queue of 256 entries, a link disk, no rules and no log.
    pub fn new(image: PathBuf) -> BackendConfig {
        BackendConfig {
            image,
            storage: Storage::Overlay,
            read_only: false,
            queues: 1,
            queue_size: 256,
            seed: 0,
            rules: None,
            link: true,
            event_log: None,
            extra: Vec::new(),
        }
    }

    fn arguments(&self, sockets: &Sockets) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: OsString| words.extend([name.into(), value]);
        add("--socket-path", sockets.disk.clone().into());
        add("--control-socket", sockets.control.clone().into());
        if self.link {
            add("--link-socket", sockets.link.clone().into());
        }
        add("--blk-file", self.image.clone().into());
        add("--storage", self.storage.name().into());
        add("--num-queues", self.queues.to_string().into());
        add("--queue-size", self.queue_size.to_string().into());
        add("--seed", self.seed.to_string().into());
        add("--serial", agent::DISK_SERIAL.into());
        add("--ready-fd", "1".into());
        if let Some(rules) = &self.rules {
            add("--rules", rules.clone().into());
        }
        if let Some(log) = &self.event_log {
            add("--event-log", log.clone().into());
        }
        if self.read_only {
            words.push("--read-only".into());
        }
        words.extend(self.extra.iter().cloned());
        words
    }
}

/// Where a backend listens.
#[derive(Clone, Debug)]
struct Sockets {
    disk: PathBuf,
    link: PathBuf,
    control: PathBuf,
}

/// A running backend; dropping it kills it and removes its sockets.
#[derive(Debug)]
pub struct Backend {
    running: Running,
    sockets: Sockets,
    link: bool,
    stderr: Arc<Mutex<Vec<u8>>>,
    // Removed after the child is gone: fields are dropped in order.
    _folder: TempDir,
}

impl Backend {
    /// Starts a backend and waits until it listens. Its end is sent to `notices`.
    pub fn start(
        config: &BackendConfig,
        notices: &Sender<Notice>,
    ) -> Result<Backend, BackendError> {
        let folder = tempfile::Builder::new()
            .prefix("racegate-")
            .tempdir()
            .map_err(|source| BackendError::Folder { source })?;
        let sockets = Sockets {
            disk: folder.path().join("disk.sock"),
            link: folder.path().join("link.sock"),
            control: folder.path().join("control.sock"),
        };
        let mut command = program()?;
        command.args(config.arguments(&sockets));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running::start(command)?;

        let (stdout, errors) = running.take_pipes();
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let reader = errors.map(|pipe| keep_last(pipe, Arc::clone(&stderr)));
        let (ready, started) = mpsc::channel();
        if let Some(pipe) = stdout {
            std::thread::spawn(move || {
                // The first line says that it listens; the rest is read so that it never blocks.
                process::read_lines(pipe, |line| {
                    let _ = ready.send(line);
                });
            });
        }
        let (notices, said) = (notices.clone(), Arc::clone(&stderr));
        let watched = running.on_exit(move |status| {
            if let Some(reader) = reader {
                let _ = reader.join();
            }
            let _ = notices.send(Notice::BackendExited { status, stderr: last_words(&said) });
        });
        watched.map_err(|source| ProcessError::Watch { program: "racegate".to_owned(), source })?;
        let backend = Backend { running, sockets, link: config.link, stderr, _folder: folder };
        backend.wait_ready(&started)?;
        Ok(backend)
    }

    fn wait_ready(&self, started: &mpsc::Receiver<String>) -> Result<(), BackendError> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match started.recv_timeout(Duration::from_millis(200)) {
                Ok(_) => return Ok(()),
                // Standard output is closed: it is ending.
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.running.wait(STOP_LIMIT)?;
                    return Err(BackendError::Ended { status, stderr: last_words(&self.stderr) });
                }
                Err(RecvTimeoutError::Timeout) if interrupt::requested() => {
                    return Err(BackendError::Interrupted);
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                    return Err(BackendError::NotReady { stderr: last_words(&self.stderr) });
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// The vhost-user socket of the disk.
    pub fn socket(&self) -> &Path {
        &self.sockets.disk
    }

    /// The vhost-user socket of the link disk, if there is one.
    pub fn link_socket(&self) -> Option<&Path> {
        self.link.then_some(self.sockets.link.as_path())
    }

    /// The path of the control socket.
    pub fn control_socket(&self) -> &Path {
        &self.sockets.control
    }

    /// A connection to the control socket.
    pub fn control(&self) -> Result<ControlClient, ControlError> {
        ControlClient::connect(&self.sockets.control)
    }

    /// Sends every event from now on to `notices`, until the subscription is dropped.
    pub fn subscribe(&self, notices: &Sender<Notice>) -> Result<Subscription, ControlError> {
        self.control()?.subscribe(notices)
    }

    /// The backend's process id, which is also the id of its process group.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// The last lines of its standard error.
    pub fn stderr(&self) -> String {
        last_words(&self.stderr)
    }

    /// Asks it to end (SIGTERM) and waits; it is killed if it does not.
    pub fn stop(self) -> Result<ExitStatus, BackendError> {
        self.running.terminate();
        Ok(self.running.wait(STOP_LIMIT)?)
    }
}

/// The command that runs a backend, without its arguments.
fn program() -> Result<std::process::Command, BackendError> {
    if let Some(program) = std::env::var_os(PROGRAM_VARIABLE) {
        return Ok(process::command_at(Path::new(&program)));
    }
    let own = std::env::current_exe().map_err(|source| BackendError::NoProgram { source })?;
    let mut command = process::command_at(&own);
    command.arg("blk");
    Ok(command)
}

/// Starts the thread that keeps the last [`STDERR_BYTES`] of `pipe`.
fn keep_last(
    pipe: impl io::Read + Send + 'static,
    kept: Arc<Mutex<Vec<u8>>>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        process::read_lines(pipe, |line| {
            tracing::debug!(target: "backend", "{line}");
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(line.as_bytes());
            kept.push(b'\n');
            let surplus = kept.len().saturating_sub(STDERR_BYTES);
            kept.drain(..surplus);
        });
    })
}

/// What the backend said last; if it panicked, from there on and without the backtrace.
fn last_words(stderr: &Mutex<Vec<u8>>) -> String {
    let stderr = stderr.lock().unwrap_or_else(PoisonError::into_inner);
    let text = String::from_utf8_lossy(&stderr);
    match text.find("panicked at") {
        Some(panic) => {
            let lines: Vec<&str> = text[panic..].lines().take(2).collect();
            lines.join(" ")
        }
        None => process::last_lines(text.as_bytes(), 5),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_without_its_backtrace() {
        let said = "listening\nthread 'main' (7) panicked at src/main.rs:8:47:\nthe reason\n\
                    stack backtrace:\n   0: one\n   1: two\n   2: three\n   3: four\n";
        let words = last_words(&Mutex::new(said.as_bytes().to_vec()));
        assert_eq!(words, "panicked at src/main.rs:8:47: the reason");
        let words = last_words(&Mutex::new(b"\nimage is locked\n".to_vec()));
        assert_eq!(words, "image is locked");
    }
}
