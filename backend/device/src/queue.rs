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
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use thiserror::Error;
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as VirtqueueError, Queue, QueueT};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::inflight::Tracker;
use crate::request::Table;
use crate::segments::Snapshot;

mod split;

use split::{BadRing, Place, Split};

/// Guest memory that the front-end may change at any time.
pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// The driver (or the front-end) broke a queue: it is left alone until it is set up anew.
#[derive(Debug, Error)]
#[error("the ring is unusable")]
pub(crate) struct RingFault(#[from] BadRing);

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

/// A ring that is set up and enabled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    /// What the used ring's index says.
    pub used_idx: u16,
    /// Descriptors.
    pub size: u16,
}

/// One virtqueue as the protocol thread sets it up; its worker sees it through a [`Ring`].
#[derive(Clone)]
pub(crate) struct Vring {
    ring: VringMutex<Memory>,
    /// A worker has taken over the ring's indices.
    begun: Arc<AtomicBool>,
    err: Arc<Mutex<Option<File>>>,
    /// Counts what the protocol thread does to the ring: what was looked up before is stale.
    changes: Arc<AtomicU64>,
}

/// The worker's side of a virtqueue: three places where heads come in, used elements go out, and
/// a batch of them becomes visible.
///
/// The indices stay with the [`Vring`], whose lock is taken once for a batch; the bytes of the
/// ring are reached without it.
pub(crate) struct Ring {
    vring: Vring,
    split: Option<Split>,
    /// [`Vring::changes`] when `split` was made.
    as_of: u64,
    /// Where the next head will be; `None` while the ring gives none.
    next: Option<u16>,
    /// Chains that were returned since the driver was last thought to want a call.
    uncalled: usize,
}

impl Ring {
    pub(crate) fn new(vring: Vring) -> Ring {
        Ring { vring, split: None, as_of: 0, next: None, uncalled: 0 }
    }

    /// Whether a head seems to be available; takes no lock.
    pub(crate) fn has_more(&self) -> bool {
        let split = self.split.as_ref();
        split.zip(self.next).is_some_and(|(split, next)| split.has_more(next))
    }

    /// Heads that seem to be available; takes no lock.
    pub(crate) fn available(&self) -> usize {
        let split = self.split.as_ref();
        split.zip(self.next).map_or(0, |(split, next)| usize::from(split.available(next)))
    }

    /// Whether the ring is as it was when heads were last taken.
    pub(crate) fn is_current(&self) -> bool {
        self.vring.changes.load(Ordering::Acquire) == self.as_of
    }

    /// Kicks as the driver would: the worker is run again after its other events.
    pub(crate) fn wake_self(&self) {
        let state = self.vring.ring.get_ref();
        if let Some(kick) = state.get_kick() {
            // SAFETY: the consumer owns the descriptor, and lives as long as `state` is locked.
            let kick = unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) };
            // A counter that is full is readable, which is all that counts.
            let _ = rustix::io::write(kick, &1_u64.to_ne_bytes());
        }
    }

    /// The ring as it is set up now, in that memory.
    fn current<'a>(
        split: &'a mut Option<Split>,
        as_of: &mut u64,
        vring: &Vring,
        queue: &Queue,
        memory: &Snapshot,
    ) -> Result<&'a mut Split, RingFault> {
        let changes = vring.changes.load(Ordering::Acquire);
        let fresh = split
            .as_ref()
            .is_some_and(|split| changes == *as_of && split.memory().is_of(memory.memory()));
        if !fresh {
            let place = Place {
                desc: queue.desc_table(),
                avail: queue.avail_ring(),
                used: queue.used_ring(),
                size: queue.size(),
                event_idx: queue.event_idx_enabled(),
            };
            *split = None;
            *as_of = changes;
            return Ok(split.insert(Split::new(memory, place)?));
        }
        match split {
            Some(split) => Ok(split),
            None => Err(RingFault(BadRing::Size(0))),
        }
    }

    /// The ring, once it may be served.
    pub(crate) fn running(&mut self, memory: &Snapshot) -> Result<Option<Running>, RingFault> {
        let state = self.vring.ring.get_ref();
        let queue = state.get_queue();
        if !state.is_enabled() || !queue.ready() {
            return Ok(None);
        }
        let split = Self::current(&mut self.split, &mut self.as_of, &self.vring, queue, memory)?;
        Ok(Some(Running { used_idx: split.used_idx(), size: queue.size() }))
    }

    /// Goes on in the used ring where that ring ends, and in the avail ring at `next_avail`
    /// (where the front-end said without one).
    pub(crate) fn begin_at(&self, used_idx: u16, next_avail: Option<u16>) {
        let mut state = self.vring.ring.get_mut();
        self.vring.begun.store(true, Ordering::Release);
        let queue = state.get_queue_mut();
        queue.set_next_used(used_idx);
        if let Some(next_avail) = next_avail {
            queue.set_next_avail(next_avail);
        }
        // When the driver was last called is not known.
        self.vring.changed();
    }

    /// Where the used ring is, and how many bytes it has.
    pub(crate) fn used_ring(&self) -> (u64, u64) {
        let state = self.vring.ring.get_ref();
        let queue = state.get_queue();
        // flags, idx, elements, avail_event.
        (queue.used_ring(), 6 + 8 * u64::from(queue.size()))
    }

    /// Where the next used element goes.
    pub(crate) fn next_used(&self) -> u16 {
        self.vring.ring.get_ref().get_queue().next_used()
    }

    /// Calls the driver, whatever it wants: one that was to be called may never have been.
    pub(crate) fn call(&self) {
        let _ = self.vring.ring.signal_used_queue();
    }

    /// Moves up to `most` available heads to `heads`. Nothing while the queue is stopped or
    /// disabled.
    pub(crate) fn take(
        &mut self,
        memory: &Snapshot,
        heads: &mut Vec<u16>,
        most: usize,
    ) -> Result<(), RingFault> {
        let mut state = self.vring.ring.get_mut();
        self.next = None;
        if !state.is_enabled() || !state.get_queue().ready() {
            return Ok(());
        }
        let queue = state.get_queue_mut();
        let split = Self::current(&mut self.split, &mut self.as_of, &self.vring, queue, memory)?;
        let next = split.take(queue.next_avail(), heads, most)?;
        queue.set_next_avail(next);
        self.next = Some(next);
        Ok(())
    }

    /// The descriptor table of what was taken last from that memory.
    pub(crate) fn table<'a>(&self, memory: &'a Snapshot) -> Option<Table<'a>> {
        self.split.as_ref().and_then(|split| split.table(memory))
    }

    /// The descriptor table as it is set up now.
    pub(crate) fn table_now<'a>(&mut self, memory: &'a Snapshot) -> Option<Table<'a>> {
        let state = self.vring.ring.get_ref();
        let queue = state.get_queue();
        Self::current(&mut self.split, &mut self.as_of, &self.vring, queue, memory)
            .ok()
            .and_then(|split| split.table(memory))
    }

    /// Asks the driver not to kick while we look at the ring anyway. A daemon that dies meanwhile
    /// leaves it so; the next one needs no kick, since vhost-user-backend runs the worker of every
    /// ring that is enabled.
    pub(crate) fn unwant_kick(&mut self, memory: &Snapshot) -> Result<(), RingFault> {
        let mut state = self.vring.ring.get_mut();
        let queue = state.get_queue_mut();
        if queue.ready() {
            let next = queue.next_avail();
            Self::current(&mut self.split, &mut self.as_of, &self.vring, queue, memory)?
                .unwant_kick(next);
        }
        Ok(())
    }

    /// Asks the driver to kick from now on. True if something became available before it could
    /// know: then no kick may come, and the ring has to be looked at again.
    pub(crate) fn want_kick(&mut self, memory: &Snapshot) -> Result<bool, RingFault> {
        let mut state = self.vring.ring.get_mut();
        let enabled = state.is_enabled();
        let queue = state.get_queue_mut();
        if !queue.ready() {
            return Ok(false);
        }
        let split = Self::current(&mut self.split, &mut self.as_of, &self.vring, queue, memory)?;
        Ok(split.want_kick(queue.next_avail()) && enabled)
    }

    /// Returns chains to the driver, in this order, all at once; a driver that looks sees them.
    /// [`Ring::call_driver`] has to follow. The tracker hears of them before and after.
    pub(crate) fn publish(
        &mut self,
        memory: &Snapshot,
        used: &[Used],
        tracker: Option<&Tracker>,
    ) -> Result<(), RingFault> {
        let mut state = self.vring.ring.get_mut();
        let queue = state.get_queue_mut();
        let split = Self::current(&mut self.split, &mut self.as_of, &self.vring, queue, memory)?;
        let heads = used.iter().map(|used| used.head);
        if let Some(tracker) = tracker {
            tracker.returning(heads.clone());
        }
        let idx = split.put(queue.next_used(), used)?;
        queue.set_next_used(idx);
        if let Some(tracker) = tracker {
            tracker.returned(heads, idx);
        }
        self.uncalled += used.len();
        Ok(())
    }

    /// Chains that were returned since the driver was last thought about.
    pub(crate) fn uncalled(&self) -> usize {
        self.uncalled
    }

    /// Calls the driver, if it wants to be called for one of the chains that were returned since
    /// this was last thought about.
    pub(crate) fn call_driver(&mut self) {
        self.uncalled = 0;
        let state = self.vring.ring.get_ref();
        let idx = state.get_queue().next_used();
        if self.split.as_mut().is_none_or(|split| split.wants_call(idx)) {
            // A front-end that closed its end has no one to call.
            let _ = state.signal_used_queue();
        }
    }

    /// Tells the front-end that the queue is broken.
    pub(crate) fn signal_error(&self) {
        self.vring.signal_error();
    }
}

impl Vring {
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
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
        Ok(Vring { ring, begun: Arc::default(), err: Arc::default(), changes: Arc::default() })
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
        self.changed();
    }

    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), VirtqueueError> {
        let set = self.ring.set_queue_info(desc, avail, used);
        self.changed();
        set
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
            self.changed();
        }
    }

    fn queue_used_idx(&self) -> Result<u16, VirtqueueError> {
        self.ring.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        self.ring.set_queue_size(num);
        self.changed();
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.ring.set_queue_event_idx(enabled);
        self.changed();
    }

    fn set_queue_ready(&self, ready: bool) {
        if !ready {
            self.begun.store(false, Ordering::Release);
        }
        self.ring.set_queue_ready(ready);
        self.changed();
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
