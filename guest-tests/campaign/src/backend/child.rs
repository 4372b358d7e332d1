//! One process of a backend: this program in one of its daemon modes.
//!
//! In: a mode and its arguments. Out: a [`Child`] that says when it is ready, and what it said
//! last if it ends.
//! Must not know: what the mode serves.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{BackendError, START_LIMIT, STOP_LIMIT};
use crate::interrupt;
use crate::notice::Notice;
use crate::process::{self, ProcessError, Running};

/// Names another program to run as the disk, instead of this one with the mode `blk`.
pub const PROGRAM_VARIABLE: &str = "RACEGATE_BLK";

/// Bytes of standard error that are kept for messages.
const STDERR_BYTES: usize = 8 << 10;

/// A running process of a backend; dropping it kills it.
#[derive(Debug)]
pub(super) struct Child {
    running: Running,
    stderr: Arc<Mutex<Vec<u8>>>,
    started: Receiver<String>,
}

impl Child {
    /// Starts this program in `mode`. Its end is sent to `notices`.
    pub(super) fn start(
        mode: &str,
        arguments: Vec<OsString>,
        notices: &Sender<Notice>,
    ) -> Result<Child, BackendError> {
        let mut command = program(mode)?;
        command.args(arguments);
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
        Ok(Child { running, stderr, started })
    }

    /// Waits for its first line, and gives it.
    pub(super) fn wait_ready(&self) -> Result<String, BackendError> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match self.started.recv_timeout(Duration::from_millis(200)) {
                Ok(line) => return Ok(line),
                // Standard output is closed: it is ending.
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.running.wait(STOP_LIMIT)?;
                    return Err(BackendError::Ended { status, stderr: self.stderr() });
                }
                Err(RecvTimeoutError::Timeout) if interrupt::requested() => {
                    return Err(BackendError::Interrupted);
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                    return Err(BackendError::NotReady { stderr: self.stderr() });
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Its process id, which is also the id of its process group.
    pub(super) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// The last lines of its standard error.
    pub(super) fn stderr(&self) -> String {
        last_words(&self.stderr)
    }

    /// Asks it to end and waits.
    pub(super) fn stop(&self) -> Result<ExitStatus, BackendError> {
        self.running.terminate();
        Ok(self.running.wait(STOP_LIMIT)?)
    }

    /// Asks it to end and gives it the time to, even when the operator has interrupted.
    pub(super) fn end(&self) {
        self.running.terminate();
        self.running.wait_ended(STOP_LIMIT);
    }
}

/// The command that runs a backend, without its arguments.
fn program(mode: &str) -> Result<Command, BackendError> {
    if let Some(program) = std::env::var_os(PROGRAM_VARIABLE).filter(|_| mode == "blk") {
        return Ok(process::command_at(Path::new(&program)));
    }
    let own = std::env::current_exe().map_err(|source| BackendError::NoProgram { source })?;
    let mut command = process::command_at(&own);
    command.arg(mode);
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
