//! One direction of a ring between two threads.
//!
//! In: numbers, from one thread. Out: the same numbers, to one other thread, which may sleep.
//! Must not know: what they mean.
//!
//! As a virtqueue with event indices does, the reader says when it goes to sleep, and only then
//! the writer makes a system call.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

use rustix::event::{EventfdFlags, eventfd};

/// Entries; more than are ever in flight.
const ENTRIES: usize = 1024;

/// On a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Apart<T>(T);

/// From one thread to one other.
pub(super) struct Lane {
    entries: Vec<AtomicU64>,
    /// Entries ever pushed.
    pushed: Apart<AtomicUsize>,
    /// Entries ever popped; the reader's own.
    popped: Apart<AtomicUsize>,
    asleep: Apart<AtomicBool>,
    event: OwnedFd,
}

impl Lane {
    pub(super) fn new() -> io::Result<Lane> {
        Ok(Lane {
            entries: (0..ENTRIES).map(|_| AtomicU64::new(0)).collect(),
            pushed: Apart::default(),
            popped: Apart::default(),
            asleep: Apart::default(),
            event: eventfd(0, EventfdFlags::CLOEXEC)?,
        })
    }

    /// The writer: adds an entry. Never more than [`ENTRIES`] that were not popped.
    pub(super) fn push(&self, value: u64) {
        let at = self.pushed.0.load(Ordering::Relaxed);
        self.entries[at % ENTRIES].store(value, Ordering::Relaxed);
        self.pushed.0.store(at + 1, Ordering::Release);
    }

    /// The writer: wakes the reader if it sleeps.
    pub(super) fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.0.load(Ordering::Relaxed) && self.asleep.0.swap(false, Ordering::Relaxed) {
            // A counter that is full is readable, which is all that counts.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// The reader: takes an entry.
    pub(super) fn pop(&self) -> Option<u64> {
        let at = self.popped.0.load(Ordering::Relaxed);
        if at == self.pushed.0.load(Ordering::Acquire) {
            return None;
        }
        let value = self.entries[at % ENTRIES].load(Ordering::Relaxed);
        self.popped.0.store(at + 1, Ordering::Relaxed);
        Some(value)
    }

    /// The reader: sleeps until there is an entry.
    pub(super) fn wait(&self) {
        self.asleep.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let empty = self.popped.0.load(Ordering::Relaxed) == self.pushed.0.load(Ordering::Relaxed);
        // The writer that takes the flag back also makes the counter readable.
        if empty || !self.asleep.0.swap(false, Ordering::Relaxed) {
            let _ = rustix::io::read(&self.event, &mut [0_u8; 8]);
        }
    }
}
