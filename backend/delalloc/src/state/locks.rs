//! The inode's read/write semaphores and journal handles.
//!
//! Two grant orders: any (a thread may take a lock whenever it is compatible with the holders) and
//! first come, first served (a thread that has to wait takes a place in the queue, and nobody
//! overtakes it). Any order covers every real one.

use zerocopy::{Immutable, IntoBytes};

/// A read/write semaphore of the inode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Rwsem {
    /// `i_rwsem`.
    Inode,
    /// The mapping's invalidate lock (`i_mmap_sem` in 5.10).
    Invalidate,
    /// `i_data_sem`.
    Data,
}

impl Rwsem {
    /// All of them.
    pub const ALL: [Rwsem; 3] = [Rwsem::Inode, Rwsem::Invalidate, Rwsem::Data];

    /// The kernel's name.
    pub const fn name(self) -> &'static str {
        match self {
            Rwsem::Inode => "i_rwsem",
            Rwsem::Invalidate => "invalidate_lock",
            Rwsem::Data => "i_data_sem",
        }
    }
}

/// How a semaphore is held.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// Shared.
    Read,
    /// Alone.
    Write,
}

/// Holders and waiters. A thread's own share is in [`super::Thread::held`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct Locks {
    /// Waiters of each semaphore, first come lowest: 4 bits each, 1 + slot * 2 + write.
    pub queue: [u16; 3],
    /// Readers of each semaphore, or [`Locks::WRITER`].
    pub count: [u8; 3],
    /// Journal handles open.
    pub handles: u8,
}

impl Locks {
    /// One writer holds the semaphore.
    pub const WRITER: u8 = 0x80;
    /// Bit of [`super::Thread::held`] for a handle.
    pub const HANDLE: u8 = 0x40;
    /// Bit of [`super::Thread::held`] for direct I/O in flight.
    pub const DIO: u8 = 0x80;

    /// Bit of [`super::Thread::held`] for a semaphore.
    #[inline]
    pub const fn held_bit(lock: Rwsem, mode: Mode) -> u8 {
        match mode {
            Mode::Read => 1 << (lock as u8),
            Mode::Write => 8 << (lock as u8),
        }
    }

    /// Whether somebody holds it alone.
    #[inline]
    pub const fn written(&self, lock: Rwsem) -> bool {
        self.count[lock as usize] == Locks::WRITER
    }

    /// Whether nobody holds it.
    #[inline]
    pub const fn idle(&self, lock: Rwsem) -> bool {
        self.count[lock as usize] == 0
    }

    #[inline]
    const fn compatible(&self, lock: Rwsem, mode: Mode) -> bool {
        match mode {
            Mode::Read => self.count[lock as usize] < Locks::WRITER,
            Mode::Write => self.count[lock as usize] == 0,
        }
    }

    #[inline]
    const fn ticket(slot: usize, mode: Mode) -> u16 {
        1 + slot as u16 * 2 + matches!(mode, Mode::Write) as u16
    }

    fn queued(&self, lock: Rwsem, ticket: u16) -> bool {
        let mut queue = self.queue[lock as usize];
        while queue != 0 {
            if queue & 15 == ticket {
                return true;
            }
            queue >>= 4;
        }
        false
    }

    /// Whether `slot` can do something about the lock: take it, or take a place in the queue.
    #[inline]
    pub fn can_step(&self, lock: Rwsem, mode: Mode, slot: usize, fair: bool) -> bool {
        if !fair {
            return self.compatible(lock, mode);
        }
        let ticket = Locks::ticket(slot, mode);
        let queue = self.queue[lock as usize];
        !self.queued(lock, ticket) || queue & 15 == ticket && self.compatible(lock, mode)
    }

    /// Takes the lock, or a place in its queue; true if taken.
    #[inline]
    pub fn acquire(&mut self, lock: Rwsem, mode: Mode, slot: usize, fair: bool) -> bool {
        let index = lock as usize;
        if fair {
            let ticket = Locks::ticket(slot, mode);
            let queue = self.queue[index];
            if queue & 15 == ticket && self.compatible(lock, mode) {
                self.queue[index] = queue >> 4;
            } else if queue != 0 || !self.compatible(lock, mode) {
                // A place behind the last waiter: 4 slots, 4 places.
                let places = (16 - queue.leading_zeros()).div_ceil(4);
                self.queue[index] = queue | ticket << (4 * places);
                return false;
            }
        }
        match mode {
            Mode::Read => self.count[index] += 1,
            Mode::Write => self.count[index] = Locks::WRITER,
        }
        true
    }

    /// Gives the lock back.
    #[inline]
    pub fn release(&mut self, lock: Rwsem, mode: Mode) {
        let count = &mut self.count[lock as usize];
        match mode {
            Mode::Read => *count = count.saturating_sub(1),
            Mode::Write => *count = 0,
        }
    }
}
