//! A front-end that reads one block at a time and sleeps until it is there.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_driver::{
    VhostUser, VirtioBlkConfig, VirtioBlkQueue, VirtioBlkReqBuf, VirtioBlkTransport,
    VirtioFeatureFlags,
};
use vm_memory::{FileOffset, MmapRegion};

const BLOCK_BYTES: usize = 4096;

/// A connection with one queue.
pub(crate) struct Client {
    transport: Box<VirtioBlkTransport>,
    queue: VirtioBlkQueue<'static, ()>,
    block: MmapRegion,
}

impl Client {
    /// Connects to a backend.
    pub(crate) fn connect(socket: &Path) -> Client {
        let path = socket.to_str().expect("a path in UTF-8");
        let features = (VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX).bits();
        let vhost =
            VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(path, features).expect("handshake");
        let mut transport: Box<VirtioBlkTransport> = Box::new(vhost);
        let mut queue =
            VirtioBlkQueue::setup_queues(&mut *transport, 1, 16).expect("queues").remove(0);
        queue.set_used_notif_enabled(true);
        let memfd = memfd_create("block", MemfdFlags::CLOEXEC).expect("memory");
        ftruncate(&memfd, BLOCK_BYTES as u64).expect("its size");
        let file = std::fs::File::from(memfd);
        let raw = file.as_raw_fd();
        let block =
            MmapRegion::<()>::from_file(FileOffset::new(file, 0), BLOCK_BYTES).expect("mapping");
        transport.map_mem_region(block.as_ptr() as usize, block.size(), raw, 0).expect("memory");
        Client { transport, queue, block }
    }

    /// Reads one block and waits for it.
    pub(crate) fn read(&mut self, offset: u64) {
        // SAFETY: the address is BLOCK_BYTES of a mapping that outlives the request, which ends
        // before this function does.
        unsafe { self.queue.read_raw(offset, self.block.as_ptr(), BLOCK_BYTES, ()) }.expect("room");
        self.transport.get_submission_notifier(0).notify().expect("kick");
        let call = self.transport.get_completion_fd(0);
        loop {
            if let Some(done) = self.queue.completions().next() {
                assert_eq!(done.ret, 0, "the read failed");
                return;
            }
            let mut fds = [PollFd::from_borrowed_fd(call.as_fd(), PollFlags::IN)];
            let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
            assert_eq!(poll(&mut fds, Some(&limit)), Ok(1), "no completion");
            call.read().expect("call");
        }
    }
}
