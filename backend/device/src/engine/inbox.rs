//! Where a queue thread learns that a parked request may go on.
//!
//! In: releases, from the timer, from other queue threads, from control. Out: a list, in order,
//! and an eventfd that is readable while the list is not empty.
//! Must not know: why a request was parked.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use pipeline::RequestId;
use rustix::event::{EventfdFlags, eventfd};

/// How a parked request goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Hand it to storage now.
    Submit,
    /// Complete it with this errno without touching storage.
    Fail {
        /// From the rule.
        errno: i32,
    },
}

/// Releases for the parked requests of one queue.
///
/// An entry may name a request that its queue thread no longer knows (the guest reset the queue
/// in between): it is to be ignored.
#[derive(Debug)]
pub struct Inbox {
    event: OwnedFd,
    list: Mutex<Vec<(RequestId, Release)>>,
}

impl Inbox {
    pub(super) fn new() -> io::Result<Inbox> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Inbox {
            event,
            list: Mutex::new(Vec::new()),
        })
    }

    /// Adds a release; signals only when the list was empty, so a burst costs one system call.
    pub(super) fn push(&self, id: RequestId, release: Release) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = list.is_empty();
        list.push((id, release));
        drop(list);
        if was_empty {
            // A counter that cannot take one more is readable anyway, which is all that counts.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// Moves everything into `out`, which must be empty (it is swapped in, so that neither side
    /// allocates once warm), and makes the eventfd unreadable.
    pub fn drain(&self, out: &mut Vec<(RequestId, Release)>) {
        // The counter goes first: a push after it signals again, at worst once too often.
        let _ = rustix::io::read(&self.event, &mut [0_u8; 8]);
        std::mem::swap(
            &mut *self.list.lock().unwrap_or_else(PoisonError::into_inner),
            out,
        );
    }
}

impl AsFd for Inbox {
    /// Readable while there is something to drain.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
