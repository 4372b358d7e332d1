//! Messages that wait for the agent in the guest.
//!
//! In: messages, from rules and from the operator. Out: frames, in the same order.
//! Must not know: disks, polls, what the messages mean.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use agent::wire::{self, MAX_PAYLOAD, ToGuest};
use thiserror::Error;

/// Messages that may wait; a guest that polls takes them at once.
const ROOM: usize = 4096;

/// Why a message was not taken.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MailboxError {
    /// The guest does not read.
    #[error("{ROOM} messages wait for the agent already: is it running? (`racegate ctl events`)")]
    Full,
    /// The message is longer than a frame.
    #[error("the message has {bytes} bytes; a frame of the link disk holds {MAX_PAYLOAD}")]
    TooLong {
        /// Bytes of its JSON.
        bytes: usize,
    },
    /// It has no JSON form.
    #[error("the message has no JSON form")]
    Json(#[source] serde_json::Error),
}

/// A queue of messages for one guest.
#[derive(Debug, Default)]
pub struct Mailbox {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// JSON of each.
    messages: VecDeque<Vec<u8>>,
    /// Number of the next frame.
    seq: u32,
    /// Eventfds of those who poll.
    waiters: Vec<Weak<OwnedFd>>,
}

impl Mailbox {
    /// An empty one.
    pub fn new() -> Arc<Mailbox> {
        Arc::new(Mailbox::default())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message.
    ///
    /// # Errors
    /// Nobody reads, or it does not fit into a frame.
    pub fn send(&self, message: &ToGuest) -> Result<(), MailboxError> {
        let json = serde_json::to_vec(message).map_err(MailboxError::Json)?;
        if json.len() > MAX_PAYLOAD {
            return Err(MailboxError::TooLong { bytes: json.len() });
        }
        let mut inner = self.inner();
        if inner.messages.len() >= ROOM {
            return Err(MailboxError::Full);
        }
        inner.messages.push_back(json);
        inner.waiters.retain(|waiter| {
            let Some(event) = waiter.upgrade() else {
                return false;
            };
            // A counter that cannot take one more is readable anyway.
            let _ = rustix::io::write(&*event, &1_u64.to_ne_bytes());
            true
        });
        Ok(())
    }

    /// Tells the agent that something happened at the host.
    pub fn signal(&self, name: &str) {
        if let Err(error) = self.send(&ToGuest::Signal { name: name.to_owned() }) {
            tracing::warn!(%error, name, "a signal for the agent was dropped");
        }
    }

    /// Forgets what waits.
    pub fn clear(&self) {
        self.inner().messages.clear();
    }

    /// `event` is signalled for each message from now on, as long as somebody holds it.
    pub(super) fn wake(&self, event: &Arc<OwnedFd>) {
        let mut inner = self.inner();
        // Those of connections that are over go now: there may never be a message to notice.
        inner.waiters.retain(|waiter| waiter.strong_count() > 0);
        inner.waiters.push(Arc::downgrade(event));
    }

    /// Puts the frame of the next message into `frame`, unless it is longer than `room` bytes.
    pub(super) fn next(&self, room: u64, frame: &mut Vec<u8>) -> Next {
        let mut inner = self.inner();
        let Some(message) = inner.messages.front() else {
            return Next::Nothing;
        };
        if wire::encode(inner.seq, message, frame).is_err() || frame.len() as u64 > room {
            return Next::NoRoom;
        }
        inner.seq = inner.seq.wrapping_add(1);
        inner.messages.pop_front();
        Next::Frame
    }

    /// Puts an empty frame into `frame`.
    pub(super) fn empty(&self, frame: &mut Vec<u8>) {
        let mut inner = self.inner();
        wire::encode_empty(inner.seq, frame);
        inner.seq = inner.seq.wrapping_add(1);
    }
}

/// What there is for a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// No message.
    Nothing,
    /// A message that the poll has no room for; it stays.
    NoRoom,
    /// A frame.
    Frame,
}
