//! A split virtqueue in guest memory (virtio 1.3, 2.7), as host addresses.
//!
//! In: guest addresses of the three parts, checked once. Out: heads, used elements, and the two
//! decisions about notifications (2.7.7, 2.7.10).
//! Must not know: who sets a ring up, locks, eventfds.
//!
//! The driver writes to these bytes while we read them, and may lie: every index is taken modulo
//! the size, every value is read once.

use std::num::Wrapping;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use thiserror::Error;
use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::Used;
use crate::request::Table;
use crate::segments::Snapshot;

/// Bytes of flags and index at the start of either ring.
const RING_HEADER_BYTES: usize = 4;
/// Bytes of an entry of the available ring.
const AVAIL_BYTES: usize = 2;
/// Bytes of an entry of the used ring.
const USED_BYTES: usize = 8;
/// Bytes of a descriptor.
const DESCRIPTOR_BYTES: usize = 16;

/// Where a ring lies, as vhost-user said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Guest address of the descriptor table.
    pub desc: u64,
    /// Guest address of the available ring.
    pub avail: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// Descriptors; a power of two.
    pub size: u16,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
}

/// A ring that cannot be used.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum BadRing {
    #[error("the {part} at guest address {addr:#x} is not in the guest's memory")]
    Outside { part: &'static str, addr: u64 },
    #[error("the {part} at guest address {addr:#x} is not aligned")]
    Unaligned { part: &'static str, addr: u64 },
    #[error("a ring of {0} descriptors")]
    Size(u16),
    #[error("{available} chains are available in a ring of {size}")]
    Available { available: u16, size: u16 },
    #[error("chain {head} is outside a ring of {size}")]
    Head { head: u16, size: u16 },
}

/// The three parts of a ring, mapped as long as this lives.
#[derive(Debug)]
pub(crate) struct Split {
    place: Place,
    memory: Snapshot,
    desc: *const u8,
    avail: *mut u8,
    used: *mut u8,
    mask: u16,
    /// Index of the used ring when the driver was last considered for a call; `None`: never.
    considered: Option<Wrapping<u16>>,
}

// SAFETY: the addresses point into memory that `memory` holds; it belongs to no thread.
unsafe impl Send for Split {}

impl Split {
    pub(crate) fn new(memory: &Snapshot, place: Place) -> Result<Split, BadRing> {
        let size = usize::from(place.size);
        if !size.is_power_of_two() {
            return Err(BadRing::Size(place.size));
        }
        // The last two bytes of either ring hold the event index.
        let avail_bytes = RING_HEADER_BYTES + size * AVAIL_BYTES + 2;
        let used_bytes = RING_HEADER_BYTES + size * USED_BYTES + 2;
        let part = |part, addr, bytes: usize, align: usize| {
            let slice = memory
                .memory()
                .get_slice(GuestAddress(addr), bytes)
                .map_err(|_| BadRing::Outside { part, addr })?;
            let at = slice.ptr_guard_mut().as_ptr();
            if at as usize & (align - 1) == 0 {
                Ok(at)
            } else {
                Err(BadRing::Unaligned { part, addr })
            }
        };
        Ok(Split {
            place,
            memory: memory.clone(),
            desc: part("descriptor table", place.desc, size * DESCRIPTOR_BYTES, 8)?,
            avail: part("available ring", place.avail, avail_bytes, 2)?,
            used: part("used ring", place.used, used_bytes, 4)?,
            mask: place.size - 1,
            considered: None,
        })
    }

    /// The memory that it lies in.
    pub(crate) fn memory(&self) -> &Snapshot {
        &self.memory
    }

    /// The descriptor table, if it lies in that memory.
    pub(crate) fn table<'a>(&self, memory: &'a Snapshot) -> Option<Table<'a>> {
        if !self.memory.is_of(memory.memory()) {
            return None;
        }
        // SAFETY: checked in `new` for that many descriptors of that memory.
        Some(unsafe { Table::at(self.desc, usize::from(self.place.size)) })
    }

    fn half_word(at: *mut u8, offset: usize) -> *mut u16 {
        // Offsets below are within the part that was checked in `new`, and even.
        at.wrapping_add(offset).cast()
    }

    fn load(at: *mut u16, order: Ordering) -> u16 {
        // SAFETY: `at` comes from `half_word`: aligned, inside mapped memory that lives as long
        // as `self`. The other side of the ring uses it as an atomic, too.
        u16::from_le(unsafe { AtomicU16::from_ptr(at) }.load(order))
    }

    fn store(at: *mut u16, value: u16, order: Ordering) {
        // SAFETY: as in `load`.
        unsafe { AtomicU16::from_ptr(at) }.store(value.to_le(), order);
    }

    /// What the used ring's index says.
    pub(crate) fn used_idx(&self) -> u16 {
        Self::load(Self::half_word(self.used, 2), Ordering::Acquire)
    }

    /// Moves up to `most` heads from index `next` on to `heads`; gives the index after them.
    pub(crate) fn take(
        &self,
        next: u16,
        heads: &mut Vec<u16>,
        most: usize,
    ) -> Result<u16, BadRing> {
        let idx = Self::load(Self::half_word(self.avail, 2), Ordering::Acquire);
        let available = (Wrapping(idx) - Wrapping(next)).0;
        if available > self.place.size {
            return Err(BadRing::Available { available, size: self.place.size });
        }
        let n = usize::from(available).min(most) as u16;
        for i in 0..n {
            let entry = (Wrapping(next) + Wrapping(i)).0 & self.mask;
            let at = RING_HEADER_BYTES + usize::from(entry) * AVAIL_BYTES;
            heads.push(Self::load(Self::half_word(self.avail, at), Ordering::Relaxed));
        }
        Ok((Wrapping(next) + Wrapping(n)).0)
    }

    /// Whether something is available from index `next` on.
    pub(crate) fn has_more(&self, next: u16) -> bool {
        Self::load(Self::half_word(self.avail, 2), Ordering::Relaxed) != next
    }

    /// How many heads are available from index `next` on; as many as fit, at the most.
    pub(crate) fn available(&self, next: u16) -> u16 {
        let idx = Self::load(Self::half_word(self.avail, 2), Ordering::Relaxed);
        (Wrapping(idx) - Wrapping(next)).0.min(self.place.size)
    }

    /// Puts `used` into the ring from index `next` on; gives the index after them. The driver
    /// sees all of them at once.
    pub(crate) fn put(&self, next: u16, used: &[Used]) -> Result<u16, BadRing> {
        let mut idx = Wrapping(next);
        for used in used {
            if used.head >= self.place.size {
                return Err(BadRing::Head { head: used.head, size: self.place.size });
            }
            let at = RING_HEADER_BYTES + usize::from(idx.0 & self.mask) * USED_BYTES;
            let word = |value: u32, offset| {
                // Inside the used ring, and aligned to 4 as that is.
                let at: *mut u32 = self.used.wrapping_add(at + offset).cast();
                // SAFETY: as was just said; mapped as long as `self` lives.
                unsafe { AtomicU32::from_ptr(at) }.store(value.to_le(), Ordering::Relaxed);
            };
            word(u32::from(used.head), 0);
            word(used.len, 4);
            idx += 1;
        }
        Self::store(Self::half_word(self.used, 2), idx.0, Ordering::Release);
        Ok(idx.0)
    }

    /// Whether the driver is to be called now that the used ring's index is `idx`. To be asked
    /// after each [`Split::put`], or after several of them.
    pub(crate) fn wants_call(&mut self, idx: u16) -> bool {
        let idx = Wrapping(idx);
        let old = self.considered.replace(idx);
        // The index is there to be seen before we look for what the driver wants: it sets the
        // event index and then looks for more.
        fence(Ordering::SeqCst);
        if !self.place.event_idx {
            let flags = Self::load(Self::half_word(self.avail, 0), Ordering::Relaxed);
            return flags & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0;
        }
        // Whether the ring was set up with an event that has passed is not known.
        let Some(old) = old else { return true };
        let at = RING_HEADER_BYTES + usize::from(self.place.size) * AVAIL_BYTES;
        let event = Wrapping(Self::load(Self::half_word(self.avail, at), Ordering::Relaxed));
        need_event(event, idx, old)
    }

    /// Asks the driver not to kick for what it makes available from index `next` on. With event
    /// indices: only for one that it cannot reach before this side has taken some.
    pub(crate) fn unwant_kick(&self, next: u16) {
        if self.place.event_idx {
            self.set_avail_event(next.wrapping_add(self.place.size));
        } else {
            let flags = VRING_USED_F_NO_NOTIFY as u16;
            Self::store(Self::half_word(self.used, 0), flags, Ordering::Relaxed);
        }
    }

    /// Asks the driver to kick for what it makes available at index `next`. True if that is there
    /// already: then no kick may come.
    pub(crate) fn want_kick(&self, next: u16) -> bool {
        if self.place.event_idx {
            self.set_avail_event(next);
        } else {
            Self::store(Self::half_word(self.used, 0), 0, Ordering::Relaxed);
        }
        // The wish is there to be seen before we look once more: the driver makes a chain
        // available and then looks for the wish.
        fence(Ordering::SeqCst);
        self.has_more(next)
    }

    /// Names the index whose chain the driver is to kick for.
    fn set_avail_event(&self, index: u16) {
        let at = RING_HEADER_BYTES + usize::from(self.place.size) * USED_BYTES;
        Self::store(Self::half_word(self.used, at), index, Ordering::Relaxed);
    }
}

/// vring_need_event() of linux/virtio_ring.h: whether an index that went from `old` to `new` has
/// passed `event`.
fn need_event(event: Wrapping<u16>, new: Wrapping<u16>, old: Wrapping<u16>) -> bool {
    new - event - Wrapping(1) < new - old
}

#[cfg(test)]
mod tests;
