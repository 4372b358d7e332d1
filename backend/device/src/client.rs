//! A front-end without a guest: it drives any vhost-user-blk backend from this process.
//!
//! In: a socket, requests for slots of a buffer that is shared with the backend. Out: which slots
//! have ended, and how; a thread that sleeps until there are some.
//! Must not know: what the load is for, how the backend was started.
//!
//! The protocol and the ring are those of the virtio-driver crate, which shares no code with the
//! backend. A queue behaves as a guest's driver does: no calls are wanted while completions are
//! taken, and one is before it sleeps (virtio 1.3, 2.7.10).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use thiserror::Error;
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue,
    VirtioBlkReqBuf, VirtioBlkTransport, VirtioFeatureFlags,
};
use vm_memory::{FileOffset, MmapRegion};

/// Largest virtqueue (virtio 1.3, 2.7).
const MAX_QUEUE_SIZE: usize = 32768;
/// Descriptors of a read or write: header, data, status.
const DESCRIPTORS: usize = 3;

/// How to connect.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// Virtqueues to set up.
    pub queues: u16,
    /// Requests that a queue has room for at a time, and slots of its buffer.
    pub slots: u16,
    /// Length of a slot in bytes.
    pub slot_bytes: usize,
}

/// Why there is no connection, or none any more.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The path cannot be handed to the system.
    #[error("the socket path {} is not UTF-8", .0.display())]
    Path(PathBuf),
    /// No backend listens, or it does not know what is needed.
    #[error("cannot connect to the backend at {}", path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has fewer queues than were asked for.
    #[error("the backend has {has} queues, {wanted} were asked for")]
    Queues {
        /// What it has.
        has: usize,
        /// What was asked for.
        wanted: u16,
    },
    /// More requests at a time than a ring can hold.
    #[error("{0} requests at a time do not fit a virtqueue")]
    Slots(u16),
    /// The backend takes no ring as long as that.
    #[error(
        "the backend takes no ring of {descriptors} descriptors, which {slots} requests at a time \
         need"
    )]
    Rings {
        /// Length that was asked for.
        descriptors: usize,
        /// Requests that it is for.
        slots: u16,
        /// What the backend said.
        source: io::Error,
    },
    /// The configuration could not be read, or the buffer not be shared.
    #[error("cannot set up the {what}")]
    Setup {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A request could not be queued.
    #[error("cannot queue a request")]
    Request(#[source] io::Error),
    /// Kick or call do not work.
    #[error("cannot notify, or wait for, the backend")]
    Notify(#[source] io::Error),
    /// Outside the buffer or of no length.
    #[error("slot {slot} with {len} bytes: there are {slots} of {slot_bytes} bytes")]
    Slot {
        /// Which.
        slot: u16,
        /// How much of it.
        len: usize,
        /// How many there are.
        slots: u16,
        /// How long they are.
        slot_bytes: usize,
    },
}

/// A connection.
pub struct Client {
    /// Size of the disk in bytes.
    capacity: u64,
    queues: Vec<ClientQueue>,
}

/// One virtqueue with its buffer, for one thread.
pub struct ClientQueue {
    queue: VirtioBlkQueue<'static, u16>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    buffer: Arc<MmapRegion>,
    /// Where its part of the buffer begins.
    first_byte: usize,
    slots: u16,
    slot_bytes: usize,
    /// The ring lies in memory of the transport, which goes last.
    _transport: Arc<VirtioBlkTransport>,
}

/// Wakes the thread that sleeps in [`ClientQueue::wait`].
#[derive(Clone, Debug)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// As if the backend had called.
    pub fn wake(&self) {
        // A counter that is full is readable, which is all that counts.
        let _ = self.0.write(1);
    }
}

impl Client {
    /// Connects to the backend that listens at `socket`.
    ///
    /// # Errors
    /// When nobody listens, the backend lacks what is needed, or memory cannot be had.
    pub fn connect(socket: &Path, options: ClientOptions) -> Result<Client, ClientError> {
        let path = socket.to_str().ok_or_else(|| ClientError::Path(socket.to_owned()))?;
        let size = (usize::from(options.slots) * DESCRIPTORS).next_power_of_two().max(16);
        if options.slots == 0 || size > MAX_QUEUE_SIZE {
            return Err(ClientError::Slots(options.slots));
        }
        // With a cache that can be flushed a write need not be durable at once.
        let features = (VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX).bits()
            | (VirtioBlkFeatureFlags::FLUSH | VirtioBlkFeatureFlags::MQ).bits();
        let vhost = VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(path, features)
            .map_err(|source| ClientError::Connect { path: socket.to_owned(), source })?;
        let mut transport: Box<VirtioBlkTransport> = Box::new(vhost);
        let setup = |what| move |source| ClientError::Setup { what, source };
        let has = transport.max_queues().unwrap_or(1);
        if has < usize::from(options.queues) {
            return Err(ClientError::Queues { has, wanted: options.queues });
        }
        let config = transport.get_config().map_err(setup("configuration"))?;
        let capacity = u64::from(config.capacity) * 512;
        let rings = VirtioBlkQueue::<u16>::setup_queues(
            &mut *transport,
            usize::from(options.queues),
            size as u16,
        )
        .map_err(|source| ClientError::Rings {
            descriptors: size,
            slots: options.slots,
            source,
        })?;
        let bytes = usize::from(options.queues) * usize::from(options.slots) * options.slot_bytes;
        let buffer = shared_memory(bytes).map_err(setup("buffer"))?;
        let (address, file) = (buffer.as_ptr() as usize, buffer.file_offset());
        let fd = file.map_or(-1, |file| file.file().as_raw_fd());
        transport.map_mem_region(address, bytes, fd, 0).map_err(setup("buffer"))?;

        let ends: Vec<_> = (0..rings.len())
            .map(|index| {
                (transport.get_submission_notifier(index), transport.get_completion_fd(index))
            })
            .collect();
        let transport: Arc<VirtioBlkTransport> = Arc::from(transport);
        let stride = usize::from(options.slots) * options.slot_bytes;
        let queues = rings
            .into_iter()
            .zip(ends)
            .enumerate()
            .map(|(index, (queue, (kick, call)))| ClientQueue {
                queue,
                kick,
                call,
                buffer: Arc::clone(&buffer),
                first_byte: index * stride,
                slots: options.slots,
                slot_bytes: options.slot_bytes,
                _transport: Arc::clone(&transport),
            })
            .collect();
        Ok(Client { capacity, queues })
    }

    /// Size of the disk in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The queues, each for a thread of its own; the connection ends with the last of them.
    pub fn into_queues(self) -> Vec<ClientQueue> {
        self.queues
    }
}

/// Memory that a backend can map, with all its pages there.
fn shared_memory(bytes: usize) -> io::Result<Arc<MmapRegion>> {
    let memfd = memfd_create("racegate-client", MemfdFlags::CLOEXEC)?;
    ftruncate(&memfd, bytes as u64)?;
    let file = FileOffset::new(File::from(memfd), 0);
    let region = MmapRegion::<()>::from_file(file, bytes).map_err(io::Error::other)?;
    // SAFETY: the mapping is `bytes` long and not shared with anybody yet.
    unsafe { region.as_ptr().write_bytes(0xa5, bytes) };
    Ok(Arc::new(region))
}

impl ClientQueue {
    /// Slots of the buffer.
    pub fn slots(&self) -> u16 {
        self.slots
    }

    /// Wakes the thread that waits for this queue.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.call))
    }

    /// Queues a read of `len` bytes from byte `offset` of the disk into a slot.
    ///
    /// # Errors
    /// When the slot does not exist, the offset is no sector, or the ring is full.
    pub fn read(&mut self, slot: u16, offset: u64, len: usize) -> Result<(), ClientError> {
        let at = self.place(slot, len)?;
        // SAFETY: `at` is valid for len bytes of the buffer, which lives as long as the queue.
        // Nothing in this process holds a reference into it.
        unsafe { self.queue.read_raw(offset, at, len, slot) }.map_err(ClientError::Request)
    }

    /// Queues a write of the first `len` bytes of a slot to byte `offset` of the disk.
    ///
    /// # Errors
    /// As [`ClientQueue::read`].
    pub fn write(&mut self, slot: u16, offset: u64, len: usize) -> Result<(), ClientError> {
        let at = self.place(slot, len)?;
        // SAFETY: as in `read`.
        unsafe { self.queue.write_raw(offset, at, len, slot) }.map_err(ClientError::Request)
    }

    /// Queues a flush under the name of a slot.
    ///
    /// # Errors
    /// When the ring is full.
    pub fn flush(&mut self, slot: u16) -> Result<(), ClientError> {
        self.queue.flush(slot).map_err(ClientError::Request)
    }

    /// Fills a slot that is not in use with what `bytes` gives.
    ///
    /// # Errors
    /// When the slot does not exist.
    pub fn fill(&mut self, slot: u16, bytes: &[u8]) -> Result<(), ClientError> {
        let at = self.place(slot, bytes.len())?;
        // SAFETY: `at` is valid for that many bytes; a slice of ours does not lie in the buffer.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
        Ok(())
    }

    /// Copies the first bytes of a slot that is not in use.
    ///
    /// # Errors
    /// When the slot does not exist.
    pub fn fetch(&self, slot: u16, bytes: &mut [u8]) -> Result<(), ClientError> {
        let at = self.place(slot, bytes.len())?;
        // SAFETY: as in `fill`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(at, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn place(&self, slot: u16, len: usize) -> Result<*mut u8, ClientError> {
        let (slots, slot_bytes) = (self.slots, self.slot_bytes);
        if slot >= slots || len == 0 || len > slot_bytes {
            return Err(ClientError::Slot { slot, len, slots, slot_bytes });
        }
        let offset = self.first_byte + usize::from(slot) * slot_bytes;
        // SAFETY: the buffer has room for the slots of all queues (see `connect`).
        Ok(unsafe { self.buffer.as_ptr().add(offset) })
    }

    /// Tells the backend of what was queued, if it wants to be told.
    ///
    /// # Errors
    /// When the eventfd cannot be written.
    pub fn kick(&mut self) -> Result<(), ClientError> {
        if self.queue.avail_notif_needed() {
            self.kick.notify().map_err(ClientError::Notify)?;
        }
        Ok(())
    }

    /// Takes the next slot that has ended, and whether it ended well.
    pub fn next_ended(&mut self) -> Option<(u16, bool)> {
        self.queue.completions().next().map(|done| (done.context, done.ret == 0))
    }

    /// Whether the backend shall call for what ends from now on. When that is switched on, look
    /// once more before waiting.
    pub fn want_call(&mut self, wanted: bool) {
        self.queue.set_used_notif_enabled(wanted);
    }

    /// Whether something has ended that was not taken.
    pub fn has_ended(&mut self) -> bool {
        self.queue.completions().has_next()
    }

    /// Sleeps until the backend calls or a [`Waker`] wakes.
    ///
    /// # Errors
    /// When the eventfd cannot be read.
    pub fn wait(&self) -> Result<(), ClientError> {
        // Some backends make the descriptor, which is theirs too, one that does not block.
        let mut fds = [PollFd::from_borrowed_fd(self.call.as_fd(), PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(ClientError::Notify(errno.into())),
        }
        self.call.read().map_err(ClientError::Notify)?;
        Ok(())
    }
}
