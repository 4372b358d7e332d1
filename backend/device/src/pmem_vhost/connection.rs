//! One front-end's connection: the vhost-user back-end that the library calls.
//!
//! In: negotiated features, memory, the ring. Out: requests to map the region, flushes.
//! Must not know: descriptors, threads of flushes.

use std::io;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::fs::fstat;
use tracing::debug;
use vhost::vhost_user::Backend;
use vhost::vhost_user::message::{
    VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserVirtioFeatures,
};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{Address, GuestMemoryRegion};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

use super::flush::{FlushQueue, QUEUE_SIZE};
use super::mapper::Mapper;
use super::{Region, ServeError};
use crate::blk::lock;
use crate::config::bit;
use crate::front_end::{BackEnd, ExitEvents, converse};
use crate::queue::{Memory, Vring};
use crate::sandbox::{self, Role};

/// VIRTIO_PMEM_F_SHMEM_REGION: the address is that of shared memory region 0, not of the
/// configuration (Linux 6.9 and later).
const F_SHMEM_REGION: u32 = 0;

/// What the library calls.
pub(super) struct Connection {
    region: Arc<Region>,
    memory: Memory,
    queue: FlushQueue,
    mapper: Mapper,
    /// The driver takes the address from the configuration.
    reads_start: AtomicBool,
    back_channel: Mutex<Option<UnixStream>>,
    exit_events: ExitEvents,
}

impl Connection {
    pub(super) fn new(region: &Arc<Region>) -> Arc<Connection> {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        Arc::new(Connection {
            region: region.clone(),
            queue: FlushQueue::new(region, &memory),
            memory,
            mapper: Mapper::default(),
            reads_start: AtomicBool::new(false),
            back_channel: Mutex::default(),
            exit_events: ExitEvents::default(),
        })
    }

    /// Speaks with the front-end until it hangs up or `shutdown` is readable. On return no flush
    /// is in flight.
    pub(super) fn serve(
        self: &Arc<Connection>,
        front_end: &UnixStream,
        shutdown: BorrowedFd<'_>,
    ) -> Result<(), ServeError> {
        let served = thread::scope(|scope| {
            let started = thread::Builder::new().name("rg-map".into()).spawn_scoped(scope, || {
                sandbox::narrow(Role::Relay);
                self.mapper.run(&self.region);
            });
            let served = match started {
                Ok(_) => converse(self, &self.memory, front_end, shutdown),
                Err(error) => Err(ServeError::Setup(error)),
            };
            self.mapper.end();
            if let Some(channel) = lock(&self.back_channel).take() {
                // A front-end that never answers must not keep the mapper.
                let _ = channel.shutdown(Shutdown::Both);
            }
            served
        });
        self.queue.quiesce();
        served
    }

    /// Takes the region itself out of the memory of rings and requests, and gives its address.
    /// Nothing of ours belongs there: an access would be a page fault at whoever serves the file.
    fn without_region(&self, memory: &Memory) -> Option<u64> {
        let mut found = None;
        let mut map = GuestMemoryMmap::clone(&memory.memory());
        for region in memory.memory().iter() {
            let ours = region
                .file_offset()
                .is_some_and(|file| fstat(file.file()).is_ok_and(|stat| self.region.is(&stat)));
            if ours && let Ok((rest, _)) = map.remove_region(region.start_addr(), region.len()) {
                map = rest;
                found = Some(region.start_addr().raw_value());
            }
        }
        if found.is_some() {
            // The lock serves writers that died in the middle; there are none, and the map that
            // is put in is whole.
            let guard = memory.lock();
            guard.unwrap_or_else(std::sync::PoisonError::into_inner).replace(map);
        }
        found
    }

    fn config_space(&self) -> [u8; 16] {
        let mut space = [0; 16];
        space[..8].copy_from_slice(&self.region.start.load(Ordering::Acquire).to_le_bytes());
        space[8..].copy_from_slice(&self.region.bytes.to_le_bytes());
        space
    }
}

impl BackEnd for Connection {
    fn exit_events(&self) -> &ExitEvents {
        &self.exit_events
    }

    fn back_channel(&self, channel: UnixStream) {
        *lock(&self.back_channel) = Some(channel);
    }
}

impl VhostUserBackend for Connection {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        usize::from(QUEUE_SIZE)
    }

    fn features(&self) -> u64 {
        bit(F_SHMEM_REGION)
            | bit(VIRTIO_F_VERSION_1)
            | bit(VIRTIO_RING_F_INDIRECT_DESC)
            | bit(VIRTIO_RING_F_EVENT_IDX)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        self.queue.set_features(features);
        let of_driver = features & bit(VIRTIO_F_VERSION_1) != 0;
        let reads_start = of_driver && features & bit(F_SHMEM_REGION) == 0;
        self.reads_start.store(reads_start, Ordering::Release);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::SHMEM
    }

    /// A reset driver has no requests: what is in flight ends first.
    fn reset_device(&self) {
        self.queue.quiesce();
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The ring knows.
    }

    /// Exactly `size` bytes; what lies behind the space reads as 0.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut bytes = vec![0; size as usize];
        if let Some(rest) = self.config_space().get(offset as usize..) {
            let n = rest.len().min(bytes.len());
            bytes[..n].copy_from_slice(&rest[..n]);
        }
        bytes
    }

    /// Nothing is the driver's to write; an error would make the library hang up.
    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        debug!(offset, len = bytes.len(), "write to read-only configuration ignored");
        Ok(())
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        Ok(VhostUserShMemConfig::new(1, &[self.region.bytes]))
    }

    fn set_backend_req_fd(&self, channel: Backend) {
        self.mapper.set_channel(channel);
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        match self.without_region(&memory) {
            Some(start) => self.region.found_at(start, self.reads_start.load(Ordering::Acquire)),
            None => self.mapper.want(),
        }
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit_events.make()
    }

    /// The front-end stops the ring (GET_VRING_BASE): everything that was taken from it is
    /// completed before the index is told.
    fn stop_vring(&self, _index: u32) -> io::Result<()> {
        self.queue.quiesce();
        Ok(())
    }

    /// Never an error: it would end the thread.
    fn handle_event(
        &self,
        _event: u16,
        _set: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        if let Some(vring) = vrings.first() {
            self.queue.run(vring);
        }
        Ok(())
    }
}
