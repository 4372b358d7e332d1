//! The link disk: how the agent in the guest and the host talk, over an ordinary virtio-blk disk
//! that stores nothing.
//!
//! In: frames that the guest writes, messages for the guest in a [`Mailbox`]. Out: marks and
//! events for the engine, answers to the guest's polls.
//! Must not know: virtqueues, rules, who sends the messages.
//!
//! A write at [`wire::TO_HOST_SECTOR`] is one frame. A read at [`wire::TO_GUEST_SECTOR`] is a
//! poll: it stays pending until there is a message, at most [`wire::POLL_LIMIT_MS`], and is then
//! answered with an empty frame. Several polls are answered in their order. Every other read
//! gives zeroes (the guest's kernel looks for a partition table), every other write fails.

mod mailbox;
mod polls;

pub use mailbox::{Mailbox, MailboxError};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agent::wire::{self, FrameError, ToHost};
use rustix::io::Errno;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::engine::Engine;
use crate::segments::Segments;
use crate::storage::{Channel, Io, IoResult, SECTOR_BYTES, Storage, StorageError, Submitted};

use polls::Polls;

/// The link disk of one guest.
pub struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Arc<Engine>,
    mailbox: Arc<Mailbox>,
    /// Frames that were none.
    malformed: AtomicU64,
}

impl Link {
    /// A link that reports to `engine` and delivers what is put into `mailbox`.
    pub fn new(engine: Arc<Engine>, mailbox: Arc<Mailbox>) -> Link {
        Link { shared: Arc::new(Shared { engine, mailbox, malformed: AtomicU64::new(0) }) }
    }

    /// Frames from the guest that could not be read.
    pub fn malformed(&self) -> u64 {
        self.shared.malformed.load(Ordering::Relaxed)
    }
}

impl Storage for Link {
    fn capacity_sectors(&self) -> u64 {
        wire::LINK_SECTORS
    }

    fn can_discard(&self) -> bool {
        false
    }

    fn channel(&self) -> Result<Box<dyn Channel>, StorageError> {
        let polls =
            Polls::new(&self.shared.mailbox).map_err(|source| StorageError::Link { source })?;
        Ok(Box::new(LinkChannel { shared: Arc::clone(&self.shared), polls, bytes: Vec::new() }))
    }

    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, _offset: u64, _bytes: &[u8]) -> Result<(), Errno> {
        Err(Errno::INVAL)
    }

    fn sync(&self) -> Result<(), Errno> {
        Ok(())
    }
}

/// One queue thread's end of the link.
struct LinkChannel {
    shared: Arc<Shared>,
    polls: Polls,
    /// The frame at hand; kept for its memory.
    bytes: Vec<u8>,
}

impl Channel for LinkChannel {
    fn submit(&mut self, token: u64, io: Io) -> Submitted {
        match io {
            Io::Read { offset, to } if offset == wire::TO_GUEST_SECTOR * SECTOR_BYTES => {
                self.polls.add(token, to);
                Submitted::Pending
            }
            Io::Read { to, .. } => {
                to.zero(0, usize::try_from(to.len()).unwrap_or(usize::MAX));
                Submitted::Done(Ok(()))
            }
            Io::Write { offset, from, .. } if offset == wire::TO_HOST_SECTOR * SECTOR_BYTES => {
                Submitted::Done(self.frame(&from))
            }
            Io::Write { .. } => Submitted::Done(Err(Errno::INVAL)),
            Io::Flush => Submitted::Done(Ok(())),
            Io::Discard { .. } | Io::WriteZeroes { .. } => Submitted::Done(Err(Errno::OPNOTSUPP)),
        }
    }

    fn reap(&mut self, done: &mut dyn FnMut(u64, IoResult)) {
        self.polls.answer(&self.shared.mailbox, done);
    }

    fn completion_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        Some(self.polls.fd())
    }

    fn hurry(&mut self) {
        self.polls.hurry();
    }
}

impl LinkChannel {
    /// Takes in one frame from the guest.
    fn frame(&mut self, from: &Segments) -> IoResult {
        // A longer write cannot be a frame: the header is enough to say so.
        let len = from.len().min(wire::MAX_FRAME as u64) as usize;
        self.bytes.resize(len, 0);
        from.read(0, &mut self.bytes);
        match decode(&self.bytes) {
            Ok(Some((message, value))) => {
                self.shared.take_in(&message, value);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => {
                self.shared.refuse(&error);
                Err(Errno::IO)
            }
        }
    }
}

/// The message of a frame, and the same as it came; `None` for an empty frame.
fn decode(bytes: &[u8]) -> Result<Option<(ToHost, Value)>, FrameError> {
    let frame = wire::decode(bytes)?;
    if frame.payload.is_empty() {
        return Ok(None);
    }
    let message = |source| FrameError::Message { seq: frame.seq, source };
    let value: Value = serde_json::from_slice(frame.payload).map_err(message)?;
    let typed = ToHost::deserialize(&value).map_err(message)?;
    Ok(Some((typed, value)))
}

impl Shared {
    fn take_in(&self, message: &ToHost, value: Value) {
        if matches!(message, ToHost::Hello { .. }) {
            // Another guest, or the same one after a reboot: what waits was meant for the old.
            self.mailbox.clear();
        }
        self.engine.agent_message(value);
        if let ToHost::Mark { name, guest_ns, .. } = message {
            self.engine.agent_mark(name, *guest_ns);
        }
    }

    fn refuse(&self, error: &FrameError) {
        let count = self.malformed.fetch_add(1, Ordering::Relaxed) + 1;
        if count == 1 {
            tracing::warn!(%error, "the guest wrote a malformed frame to the link disk");
        }
        let message =
            json!({ "kind": "malformed_frame", "error": error.to_string(), "count": count });
        self.engine.agent_message(message);
    }
}
