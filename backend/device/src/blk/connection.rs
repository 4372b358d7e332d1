//! One front-end's connection: the vhost-user back-end that the library calls, and the workers
//! that live as long as it does.
//!
//! In: negotiated features, memory, rings, configuration writes. Out: workers that run, stop and
//! are left with nothing in flight.
//! Must not know: requests, chains.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tracing::{debug, warn};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

use super::device_state::Transfer;
use super::{DeviceOptions, Orders, SERIAL_BYTES, ServeError, intercept, lock};
use crate::config::{Modes, WRITEBACK_OFFSET, config_space, features, is_writeback};
use crate::counters::Counters;
use crate::dirty_log::DirtyLog;
use crate::engine::Engine;
use crate::front_end::{BackEnd, ExitEvents, Fate, Message, converse, send_config_change};
use crate::inflight::Area;
use crate::queue::{Memory, Vring};
use crate::sandbox::{self, Role};
use crate::storage::Storage;
use crate::worker::{Negotiated, Surroundings, Wake, Worker};

/// Events of a worker beyond the kick (0) and the library's own (the number of queues).
const fn completion_event(num_queues: u16) -> u16 {
    num_queues + 1
}

const fn inbox_event(num_queues: u16) -> u16 {
    num_queues + 2
}

thread_local! {
    /// The library starts queue threads: their first event is when we can tell them their role.
    static NARROWED: Cell<bool> = const { Cell::new(false) };
}

/// What the library calls.
pub(super) struct Connection {
    pub(super) num_queues: u16,
    queue_size: u16,
    spare_fuse: bool,
    storage: Arc<dyn Storage>,
    orders: Arc<Orders>,
    negotiated: Arc<Negotiated>,
    /// The `writeback` byte of the configuration space, as the guest would have it.
    writeback: AtomicBool,
    memory: Memory,
    /// Protocol features that the front-end acknowledged.
    pub(super) protocol_acked: AtomicU64,
    pub(super) inflight: Arc<Mutex<Option<Arc<Area>>>>,
    pub(super) dirty_log: Arc<Mutex<Option<Arc<DirtyLog>>>>,
    workers: Vec<Mutex<Worker>>,
    back_channel: Mutex<Option<UnixStream>>,
    transfer: Mutex<Option<Transfer>>,
    exit_events: ExitEvents,
}

impl Connection {
    pub(super) fn new(
        options: &DeviceOptions,
        storage: &Arc<dyn Storage>,
        engine: Option<&Arc<Engine>>,
        orders: &Arc<Orders>,
        counters: &Arc<Counters>,
    ) -> Result<Arc<Connection>, ServeError> {
        let mut serial = [0; SERIAL_BYTES];
        let len = options.serial.len().min(SERIAL_BYTES);
        serial[..len].copy_from_slice(&options.serial.as_bytes()[..len]);
        let negotiated = Arc::new(Negotiated::default());
        // Until a driver says that it can flush, it cannot.
        negotiated.set_write_through(true);
        // Fixed for the connection: its guest knows the disk as this or that.
        negotiated.set_read_only(storage.read_only() || orders.read_only.load(Ordering::Acquire));
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let around = Surroundings {
            storage: storage.clone(),
            engine: engine.cloned(),
            counters: counters.clone(),
            negotiated: negotiated.clone(),
            memory: memory.clone(),
            inflight: Arc::default(),
            dirty_log: Arc::default(),
            polling: options.polling,
            serial,
        };
        let (inflight, dirty_log) = (around.inflight.clone(), around.dirty_log.clone());
        let workers = (0..options.num_queues)
            .map(|queue| Worker::new(queue, options.queue_size, around.clone()).map(Mutex::new))
            .collect::<Result<_, _>>()
            .map_err(ServeError::Channel)?;
        Ok(Arc::new(Connection {
            num_queues: options.num_queues,
            queue_size: options.queue_size,
            spare_fuse: options.spare_fuse,
            storage: storage.clone(),
            orders: orders.clone(),
            negotiated,
            writeback: AtomicBool::new(true),
            memory,
            protocol_acked: AtomicU64::new(0),
            inflight,
            dirty_log,
            workers,
            back_channel: Mutex::new(None),
            transfer: Mutex::new(None),
            exit_events: ExitEvents::default(),
        }))
    }

    /// Speaks with the front-end until it hangs up or `shutdown` is readable; the queue threads
    /// have ended on return.
    pub(super) fn serve(
        self: &Arc<Connection>,
        front_end: &UnixStream,
        shutdown: BorrowedFd<'_>,
    ) -> Result<(), ServeError> {
        converse(self, &self.memory, front_end, shutdown)
    }

    /// Waits until no queue has anything in flight.
    pub(super) fn quiesce(&self) {
        for worker in &self.workers {
            lock(worker).quiesce();
        }
    }

    /// The configuration space is not what it was.
    pub(super) fn config_changed(&self) {
        let Some(channel) = &*lock(&self.back_channel) else {
            debug!(
                "the front-end opened no back-end channel: the guest learns of the change later"
            );
            return;
        };
        if let Err(error) = send_config_change(channel) {
            warn!(%error, "cannot tell the front-end of the new configuration");
        }
    }

    /// What the guest had chosen when an earlier daemon died.
    pub(super) fn restore_writeback(&self, writeback: bool) {
        self.writeback.store(writeback, Ordering::Release);
        self.decide_write_through();
    }

    /// The guest chooses, and the choice outlives us.
    fn choose_writeback(&self, writeback: bool) {
        self.restore_writeback(writeback);
        if let Some(area) = &*lock(&self.inflight) {
            area.keep_writeback(writeback);
        }
    }

    /// The operator allows another mode of the write cache.
    pub(super) fn cache_changed(&self) {
        self.decide_write_through();
        self.config_changed();
    }

    /// The `writeback` byte: what the guest wants, if the operator allows it.
    fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Acquire) && !self.orders.write_through.load(Ordering::Acquire)
    }

    fn decide_write_through(&self) {
        let acked = self.negotiated.features.load(Ordering::Acquire);
        let forced = self.orders.write_through.load(Ordering::Acquire);
        let writeback = !forced && is_writeback(acked, self.writeback());
        self.negotiated.set_write_through(!writeback);
    }
}

impl BackEnd for Connection {
    fn intercept(&self, message: &Message<'_>, fds: &mut Vec<OwnedFd>) -> io::Result<Fate> {
        intercept::intercept(self, message, fds)
    }

    fn exit_events(&self) -> &ExitEvents {
        &self.exit_events
    }

    fn back_channel(&self, channel: UnixStream) {
        *lock(&self.back_channel) = Some(channel);
    }

    fn spare_fuse(&self) -> bool {
        self.spare_fuse
    }

    fn register_events<B: BackEnd + 'static>(
        &self,
        daemon: &VhostUserDaemon<Arc<B>>,
    ) -> io::Result<()> {
        for (handler, worker) in daemon.get_epoll_handlers().iter().zip(&self.workers) {
            let worker = lock(worker);
            let register = |fd: BorrowedFd<'_>, event: u16| {
                handler.register_listener(fd.as_raw_fd(), EventSet::IN, u64::from(event))
            };
            if let Some(fd) = worker.channel().completion_fd() {
                register(fd, completion_event(self.num_queues))?;
            }
            if let Some(inbox) = worker.inbox() {
                register(inbox.as_fd(), inbox_event(self.num_queues))?;
            }
        }
        Ok(())
    }
}

impl VhostUserBackend for Connection {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        usize::from(self.num_queues)
    }

    fn max_queue_size(&self) -> usize {
        usize::from(self.queue_size)
    }

    fn features(&self) -> u64 {
        features(&*self.storage, self.negotiated.read_only())
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
            | VhostUserVirtioFeatures::LOG_ALL.bits()
    }

    fn acked_features(&self, features: u64) {
        self.negotiated.features.store(features, Ordering::Release);
        self.decide_write_through();
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::DEVICE_STATE
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The ring knows.
    }

    /// Exactly `size` bytes: front-ends differ in how much of the space they know (QEMU 57 or
    /// 60 bytes, cloud-hypervisor 60, or 1 to 4 at a time), and give up on less. What lies
    /// behind reads as 0: features that are not offered.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let modes = Modes { read_only: self.negotiated.read_only(), writeback: self.writeback() };
        let space = config_space(&*self.storage, self.num_queues, self.queue_size, modes);
        let mut bytes = vec![0; size as usize];
        if let Some(rest) = space.get(offset as usize..) {
            let n = rest.len().min(bytes.len());
            bytes[..n].copy_from_slice(&rest[..n]);
        }
        bytes
    }

    /// Only the byte that turns the write cache on and off is the driver's to write. Anything
    /// else is ignored, as a write to a read-only register is: an error would make the library
    /// hang up on the front-end, which only passes on what its guest does.
    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        let (WRITEBACK_OFFSET, [writeback]) = (offset, bytes) else {
            debug!(offset, len = bytes.len(), "write to read-only configuration ignored");
            return Ok(());
        };
        self.choose_writeback(*writeback != 0);
        // From now on everything that completed is durable: also what was cached before.
        if *writeback == 0
            && let Err(errno) = self.storage.sync()
        {
            warn!(%errno, "cannot flush what was cached before the write cache was turned off");
        }
        Ok(())
    }

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        // Workers hold the same atomic map.
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.num_queues).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit_events.make()
    }

    /// The front-end stops a ring (GET_VRING_BASE): everything that was taken from it is
    /// completed before the index is told, so that nothing is done twice or lost.
    fn stop_vring(&self, index: u32) -> io::Result<()> {
        if let Some(worker) = self.workers.get(index as usize) {
            lock(worker).quiesce();
        }
        Ok(())
    }

    fn set_device_state_fd(
        &self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        file: File,
    ) -> io::Result<Option<File>> {
        *lock(&self.transfer) = Some(match direction {
            VhostTransferStateDirection::SAVE => {
                Transfer::save(file, self.writeback.load(Ordering::Acquire))
            }
            VhostTransferStateDirection::LOAD => Transfer::Loading(file),
        });
        Ok(None)
    }

    fn check_device_state(&self) -> io::Result<()> {
        let transfer = lock(&self.transfer).take().ok_or(io::ErrorKind::InvalidInput)?;
        if let Some(writeback) = transfer.end()? {
            self.choose_writeback(writeback);
        }
        Ok(())
    }

    /// Never an error: it would end the thread.
    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        vrings: &[Vring],
        thread: usize,
    ) -> io::Result<()> {
        let (Some(worker), Some(vring)) = (self.workers.get(thread), vrings.first()) else {
            return Ok(());
        };
        let wake = if event == completion_event(self.num_queues) {
            Wake::Completion
        } else if event == inbox_event(self.num_queues) {
            Wake::Inbox
        } else {
            Wake::Kick
        };
        if !NARROWED.replace(true) {
            sandbox::narrow(Role::Queue);
        }
        lock(worker).run(vring, wake);
        Ok(())
    }
}
