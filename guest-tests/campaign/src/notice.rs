//! Notices: everything that a trial waits for, in one channel.
//!
//! In: console lines, backend events, exits and interrupts, each sent by the thread that saw it.
//! Out: [`Inbox::wait_for`], a wait for a named condition with a time limit.
//! Must not know: what a trial is.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::process::ExitStatus;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use pipeline::Event;

use crate::interrupt;

/// Console lines that a failed wait quotes.
const TAIL_LINES: usize = 20;

/// Who wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The guest, on its serial console.
    Guest,
    /// QEMU itself, on standard error.
    Qemu,
}

/// One line of console output.
#[derive(Clone, Debug)]
pub struct Line {
    /// When the host read its last byte.
    pub at: Instant,
    /// Who wrote it.
    pub source: Source,
    /// The text without line end; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A console line.
    Console(Line),
    /// QEMU ended; all its console lines came before.
    VmExited(ExitStatus),
    /// One event of the backend, as its event stream gives it, with the time it was read.
    Event {
        /// When the host read it.
        at: Instant,
        /// The event.
        event: Box<Event>,
    },
    /// The event stream ended; no event follows.
    EventsEnded,
    /// The backend process ended; carries what it wrote on standard error.
    BackendExited {
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its standard error.
        stderr: String,
    },
    /// The operator asked the program to end.
    Interrupted,
}

/// A wait ended without what it waited for.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WaitError {
    /// The time limit passed.
    #[error("{what}: nothing within {after:?}{tail}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// The limit.
        after: Duration,
        /// The last console lines, indented, or empty.
        tail: String,
    },
    /// The virtual machine ended first.
    #[error("{what}: the virtual machine ended ({status}){tail}")]
    VmExited {
        /// What was waited for.
        what: &'static str,
        /// How QEMU ended.
        status: ExitStatus,
        /// The last console lines, indented, or empty.
        tail: String,
    },
    /// The kernel panicked first.
    #[error("{what}: {panic}{tail}")]
    Panicked {
        /// What was waited for.
        what: &'static str,
        /// The kernel's line.
        panic: String,
        /// The last console lines, indented, or empty.
        tail: String,
    },
    /// The backend ended first.
    #[error("{what}: the backend ended ({status}): {stderr}")]
    BackendExited {
        /// What was waited for.
        what: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its standard error.
        stderr: String,
    },
    /// The operator asked the program to end.
    #[error("{what}: interrupted")]
    Interrupted {
        /// What was waited for.
        what: &'static str,
    },
}

/// The receiving end of a trial's notices.
#[derive(Debug)]
pub struct Inbox {
    sender: Sender<Notice>,
    receiver: Receiver<Notice>,
    tail: VecDeque<String>,
    panic: Option<String>,
    _interrupts: interrupt::Listener,
}

impl Default for Inbox {
    fn default() -> Self {
        Inbox::new()
    }
}

impl Inbox {
    /// An empty inbox; interrupts reach it from now on.
    pub fn new() -> Inbox {
        let (sender, receiver) = mpsc::channel();
        Inbox {
            _interrupts: interrupt::Listener::new(sender.clone()),
            sender,
            receiver,
            tail: VecDeque::with_capacity(TAIL_LINES),
            panic: None,
        }
    }

    /// A sender for whoever has something to tell.
    pub fn sender(&self) -> Sender<Notice> {
        self.sender.clone()
    }

    /// The next notice, or `None` at `deadline`.
    pub fn next(&mut self, deadline: Instant) -> Option<Notice> {
        let limit = deadline.saturating_duration_since(Instant::now());
        match self.receiver.recv_timeout(limit) {
            Ok(notice) => {
                self.remember(&notice);
                Some(notice)
            }
            // Disconnected cannot happen: this inbox holds a sender itself.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
        }
    }

    /// A notice that is there already.
    pub fn try_next(&mut self) -> Option<Notice> {
        let notice = self.receiver.try_recv().ok()?;
        self.remember(&notice);
        Some(notice)
    }

    /// Hands notices to `pick` until it returns something, at most for `limit`.
    ///
    /// `what` names the condition in errors. An exit, a kernel panic or an interrupt ends the wait
    /// with an error unless `pick` takes the notice that tells it.
    pub fn wait_for<T>(
        &mut self,
        what: &'static str,
        limit: Duration,
        mut pick: impl FnMut(&Notice) -> Option<T>,
    ) -> Result<T, WaitError> {
        let deadline = Instant::now() + limit;
        loop {
            let Some(notice) = self.next(deadline) else {
                return Err(WaitError::TimedOut { what, after: limit, tail: self.tail() });
            };
            if let Some(found) = pick(&notice) {
                return Ok(found);
            }
            match notice {
                Notice::VmExited(status) => {
                    let tail = self.tail();
                    return Err(match self.panic.take() {
                        Some(panic) => WaitError::Panicked { what, panic, tail },
                        None => WaitError::VmExited { what, status, tail },
                    });
                }
                Notice::BackendExited { status, stderr } => {
                    return Err(WaitError::BackendExited { what, status, stderr });
                }
                Notice::Interrupted => return Err(WaitError::Interrupted { what }),
                Notice::Console(_) | Notice::Event { .. } | Notice::EventsEnded => {}
            }
        }
    }

    /// Waits for the end of a machine that is on its way out, at most for `limit`; `see` is shown
    /// every notice. The machine lets go of its devices before its process is gone, so a backend
    /// may end well before that.
    pub fn wait_machine_gone(
        &mut self,
        what: &'static str,
        limit: Duration,
        mut see: impl FnMut(&Notice),
    ) -> Result<(), WaitError> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let gone = self.wait_for(what, left, |notice| {
                see(notice);
                match notice {
                    Notice::VmExited(_) => Some(true),
                    Notice::BackendExited { status, .. } if status.success() => Some(false),
                    _ => None,
                }
            })?;
            if gone {
                return Ok(());
            }
        }
    }

    /// The last console lines that passed, one a line, each indented; empty if there were none.
    pub fn tail(&self) -> String {
        let mut text = String::new();
        for line in &self.tail {
            // Writing to a String does not fail.
            let _ = write!(text, "\n    {line}");
        }
        text
    }

    /// The line with which the kernel panicked, if it did.
    pub fn panic(&self) -> Option<&str> {
        self.panic.as_deref()
    }

    fn remember(&mut self, notice: &Notice) {
        let Notice::Console(line) = notice else {
            return;
        };
        if self.panic.is_none() && is_panic(&line.text) {
            self.panic = Some(line.text.clone());
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line.text.clone());
    }
}

/// Whether a console line is the kernel's last word (`panic()` in kernel/panic.c).
pub fn is_panic(text: &str) -> bool {
    text.contains("Kernel panic - not syncing")
}

#[cfg(test)]
mod tests;
