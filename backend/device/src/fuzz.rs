//! Ways in for the fuzzer: one queue, one control connection, without threads around them.
//!
//! In: guest memory and rings, or the bytes of a control client, none to be trusted. Out: what
//! the real worker and the real client make of them.
//! Must not know: how the bytes are chosen.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use rustix::event::PollFlags;
use vhost_user_backend::VringT;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap};
use vm_memory::{GuestMemoryRegion, MemoryRegionAddress};

use crate::config::bit;
use crate::control::{FuzzedClient, Target};
use crate::counters::Counters;
use crate::engine::Engine;
use crate::inflight::Area;
use crate::queue::{Memory, Vring};
use crate::storage::Storage;
use crate::worker::{Negotiated, Polling, Surroundings, Wake, Worker};

/// Turns of a control connection beyond which it hangs.
const TURNS_MAX: usize = 100_000;

/// Turns without an answer after which a client that has sent everything hangs up.
const IDLE_TURNS: usize = 3;

/// How a queue is set up.
#[derive(Clone, Copy, Debug)]
pub struct QueueSetup<'a> {
    /// Descriptors, a power of two.
    pub size: u16,
    /// Guest addresses of descriptor table, available ring and used ring.
    pub rings: [u64; 3],
    /// Where the device goes on in the available ring.
    pub base: u16,
    /// VIRTIO_RING_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// VIRTIO_RING_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
    /// Writes are durable before they complete.
    pub write_through: bool,
    /// What an in-flight area says, if the front-end has one.
    pub inflight: Option<&'a [u8]>,
}

/// Memory of a guest, kept from queue to queue.
pub struct Guest {
    memory: Memory,
}

impl Guest {
    /// Memory with these regions: guest address and bytes.
    ///
    /// # Errors
    /// The system gives no memory, or the regions overlap.
    pub fn new(regions: &[(u64, usize)]) -> io::Result<Guest> {
        let ranges: Vec<_> =
            regions.iter().map(|(addr, bytes)| (GuestAddress(*addr), *bytes)).collect();
        let memory = GuestMemoryMmap::from_ranges(&ranges).map_err(io::Error::other)?;
        Ok(Guest { memory: GuestMemoryAtomic::new(memory) })
    }

    /// Makes all of it zero.
    pub fn clear(&self) {
        use vm_memory::GuestAddressSpace;
        const ZEROES: [u8; 4096] = [0; 4096];
        for region in self.memory.memory().iter() {
            let mut at = 0;
            while at < region.len() {
                let part = &ZEROES[..(region.len() - at).min(4096) as usize];
                let _ = region.write_slice(part, MemoryRegionAddress(at));
                at += 4096;
            }
        }
    }

    /// Puts bytes there, as far as there is memory.
    pub fn put(&self, addr: u64, bytes: &[u8]) {
        use vm_memory::GuestAddressSpace;
        let _ = self.memory.memory().write(bytes, GuestAddress(addr));
    }

    /// The little-endian number at an address; 0 where there is no memory.
    pub fn u16_at(&self, addr: u64) -> u16 {
        use vm_memory::GuestAddressSpace;
        let read: Result<u16, _> = self.memory.memory().read_obj(GuestAddress(addr));
        read.map_or(0, u16::from_le)
    }
}

/// One queue with its worker.
pub struct Queue {
    worker: Worker,
    vring: Vring,
}

impl Queue {
    /// A queue that is ready and enabled; `None` if the set-up is refused.
    pub fn new(
        guest: &Guest,
        storage: &Arc<dyn Storage>,
        engine: Option<&Arc<Engine>>,
        setup: QueueSetup<'_>,
    ) -> Option<Queue> {
        let negotiated = Arc::new(Negotiated::default());
        let indirect = if setup.indirect { bit(VIRTIO_RING_F_INDIRECT_DESC) } else { 0 };
        negotiated.features.store(indirect, Ordering::Release);
        negotiated.set_write_through(setup.write_through);
        let around = Surroundings {
            storage: Arc::clone(storage),
            engine: engine.cloned(),
            counters: Arc::new(Counters::new(1)),
            negotiated,
            memory: guest.memory.clone(),
            inflight: Arc::new(Mutex::new(setup.inflight.and_then(|says| area(setup.size, says)))),
            dirty_log: Arc::default(),
            polling: Polling::Off,
            serial: [0x53; crate::blk::SERIAL_BYTES],
        };
        let worker = Worker::new(0, setup.size, around).ok()?;
        let vring = Vring::new(guest.memory.clone(), setup.size).ok()?;
        vring.set_queue_size(setup.size);
        let [descriptors, available, used] = setup.rings;
        vring.set_queue_info(descriptors, available, used).ok()?;
        vring.set_queue_next_avail(setup.base);
        vring.set_queue_next_used(setup.base);
        vring.set_queue_event_idx(setup.event_idx);
        vring.set_queue_ready(true);
        vring.set_enabled(true);
        Some(Queue { worker, vring })
    }

    /// The driver kicks: everything that is available is served.
    pub fn kick(&mut self) {
        self.worker.run(&self.vring, Wake::Kick);
    }

    /// The front-end stops the queue: nothing is in flight afterwards.
    pub fn stop(&mut self) {
        self.worker.quiesce();
    }
}

/// An in-flight area with those bytes in it.
fn area(size: u16, says: &[u8]) -> Option<Arc<Area>> {
    let (file, shape) = Area::create(1, size).ok()?;
    let len = says.len().min(usize::try_from(shape.mmap_size).ok()?);
    rustix::io::pwrite(&file, &says[..len], 0).ok()?;
    Area::open(&file, shape, 1, size).ok().map(Arc::new)
}

/// One control connection: a client that sends `bytes` and hangs up. Gives what it was answered.
///
/// # Panics
/// The connection does not end.
///
/// # Errors
/// The system gives no sockets.
pub fn control(target: &Target, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut client = FuzzedClient::new(theirs)?;
    let mut answers = Vec::new();
    let mut rest = bytes;
    let mut ours = Some(ours);
    let mut idle = 0;
    for _ in 0..TURNS_MAX {
        let mut ready = PollFlags::OUT;
        if let Some(socket) = &mut ours {
            if rest.is_empty() {
                socket.shutdown(Shutdown::Write)?;
            } else if let Ok(sent) = socket.write(rest) {
                rest = &rest[sent..];
            }
            ready |= PollFlags::IN;
        } else {
            ready |= PollFlags::HUP;
        }
        let stays = client.turn(ready, target);
        if let Some(socket) = &mut ours {
            let mut part = [0; 4096];
            idle += 1;
            while let Ok(read @ 1..) = socket.read(&mut part) {
                answers.extend_from_slice(&part[..read]);
                idle = 0;
            }
            // A subscriber stays until its reader is gone.
            if rest.is_empty() && !client.pending() && idle > IDLE_TURNS {
                ours = None;
            }
        }
        if !stays {
            client.leave(target);
            return Ok(answers);
        }
    }
    panic!("a control connection does not end");
}

/// A write to a socket whose other end is gone is an error, not the end: as in every Rust program,
/// but the fuzzer's `main` is none.
pub fn ignore_broken_pipes() {
    // SAFETY: sets the disposition of one signal to "ignore", before any thread is started.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
