//! A driver of the device on the virtio-driver crate: one operation at a time on any queue, or
//! several in flight.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_driver::{
    VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkReqBuf,
    VirtioBlkTransport, VirtioFeatureFlags,
};
use vm_memory::{FileOffset, MmapRegion};

/// How long any operation may take before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Everything that the crate can negotiate.
pub(crate) fn all_features() -> u64 {
    (VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX).bits() | blk_features()
}

fn blk_features() -> u64 {
    VirtioBlkFeatureFlags::all().bits()
}

pub(crate) struct Client {
    pub(crate) transport: Box<VirtioBlkTransport>,
    pub(crate) queues: Vec<VirtioBlkQueue<'static, u64>>,
    arena: MmapRegion,
}

impl Client {
    /// Connects with `queues` queues of `size` descriptors and `arena` bytes of memory.
    pub(crate) fn connect(
        socket: &Path,
        features: u64,
        queues: usize,
        size: u16,
        arena: usize,
    ) -> Client {
        let path = socket.to_str().expect("a path in UTF-8");
        let vhost = VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(path, features)
            .expect("the handshake");
        let mut transport: Box<VirtioBlkTransport> = Box::new(vhost);
        let mut queues: Vec<VirtioBlkQueue<'static, u64>> =
            VirtioBlkQueue::setup_queues(&mut *transport, queues, size).expect("queues");
        for queue in &mut queues {
            queue.set_used_notif_enabled(true);
        }
        let memfd = memfd_create("arena", MemfdFlags::CLOEXEC).expect("memory");
        ftruncate(&memfd, arena as u64).expect("its size");
        let file = std::fs::File::from(memfd);
        let raw = file.as_raw_fd();
        let arena =
            MmapRegion::<()>::from_file(FileOffset::new(file, 0), arena).expect("its mapping");
        transport
            .map_mem_region(arena.as_ptr() as usize, arena.size(), raw, 0)
            .expect("ADD_MEM_REG");
        Client { transport, queues, arena }
    }

    /// `len` bytes of the arena.
    pub(crate) fn bytes(&mut self, at: usize, len: usize) -> &mut [u8] {
        assert!(at + len <= self.arena.size());
        // SAFETY: inside the mapping; the device only touches what an operation in flight names,
        // and tests look at bytes of finished operations.
        unsafe { std::slice::from_raw_parts_mut(self.arena.as_ptr().add(at), len) }
    }

    pub(crate) fn address(&self, at: usize) -> *mut u8 {
        assert!(at < self.arena.size());
        self.arena.as_ptr().wrapping_add(at)
    }

    pub(crate) fn kick(&self, queue: usize) {
        self.transport.get_submission_notifier(queue).notify().expect("a kick");
    }

    /// Waits for the next completion on a queue: its context and result.
    pub(crate) fn next(&mut self, queue: usize) -> (u64, i32) {
        loop {
            if let Some(done) = self.queues[queue].completions().next() {
                return (done.context, done.ret);
            }
            let call = self.transport.get_completion_fd(queue);
            assert!(readable(call.as_fd(), PATIENCE), "queue {queue}: no completion");
            call.read().expect("the call");
        }
    }

    pub(crate) fn read(&mut self, queue: usize, offset: u64, at: usize, len: usize) -> i32 {
        let to = self.address(at);
        // SAFETY: the address is `len` bytes of the arena, which outlives the operation.
        unsafe { self.queues[queue].read_raw(offset, to, len, 1) }.expect("room");
        self.kick(queue);
        self.next(queue).1
    }

    pub(crate) fn write(&mut self, queue: usize, offset: u64, at: usize, len: usize) -> i32 {
        let from = self.address(at);
        // SAFETY: as in `read`.
        unsafe { self.queues[queue].write_raw(offset, from, len, 2) }.expect("room");
        self.kick(queue);
        self.next(queue).1
    }

    pub(crate) fn flush(&mut self, queue: usize) -> i32 {
        self.queues[queue].flush(3).expect("room");
        self.kick(queue);
        self.next(queue).1
    }

    pub(crate) fn discard(&mut self, queue: usize, offset: u64, len: u64) -> i32 {
        self.queues[queue].discard(offset, len, 4).expect("room");
        self.kick(queue);
        self.next(queue).1
    }

    pub(crate) fn write_zeroes(&mut self, queue: usize, offset: u64, len: u64, unmap: bool) -> i32 {
        self.queues[queue].write_zeroes(offset, len, unmap, 5).expect("room");
        self.kick(queue);
        self.next(queue).1
    }
}

/// Whether `fd` is readable within `patience`.
pub(crate) fn readable(fd: BorrowedFd<'_>, patience: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let limit = Timespec {
        tv_sec: patience.as_secs().cast_signed(),
        tv_nsec: i64::from(patience.subsec_nanos()),
    };
    poll(&mut fds, Some(&limit)).expect("poll") > 0
}
