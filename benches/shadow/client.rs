//! A front-end that keeps a queue of 4 KiB requests full.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_driver::{VirtioBlkQueue, VirtioBlkTransport};
use vm_memory::MmapRegion;

use crate::connect::connect;

/// Bytes of each request.
pub(crate) const BLOCK_BYTES: u64 = 4096;
/// Requests in flight.
const DEPTH: u64 = 16;

/// What requests do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mix {
    Read,
    Write,
}

/// A connection with one queue.
pub(crate) struct Client {
    transport: Box<VirtioBlkTransport>,
    queue: VirtioBlkQueue<'static, u64>,
    arena: MmapRegion,
    random: u64,
}

impl Client {
    /// Connects to a backend.
    pub(crate) fn connect(socket: &Path) -> Client {
        let (transport, queue, arena) = connect(socket, 256, (DEPTH * BLOCK_BYTES) as usize);
        Client { transport, queue, arena, random: 1 }
    }

    /// Writes each of `blocks` once.
    pub(crate) fn fill(&mut self, blocks: &[u64]) {
        let mut blocks = blocks.iter();
        self.keep_full(Mix::Write, |_| blocks.next().copied());
    }

    /// Random requests to `blocks` for that long; requests per second.
    pub(crate) fn random(&mut self, mix: Mix, blocks: &[u64], lasts: Duration) -> f64 {
        let (mut random, began) = (self.random, Instant::now());
        let done = self.keep_full(mix, |sent| {
            // xorshift64: the same sequence for every backend.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let late = sent % DEPTH == 0 && began.elapsed() >= lasts;
            (!late).then(|| blocks[(random % blocks.len() as u64) as usize])
        });
        self.random = random;
        done as f64 / began.elapsed().as_secs_f64()
    }

    /// Sends what `next` gives, a byte offset each, until it gives none; how many there were.
    fn keep_full(&mut self, mix: Mix, mut next: impl FnMut(u64) -> Option<u64>) -> u64 {
        let (mut sent, mut done) = (0, 0);
        let mut free: Vec<u64> = (0..DEPTH).collect();
        let mut more = true;
        while more || done < sent {
            let mut kick = false;
            while let (true, Some(slot)) = (more, free.last().copied()) {
                let Some(offset) = next(sent) else {
                    more = false;
                    break;
                };
                free.pop();
                let buffer = self.arena.as_ptr().wrapping_add((slot * BLOCK_BYTES) as usize);
                let bytes = BLOCK_BYTES as usize;
                // SAFETY: the address is BLOCK_BYTES of a mapping that outlives the request, which
                // has ended when this function does; each slot is in one request at a time.
                let queued = unsafe {
                    match mix {
                        Mix::Read => self.queue.read_raw(offset, buffer, bytes, slot),
                        Mix::Write => self.queue.write_raw(offset, buffer, bytes, slot),
                    }
                };
                queued.expect("room");
                (sent, kick) = (sent + 1, true);
            }
            if kick && self.queue.avail_notif_needed() {
                self.transport.get_submission_notifier(0).notify().expect("kick");
            }
            let before = done;
            for completed in self.queue.completions() {
                assert_eq!(completed.ret, 0, "a request failed");
                free.push(completed.context);
                done += 1;
            }
            if done == before && done < sent {
                self.wait();
            }
        }
        done
    }

    fn wait(&mut self) {
        let call = self.transport.get_completion_fd(0);
        let mut fds = [PollFd::from_borrowed_fd(call.as_fd(), PollFlags::IN)];
        let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&limit)), Ok(1), "no completion");
        call.read().expect("call");
    }
}
