//! The flush queue: requests come out of the virtqueue, each is an fsync() in a thread of its
//! own, and goes back when it has ended, in whatever order.
//!
//! In: kicks. Out: answers in guest memory, used elements, calls.
//! Must not know: vhost-user messages.
//!
//! A flush may be held for long by whoever serves the file, and must not hold up the next one. So
//! there are as many threads as there were flushes at once, up to [`MOST_THREADS`]; a guest
//! without flushes has none.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::io::{Errno, retry_on_intr};
use thiserror::Error;
use tracing::{debug, warn};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use vm_memory::GuestAddressSpace;

use super::Region;
use super::request::{Answer, BrokenRequest, Request, WORD_BYTES, parse};
use crate::blk::lock;
use crate::config::bit;
use crate::queue::{BadHead, Heads, Memory, Ring, RingFault, Used, Vring};
use crate::request::Chain;
use crate::sandbox::{self, Role};
use crate::segments::Snapshot;

/// Largest size of the virtqueue in descriptors.
pub(super) const QUEUE_SIZE: u16 = 256;

/// Most flushes at once: what the virtqueue of Linux' driver has room for.
const MOST_THREADS: usize = 64;

/// Why the queue is broken.
#[derive(Debug, Error)]
enum QueueFault {
    #[error("cannot access the ring")]
    Ring(#[from] RingFault),
    #[error("request {head} cannot be answered")]
    Request { head: u16, source: BrokenRequest },
    #[error(transparent)]
    Head(#[from] BadHead),
}

/// A flush that waits for a thread, or is in one.
struct Flush {
    head: u16,
    answer: Answer,
}

struct State {
    /// The ring, once it was started.
    ring: Option<Ring>,
    memory: Snapshot,
    busy: Heads,
    waiting: VecDeque<Flush>,
    /// Taken from the ring and not given back.
    in_flight: usize,
    threads: usize,
    /// Threads that wait for something to do.
    idle: usize,
    broken: bool,
    over: bool,
}

struct Shared {
    region: Arc<Region>,
    features: AtomicU64,
    memory: Memory,
    state: Mutex<State>,
    /// Something waits, or it is over.
    work: Condvar,
    /// Nothing is in flight.
    settled: Condvar,
}

/// The queue. Dropping it ends its threads, after what is in flight.
pub(super) struct FlushQueue {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl FlushQueue {
    pub(super) fn new(region: &Arc<Region>, memory: &Memory) -> FlushQueue {
        let state = State {
            ring: None,
            memory: Snapshot::new(memory.memory().into_inner()),
            busy: Heads::new(QUEUE_SIZE),
            waiting: VecDeque::new(),
            in_flight: 0,
            threads: 0,
            idle: 0,
            broken: false,
            over: false,
        };
        FlushQueue {
            shared: Arc::new(Shared {
                region: region.clone(),
                features: AtomicU64::new(0),
                memory: memory.clone(),
                state: Mutex::new(state),
                work: Condvar::new(),
                settled: Condvar::new(),
            }),
            threads: Mutex::new(Vec::new()),
        }
    }

    /// What the driver acknowledged.
    pub(super) fn set_features(&self, features: u64) {
        self.shared.features.store(features, Ordering::Release);
    }

    /// The driver made requests available.
    pub(super) fn run(&self, vring: &Vring) {
        let mut state = lock(&self.shared.state);
        if state.ring.is_none() {
            state.ring = Some(Ring::new(vring.clone()));
        }
        if !state.broken
            && let Err(fault) = self.shared.drain(&mut state)
        {
            state.break_queue(&fault);
        }
        self.hand_out(state);
    }

    /// Sees to it that each waiting flush has a thread.
    fn hand_out(&self, mut state: MutexGuard<'_, State>) {
        let missing = state.waiting.len().saturating_sub(state.idle);
        for _ in 0..missing.min(MOST_THREADS - state.threads) {
            let shared = self.shared.clone();
            let run = move || {
                sandbox::narrow(Role::Flush);
                shared.work();
            };
            match thread::Builder::new().name("rg-flush".into()).spawn(run) {
                Ok(thread) => {
                    state.threads += 1;
                    lock(&self.threads).push(thread);
                }
                Err(error) => {
                    warn!(%error, threads = state.threads, "no thread for a flush: it waits");
                    break;
                }
            }
        }
        if state.threads == 0 {
            // One after the other is better than never.
            drop(self.shared.work_off(state));
        } else if state.idle > 0 {
            self.shared.work.notify_all();
        }
    }

    /// Waits until nothing is in flight. The ring gives nothing more (it was stopped, or the
    /// connection is gone).
    pub(super) fn quiesce(&self) {
        let mut state = lock(&self.shared.state);
        while state.in_flight > 0 {
            state = self.shared.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.busy.clear();
        state.broken = false;
    }
}

impl Drop for FlushQueue {
    fn drop(&mut self) {
        self.quiesce();
        lock(&self.shared.state).over = true;
        self.shared.work.notify_all();
        for thread in lock(&self.threads).drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// What a thread does until the end.
    fn work(&self) {
        let mut state = lock(&self.state);
        loop {
            state = self.work_off(state);
            if state.over {
                return;
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Serves what waits, one after the other.
    fn work_off<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while let Some(Flush { head, answer }) = state.waiting.pop_front() {
            drop(state);
            let synced = retry_on_intr(|| rustix::fs::fsync(&self.region.file));
            state = lock(&self.state);
            self.finish(&mut state, head, answer, synced);
        }
        state
    }

    /// Answers a flush and gives its chain back.
    fn finish(&self, state: &mut State, head: u16, answer: Answer, synced: Result<(), Errno>) {
        if let Err(errno) = synced {
            warn!(%errno, "flush failed");
        }
        self.count(synced.is_ok());
        answer.write(synced.is_ok());
        state.in_flight -= 1;
        self.give_back(state, head);
        if state.in_flight == 0 {
            self.settled.notify_all();
        }
    }

    fn count(&self, ok: bool) {
        let counter = if ok { &self.region.done } else { &self.region.failed };
        counter.fetch_add(1, Ordering::AcqRel);
    }

    fn give_back(&self, state: &mut State, head: u16) {
        self.follow_memory(state);
        state.busy.release(head);
        let State { ring, memory, .. } = state;
        let Some(ring) = ring else { return };
        let published = ring.publish(memory, &[Used { head, len: WORD_BYTES }], None);
        ring.call_driver();
        if let Err(fault) = published {
            state.break_queue(&fault.into());
        }
    }

    /// The ring and new requests follow the newest memory map; those in flight keep theirs.
    fn follow_memory(&self, state: &mut State) {
        let now = self.memory.memory();
        if !state.memory.is_of(&now) {
            state.memory = Snapshot::new(now.into_inner());
        }
    }

    /// Takes requests until the driver has nothing more, and is known to kick when it has.
    fn drain(&self, state: &mut State) -> Result<(), QueueFault> {
        let indirect =
            self.features.load(Ordering::Acquire) & bit(VIRTIO_RING_F_INDIRECT_DESC) != 0;
        let mut heads = Vec::new();
        loop {
            self.follow_memory(state);
            let memory = state.memory.clone();
            let Some(ring) = &mut state.ring else { return Ok(()) };
            ring.unwant_kick(&memory)?;
            ring.take(&memory, &mut heads, usize::from(QUEUE_SIZE))?;
            let Some(table) = ring.table(&memory).filter(|_| !heads.is_empty()) else {
                if ring.want_kick(&memory)? {
                    continue;
                }
                return Ok(());
            };
            for head in heads.drain(..) {
                state.busy.claim(head)?;
                let Request { is_flush, answer } = Chain::walk(&memory, &table, head, indirect)
                    .map_err(BrokenRequest::from)
                    .and_then(parse)
                    .map_err(|source| QueueFault::Request { head, source })?;
                if is_flush {
                    state.in_flight += 1;
                    state.waiting.push_back(Flush { head, answer });
                } else {
                    debug!(head, "a request that is no flush");
                    self.count(false);
                    answer.write(false);
                    self.give_back(state, head);
                }
            }
        }
    }
}

impl State {
    /// The queue is of no use until it is set up anew.
    fn break_queue(&mut self, fault: &QueueFault) {
        if !self.broken {
            let cause = std::error::Error::source(fault).map(ToString::to_string);
            warn!(%fault, cause, "flush queue stopped: the driver broke it");
            self.broken = true;
            if let Some(ring) = &self.ring {
                ring.signal_error();
            }
        }
    }
}
