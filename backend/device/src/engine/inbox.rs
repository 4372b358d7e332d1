//! Where a queue thread learns that a parked request may go on.
//!
//! In: releases, from the timer, from other queue threads, from control. Out: a list, in order,
//! and an eventfd that is readable while the list is not empty.
//! Must not know: why a request was parked.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pipeline::{Nanos, RequestId};
use rustix::event::{EventfdFlags, eventfd};

use crate::clock::Clock;
use crate::lead::Lead;

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
    clock: Clock,
    lead: Arc<Lead>,
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    /// In the order of their release.
    waiting: Vec<Waiting>,
    /// When the first of them was added, until somebody looks.
    since: Option<Nanos>,
    /// When the queue thread took each request that has not completed since.
    taken: HashMap<RequestId, Nanos>,
}

#[derive(Debug)]
struct Waiting {
    id: RequestId,
    release: Release,
    /// At most [`super::LEAD_MAX_NS`] in the future.
    due: Nanos,
}

impl Inbox {
    pub(super) fn new(clock: Clock, lead: Arc<Lead>) -> io::Result<Inbox> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Inbox { event, clock, lead, list: Mutex::default() })
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a release that is to be acted on at `due`, not before. `true`: the list was empty,
    /// [`Inbox::signal`] is to be called, so that a burst costs one system call.
    #[must_use]
    pub(super) fn push(&self, id: RequestId, release: Release, due: Nanos) -> bool {
        let mut list = self.list();
        list.waiting.push(Waiting { id, release, due });
        let first = list.waiting.len() == 1;
        if first {
            list.since = Some(self.clock.now());
        }
        first
    }

    /// Makes the eventfd readable.
    pub(super) fn signal(&self) {
        // A counter that cannot take one more is readable anyway, which is all that counts.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// When the queue thread took that release, which is when it gave the request to storage;
    /// forgotten once asked.
    pub(super) fn handed_over(&self, id: RequestId) -> Option<Nanos> {
        self.list().taken.remove(&id)
    }

    /// Moves what is due into `out`; the caller acts on it at once. Waits actively, for some tens
    /// of microseconds at most, if the first release was sent ahead of its time. The eventfd
    /// stays readable only if something is left.
    pub fn drain(&self, out: &mut Vec<(RequestId, Release)>) {
        // The counter goes first: a push after it signals again, at worst once too often.
        let _ = rustix::io::read(&self.event, &mut [0_u8; 8]);
        let mut list = self.list();
        let Some(due) = list.waiting.first().map(|first| first.due) else {
            return;
        };
        let mut now = self.clock.now();
        if let Some(since) = list.since.take() {
            self.lead.observe(now.since(since));
        }
        if now < due {
            drop(list);
            while now < due {
                std::hint::spin_loop();
                now = self.clock.now();
            }
            list = self.list();
        }
        let List { waiting, taken, .. } = &mut *list;
        let ready = waiting.iter().take_while(|waiting| waiting.due <= now).count();
        for Waiting { id, release, .. } in waiting.drain(..ready) {
            taken.insert(id, now);
            out.push((id, release));
        }
        if !waiting.is_empty() {
            self.signal();
        }
    }

    /// Forgets what was taken and never completed: its front-end is gone.
    pub(super) fn forget(&self) {
        self.list().taken.clear();
    }
}

impl AsFd for Inbox {
    /// Readable while there is something to drain.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
