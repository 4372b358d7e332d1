//! The engine of one device: what every queue thread shares to classify requests and to decide
//! what happens to them.
//!
//! In: requests as they arrive and complete, control commands, marks of the agent, time.
//! Out: a [`Disposition`] for each request, later releases through the [`Inbox`] of its queue,
//! events for the sinks.
//! Must not know: virtqueues, guest memory, how storage works.
//!
//! A queue thread asks [`Engine::interest`] first. With nothing loaded the answer costs one
//! relaxed load and is [`Interest::None`]: the request goes to storage as if there were no engine.

mod inbox;

pub use inbox::{Inbox, Release};

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pipeline::{Op, Outcome, RequestId};

/// How much the engine wants to know of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Nothing: give it straight to storage; neither [`Engine::arrive`] nor
    /// [`Engine::complete`] is called for it.
    None,
    /// Call [`Engine::arrive`] and [`Engine::complete`], without data.
    Event,
    /// Writes only. Copy the data to a private buffer first (the guest may change its own while
    /// we look), pass that buffer to [`Engine::arrive`] and [`Engine::complete`], and store from
    /// it.
    EventWithBytes,
}

/// A request as a queue thread hands it over.
#[derive(Clone, Copy, Debug)]
pub struct ArrivingRequest {
    /// From [`Engine::next_id`].
    pub id: RequestId,
    /// Virtqueue index.
    pub queue: u16,
    /// Head descriptor index in the avail ring.
    pub head: u16,
    /// What it does.
    pub op: Op,
    /// First 512-byte sector; 0 for a flush.
    pub sector: u64,
    /// Length in 512-byte sectors; 0 for a flush.
    pub sectors: u64,
}

/// What to do with a request now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Hand it to storage.
    Submit,
    /// Keep it; the [`Inbox`] of its queue will name it.
    Park,
    /// Complete it with this errno without touching storage (then call [`Engine::complete`]
    /// too).
    Fail {
        /// From the rule.
        errno: i32,
    },
}

/// Shared by all queue threads of one device.
pub struct Engine {
    next_id: AtomicU64,
    inboxes: Vec<Arc<Inbox>>,
}

impl Engine {
    /// An engine for a device with `queues` virtqueues.
    ///
    /// # Errors
    /// When the system gives no eventfd.
    pub fn new(queues: u16) -> io::Result<Arc<Engine>> {
        let inboxes = (0..queues)
            .map(|_| Inbox::new().map(Arc::new))
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Arc::new(Engine {
            next_id: AtomicU64::new(0),
            inboxes,
        }))
    }

    /// A number for a request that is about to be handed over, never given twice.
    pub fn next_id(&self) -> RequestId {
        RequestId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// How much the engine wants to know of such a request. Takes no lock.
    pub fn interest(&self, _op: Op, _sector: u64, _sectors: u64) -> Interest {
        Interest::None
    }

    /// A request was taken from a queue. `bytes` is the data of a write for which
    /// [`Engine::interest`] said [`Interest::EventWithBytes`].
    pub fn arrive(&self, _request: &ArrivingRequest, _bytes: Option<&[u8]>) -> Disposition {
        Disposition::Submit
    }

    /// A request that was handed over ended, and is about to be completed to the guest: call it
    /// *before* the used ring is written, so that what the guest does next sees the new layout.
    pub fn complete(
        &self,
        _id: RequestId,
        _outcome: Outcome,
        _op: Op,
        _sector: u64,
        _sectors: u64,
        _bytes: Option<&[u8]>,
    ) {
    }

    /// Where releases of parked requests of that queue arrive; `None` past the last queue.
    pub fn inbox(&self, queue: u16) -> Option<Arc<Inbox>> {
        self.inboxes.get(usize::from(queue)).cloned()
    }

    /// The front-end went away or reset the device: every parked request is released through
    /// its inbox.
    pub fn disconnect(&self) {}
}
