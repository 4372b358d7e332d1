//! A flag that ends things: set once, seen by every poll.
//!
//! In: somebody who wants the program to end. Out: a file descriptor that stays readable.
//! Must not know: what ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// The flag.
#[derive(Debug)]
pub struct Stop {
    event: OwnedFd,
}

impl Stop {
    /// A flag that is not set.
    ///
    /// # Errors
    /// When the system gives no eventfd.
    pub fn new() -> io::Result<Stop> {
        Ok(Stop { event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// Sets the flag, for good.
    pub fn set(&self) {
        // A counter that cannot take one more is readable anyway.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut [PollFd::new(&self.event, PollFlags::IN)], Some(&now)), Ok(1..))
    }
}

impl AsFd for Stop {
    /// Readable once the flag is set.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
