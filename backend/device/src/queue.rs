//! A virtqueue as a worker sees it: heads come out, used elements go in, the driver is told.
//!
//! In: what vhost-user set up (addresses, indices, eventfds), guest memory. Out: batches of head
//! indices; used-ring entries; one notification per batch where the driver wants one.
//! Must not know: what a chain means.
//!
//! Wraps the ring of vhost-user-backend, whose kick handling ends the thread when a kick
//! vanishes between epoll and read, and which keeps no way to signal the error eventfd.

use std::fs::File;
use std::io::{self, Write};
use std::num::Wrapping;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use thiserror::Error;
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as VirtqueueError, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

use crate::inflight::Tracker;
use crate::segments::Snapshot;

/// Guest memory that the front-end may change at any time.
pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// The driver (or the front-end) broke a queue: it is left alone until it is set up anew.
#[derive(Debug, Error)]
#[error("the ring is unusable")]
pub(crate) struct RingFault(#[from] VirtqueueError);

/// A chain that is done: its head, and how many bytes the device wrote into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub head: u16,
    pub len: u32,
}

/// Which heads are in flight: a driver may not make one available twice.
#[derive(Debug)]
pub(crate) struct Heads(Vec<u64>);

/// A head that cannot be taken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum BadHead {
    #[error("head {0} is available twice")]
    Twice(u16),
    #[error("head {0} is outside the descriptor table")]
    Outside(u16),
}

impl Heads {
    /// None in flight, in a queue of at most `queue_size` descriptors.
    pub(crate) fn new(queue_size: u16) -> Heads {
        Heads(vec![0; usize::from(queue_size).div_ceil(64)])
    }

    pub(crate) fn claim(&mut self, head: u16) -> Result<(), BadHead> {
        let word = self.0.get_mut(usize::from(head / 64)).ok_or(BadHead::Outside(head))?;
        let bit = 1 << (head % 64);
        if *word & bit != 0 {
            return Err(BadHead::Twice(head));
        }
        *word |= bit;
        Ok(())
    }

    pub(crate) fn release(&mut self, head: u16) {
        if let Some(word) = self.0.get_mut(usize::from(head / 64)) {
            *word &= !(1 << (head % 64));
        }
    }

    pub(crate) fn clear(&mut self) {
        self.0.fill(0);
    }
}

/// Where the descriptors of a batch are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableAt {
    pub addr: GuestAddress,
    pub len: u16,
}

/// A ring that is set up and enabled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    /// What the used ring's index says.
    pub used_idx: u16,
    /// Descriptors.
    pub size: u16,
}

/// One virtqueue, shared by the protocol thread (which sets it up) and its worker.
#[derive(Clone)]
pub(crate) struct Vring {
    ring: VringMutex<Memory>,
    /// A worker has taken over the ring's indices.
    begun: Arc<AtomicBool>,
    err: Arc<Mutex<Option<File>>>,
}

impl Vring {
    /// The ring, once it may be served.
    pub(crate) fn running(&self, memory: &Snapshot) -> Result<Option<Running>, RingFault> {
        let state = self.ring.get_ref();
        let queue = state.get_queue();
        if !state.is_enabled() || !queue.ready() {
            return Ok(None);
        }
        let used_idx = queue.used_idx(memory.memory(), Ordering::Acquire)?.0;
        Ok(Some(Running { used_idx, size: queue.size() }))
    }

    /// Goes on in the used ring where that ring ends, and in the avail ring at `next_avail`
    /// (where the front-end said without one).
    pub(crate) fn begin_at(&self, used_idx: u16, next_avail: Option<u16>) {
        let mut state = self.ring.get_mut();
        self.begun.store(true, Ordering::Release);
        let queue = state.get_queue_mut();
        queue.set_next_used(used_idx);
        if let Some(next_avail) = next_avail {
            queue.set_next_avail(next_avail);
        }
    }

    /// Where the descriptors are.
    pub(crate) fn table(&self) -> TableAt {
        let state = self.ring.get_ref();
        let queue = state.get_queue();
        TableAt { addr: GuestAddress(queue.desc_table()), len: queue.size() }
    }

    /// Where the used ring is, and how many bytes it has.
    pub(crate) fn used_ring(&self) -> (u64, u64) {
        let state = self.ring.get_ref();
        let queue = state.get_queue();
        // flags, idx, elements, avail_event.
        (queue.used_ring(), 6 + 8 * u64::from(queue.size()))
    }

    /// Where the next used element goes.
    pub(crate) fn next_used(&self) -> u16 {
        self.ring.get_ref().get_queue().next_used()
    }

    /// Calls the driver, whatever it wants: one that was to be called may never have been.
    pub(crate) fn call(&self) {
        let _ = self.ring.signal_used_queue();
    }

    /// Moves up to `most` available heads to `heads`. Nothing while the queue is stopped or
    /// disabled.
    pub(crate) fn take(
        &self,
        memory: &Snapshot,
        heads: &mut Vec<u16>,
        most: usize,
    ) -> Result<TableAt, RingFault> {
        let mut state = self.ring.get_mut();
        let enabled = state.is_enabled();
        let queue = state.get_queue_mut();
        let table = TableAt { addr: GuestAddress(queue.desc_table()), len: queue.size() };
        if !enabled || !queue.ready() {
            return Ok(table);
        }
        let idx = queue.avail_idx(memory.memory(), Ordering::Acquire)?;
        let mut left = usize::from((idx - Wrapping(queue.next_avail())).0).min(most);
        if left == 0 {
            return Ok(table);
        }
        // Fails when more is available than the queue is long.
        let mut chains = queue.iter(memory.memory())?;
        while left > 0 {
            let chain = chains.next().ok_or(VirtqueueError::InvalidAvailRingIndex)?;
            heads.push(chain.head_index());
            left -= 1;
        }
        Ok(table)
    }

    /// Asks the driver not to kick while we look at the ring anyway.
    pub(crate) fn quiet_driver(&self, memory: &Snapshot) -> Result<(), RingFault> {
        let mut state = self.ring.get_mut();
        let queue = state.get_queue_mut();
        if queue.ready() {
            queue.disable_notification(memory.memory())?;
        }
        Ok(())
    }

    /// Asks the driver to kick from now on. True if something became available before it could
    /// know: then no kick may come, and the ring has to be looked at again.
    pub(crate) fn wake_me(&self, memory: &Snapshot) -> Result<bool, RingFault> {
        let mut state = self.ring.get_mut();
        let enabled = state.is_enabled();
        let queue = state.get_queue_mut();
        if !queue.ready() {
            return Ok(false);
        }
        Ok(queue.enable_notification(memory.memory())? && enabled)
    }

    /// Returns chains to the driver, in this order, and calls it once if it wants to be. The
    /// tracker hears of each before and after: the ring's index moves with every element.
    pub(crate) fn publish(
        &self,
        memory: &Snapshot,
        used: &[Used],
        tracker: Option<&Tracker>,
    ) -> Result<(), RingFault> {
        let mut state = self.ring.get_mut();
        let queue = state.get_queue_mut();
        for used in used {
            let head = std::iter::once(used.head);
            if let Some(tracker) = tracker {
                tracker.returning(head.clone());
            }
            queue.add_used(memory.memory(), used.head, used.len)?;
            if let Some(tracker) = tracker {
                tracker.returned(head, queue.next_used());
            }
        }
        if queue.needs_notification(memory.memory())? {
            // A front-end that closed its end has no one to call.
            let _ = state.signal_used_queue();
        }
        Ok(())
    }

    /// Tells the front-end that the queue is broken, if it gave an eventfd for that
    /// (VHOST_USER_SET_VRING_ERR).
    pub(crate) fn signal_error(&self) {
        let mut err = self.err.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = err.as_mut() {
            let _ = file.write_all(&1_u64.to_ne_bytes());
        }
    }
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = <VringMutex<Memory> as VringStateGuard<'a, Memory>>::G;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = <VringMutex<Memory> as VringStateMutGuard<'a, Memory>>::G;
}

impl VringT<Memory> for Vring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Vring, VirtqueueError> {
        let ring = VringMutex::new(memory, max_queue_size)?;
        Ok(Vring { ring, begun: Arc::default(), err: Arc::new(Mutex::new(None)) })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.ring.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.ring.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), VirtqueueError> {
        self.ring.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.ring.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, VirtqueueError> {
        self.ring.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), VirtqueueError> {
        self.ring.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, VirtqueueError> {
        self.ring.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.ring.set_enabled(enabled);
    }

    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), VirtqueueError> {
        self.ring.set_queue_info(desc, avail, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.ring.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.ring.set_queue_next_avail(base);
    }

    /// The library reads the used ring's index whenever it gets addresses, also again, while
    /// the ring runs: a migration begins so. By now the worker may be further.
    fn set_queue_next_used(&self, idx: u16) {
        if !self.begun.load(Ordering::Acquire) {
            self.ring.set_queue_next_used(idx);
        }
    }

    fn queue_used_idx(&self) -> Result<u16, VirtqueueError> {
        self.ring.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        self.ring.set_queue_size(num);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.ring.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        if !ready {
            self.begun.store(false, Ordering::Release);
        }
        self.ring.set_queue_ready(ready);
    }

    /// The kick must not block: another may have taken its count.
    fn set_kick(&self, file: Option<File>) {
        if let Some(file) = &file
            && let Ok(flags) = fcntl_getfl(file)
        {
            let _ = fcntl_setfl(file, flags | OFlags::NONBLOCK);
        }
        self.ring.set_kick(file);
    }

    /// Whether to go on; a kick that is gone already is as good as one that was there.
    fn read_kick(&self) -> io::Result<bool> {
        match self.ring.read_kick() {
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                Ok(self.ring.get_ref().is_enabled())
            }
            other => other,
        }
    }

    fn set_call(&self, file: Option<File>) {
        self.ring.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        *self.err.lock().unwrap_or_else(PoisonError::into_inner) = file;
    }
}
