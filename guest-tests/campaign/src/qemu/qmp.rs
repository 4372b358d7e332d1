//! QEMU's machine protocol (docs/interop/qmp-spec.rst): as much as a snapshot takes.
//!
//! In: a socket to which QEMU connects. Out: answers, and the end of a migration.
//! Must not know: what is migrated, or why.
//!
//! One JSON object a line each way. Events come between answers and are kept until they are asked for.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use serde_json::{Value, json};

use crate::{interrupt, process};

/// How long QEMU may be silent: what it is asked takes it milliseconds.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// Memory that others share is no part of a saved machine (QEMU 4.0 and later).
const IGNORE_SHARED: &str = "x-ignore-shared";
/// Longest line that is read; QEMU's own are a few KiB.
const LONGEST_LINE: u64 = 1 << 20;

/// QEMU does not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// The connection could not be made, broke, or nothing came in time.
    #[error("QEMU does not answer on its QMP socket")]
    Io(#[from] io::Error),
    /// It ended, or the operator did not want to wait any longer.
    #[error("QEMU has not connected to its QMP socket")]
    NoConnection,
    /// What came is not QMP.
    #[error("QEMU answered {line:?}")]
    NotQmp {
        /// The line.
        line: String,
    },
    /// A command was refused.
    #[error("QEMU refused {command}: {desc}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Why.
        desc: String,
    },
    /// A machine was not saved.
    #[error("QEMU could not save the machine: {desc}")]
    Save {
        /// Why.
        desc: String,
    },
}

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Waits for QEMU to connect; `gone` is readable when it has ended.
    pub fn accept(listener: &UnixListener, gone: BorrowedFd<'_>) -> Result<Qmp, QmpError> {
        let polled = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = vec![polled(listener.as_fd()), polled(gone)];
        fds.extend(interrupt::fd().map(polled));
        process::poll_until(&mut fds, Some(Instant::now() + SILENCE_LIMIT))?;
        if fds[0].revents().is_empty() {
            return Err(QmpError::NoConnection);
        }
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(SILENCE_LIMIT))?;
        stream.set_write_timeout(Some(SILENCE_LIMIT))?;
        let mut qmp = Qmp { stream: BufReader::new(stream), events: VecDeque::new() };
        let greeting = qmp.read()?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::NotQmp { line: greeting.to_string() });
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Carries out a command and gives what it returns.
    pub fn execute(&mut self, command: &'static str, arguments: &Value) -> Result<Value, QmpError> {
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        self.stream.get_mut().write_all(line.as_bytes())?;
        loop {
            let mut answer = self.read()?;
            if answer.get("event").is_some() {
                self.events.push_back(answer);
            } else if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            } else if let Some(desc) = answer["error"]["desc"].as_str() {
                return Err(QmpError::Refused { command, desc: desc.to_owned() });
            } else {
                return Err(QmpError::NotQmp { line: answer.to_string() });
            }
        }
    }

    /// Saves the machine to `uri`, without memory that others share, and waits for the end; the
    /// machine then stands still.
    pub fn save(&mut self, uri: &str) -> Result<(), QmpError> {
        self.capabilities(&["events", IGNORE_SHARED])?;
        self.execute("migrate", &json!({"uri": uri}))?;
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.read()?,
            };
            match (event["event"].as_str(), event["data"]["status"].as_str()) {
                (Some("MIGRATION"), Some("completed")) => return Ok(()),
                (Some("MIGRATION"), Some("failed" | "cancelled")) => break,
                _ => {}
            }
        }
        let status = self.execute("query-migrate", &json!({}))?;
        let desc = status["error-desc"].as_str().unwrap_or("it does not say why");
        Err(QmpError::Save { desc: desc.to_owned() })
    }

    /// Has a machine that was started for it take its state from `uri`. It ends if it cannot, else it
    /// goes on where the saved one was.
    pub fn load(&mut self, uri: &str) -> Result<(), QmpError> {
        self.capabilities(&[IGNORE_SHARED])?;
        self.execute("migrate-incoming", &json!({"uri": uri})).map(drop)
    }

    fn capabilities(&mut self, names: &[&str]) -> Result<(), QmpError> {
        let on = names.iter().map(|name| json!({"capability": name, "state": true}));
        let all: Value = on.collect();
        self.execute("migrate-set-capabilities", &json!({"capabilities": all})).map(drop)
    }

    fn read(&mut self) -> Result<Value, QmpError> {
        let mut line = String::new();
        let mut limited = io::Read::take(&mut self.stream, LONGEST_LINE);
        if limited.read_line(&mut line)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        serde_json::from_str(&line).map_err(|_| QmpError::NotQmp { line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU 7.2 says when a device cannot be migrated, and when one fails on the way.
    const BLOCKED: &[&str] = &[
        r#"{"return": {}}"#,
        r#"{"error": {"class": "GenericError", "desc": "Migration disabled: no"}}"#,
    ];
    const FAILED: &[&str] = &[
        r#"{"return": {}}"#,
        "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"setup\"}}\n{\"return\": {}}",
        r#"{"event": "MIGRATION", "data": {"status": "failed"}}"#,
        r#"{"return": {"status": "failed", "error-desc": "no space"}}"#,
    ];

    /// A QEMU that gives these answers, the first two being the greeting and that to
    /// `qmp_capabilities`. The real one does not fail on demand.
    fn save(answers: &[&'static str]) -> QmpError {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let answers: Vec<&str> =
            [r#"{"QMP": {}}"#, r#"{"return": {}}"#].iter().chain(answers).copied().collect();
        let mut stream = UnixStream::connect(&path).unwrap();
        for answer in answers {
            writeln!(stream, "{answer}").unwrap();
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let (never, _kept) = UnixStream::pair().unwrap();
        let mut qmp = Qmp::accept(&listener, never.as_fd()).unwrap();
        qmp.save("exec:true").unwrap_err()
    }

    #[test]
    fn a_machine_that_is_not_saved_says_why() {
        let error = save(BLOCKED).to_string();
        assert_eq!(error, "QEMU refused migrate: Migration disabled: no");
        assert_eq!(save(FAILED).to_string(), "QEMU could not save the machine: no space");
        // It is gone, or says what is not QMP.
        assert!(matches!(save(&FAILED[..2]), QmpError::Io(_)));
        assert!(matches!(save(&["{}"]), QmpError::NotQmp { .. }));
        assert!(matches!(save(&["Segmentation fault"]), QmpError::NotQmp { .. }));
    }

    #[test]
    fn nobody_waits_for_a_qemu_that_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("qmp.sock")).unwrap();
        let (gone, other) = UnixStream::pair().unwrap();
        drop(other);
        let error = Qmp::accept(&listener, gone.as_fd()).unwrap_err();
        assert!(matches!(error, QmpError::NoConnection), "{error}");
    }
}
