//! A front-end that reads one block at a time and sleeps until it is there.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_driver::{VirtioBlkQueue, VirtioBlkTransport};
use vm_memory::MmapRegion;

use crate::connect::connect;

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
        let (transport, queue, block) = connect(socket, 16, BLOCK_BYTES);
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
