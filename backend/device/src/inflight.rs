//! The in-flight area: which heads a device has taken from its rings and not returned, in memory
//! that the front-end keeps while the daemon is dead (vhost-user.rst, "Inflight I/O tracking").
//!
//! In: heads as they are taken and returned. Out: after a restart, the heads that were taken and
//! never returned, in the order in which they were taken.
//! Must not know: chains, storage, how the area travels.
//!
//! The front-end can write to the area at any time: everything read from it is checked, and no
//! walk through it is longer than the queue. What saves us from a half-written state is the order
//! of the stores alone: a process that is killed has executed all stores before some point of the
//! program, and none after it.
//!
//! | offset | field of a queue's region | |
//! |---|---|---|
//! | 0 | `features` u64 | 0 |
//! | 8 | `version` u16 | 1; 0: never used |
//! | 10 | `desc_num` u16 | entries |
//! | 12 | `last_batch_head` u16 | newest of those that are being returned |
//! | 14 | `used_idx` u16 | index of the used ring when nothing was being returned |
//! | 16 + 16 n | entry n: `inflight` u8, 5 of padding, `next` u16, `counter` u64 | |

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use thiserror::Error;

/// Bytes of a region before its entries.
const REGION_HEADER_BYTES: usize = 16;
/// Bytes of an entry.
const ENTRY_BYTES: usize = 16;
/// Regions begin at multiples of a cache line.
const ALIGN: usize = 64;
/// The version of the layout.
const VERSION: u16 = 1;
/// Bytes behind the regions that are ours alone.
const TAIL_BYTES: usize = 64;
/// Says that the tail is there ("racegate", little endian).
const TAIL_MAGIC: u64 = u64::from_le_bytes(*b"racegate");

/// Payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    pub mmap_size: u64,
    pub mmap_offset: u64,
    pub num_queues: u16,
    pub queue_size: u16,
}

impl Description {
    /// Bytes on the wire: 20, and padding whose content says nothing.
    pub(crate) const WIRE_BYTES: usize = 24;

    /// From a payload, which front-ends send with and without its padding.
    pub(crate) fn parse(payload: &[u8]) -> Option<Description> {
        let (mmap_size, rest) = payload.split_first_chunk()?;
        let (mmap_offset, rest) = rest.split_first_chunk()?;
        let (num_queues, rest) = rest.split_first_chunk()?;
        let (queue_size, _) = rest.split_first_chunk()?;
        Some(Description {
            mmap_size: u64::from_ne_bytes(*mmap_size),
            mmap_offset: u64::from_ne_bytes(*mmap_offset),
            num_queues: u16::from_ne_bytes(*num_queues),
            queue_size: u16::from_ne_bytes(*queue_size),
        })
    }

    /// As a payload.
    pub(crate) fn to_bytes(self) -> [u8; Self::WIRE_BYTES] {
        let mut bytes = [0; Self::WIRE_BYTES];
        bytes[..8].copy_from_slice(&self.mmap_size.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.mmap_offset.to_ne_bytes());
        bytes[16..18].copy_from_slice(&self.num_queues.to_ne_bytes());
        bytes[18..20].copy_from_slice(&self.queue_size.to_ne_bytes());
        bytes
    }

    fn region_bytes(self) -> usize {
        (REGION_HEADER_BYTES + ENTRY_BYTES * usize::from(self.queue_size)).next_multiple_of(ALIGN)
    }

    fn regions_bytes(self) -> usize {
        self.region_bytes() * usize::from(self.num_queues)
    }
}

/// Why an area cannot be used, or what it says cannot be so.
#[derive(Debug, Error)]
pub(crate) enum BadArea {
    #[error(
        "{queues} queues of {size} descriptors: the device has at most {most_queues} of {most_size}"
    )]
    Shape { queues: u16, size: u16, most_queues: u16, most_size: u16 },
    #[error("{got} bytes at offset {offset}: {needed} are needed, in a file of {file}")]
    Size { got: u64, offset: u64, needed: usize, file: u64 },
    #[error("its file may shrink: it is not one that a back-end made")]
    MayShrink,
    #[error("the system refuses")]
    System(#[from] io::Error),
    #[error("queue {queue}: the area has entries for {entries} descriptors, the ring has {size}")]
    Ring { queue: u16, entries: u16, size: u16 },
    #[error("queue {queue}: version {version} with {entries} entries: not what was written there")]
    Version { queue: u16, version: u16, entries: u16 },
    #[error(
        "queue {queue}: the used ring is {ahead} ahead of the area, more than the ring is long"
    )]
    Ahead { queue: u16, ahead: u16 },
    #[error("queue {queue}: entry {entry} does not exist")]
    Entry { queue: u16, entry: u16 },
}

/// A mapped area.
#[derive(Debug)]
pub(crate) struct Area {
    base: NonNull<u8>,
    len: usize,
    shape: Description,
}

// SAFETY: the mapping belongs to no thread, and is only accessed through atomics.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// Makes an area for that many queues of that size; gives its file and what to say of it.
    pub(crate) fn create(
        num_queues: u16,
        queue_size: u16,
    ) -> Result<(OwnedFd, Description), BadArea> {
        let mut shape = Description { mmap_size: 0, mmap_offset: 0, num_queues, queue_size };
        shape.mmap_size = (shape.regions_bytes() + TAIL_BYTES) as u64;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("racegate-inflight", flags).map_err(io::Error::from)?);
        file.set_len(shape.mmap_size)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(io::Error::from)?;
        Ok((file.into(), shape))
    }

    /// Maps an area that a front-end kept, for a device of at most that many queues of that size.
    pub(crate) fn open(
        file: impl AsFd,
        shape: Description,
        most_queues: u16,
        most_size: u16,
    ) -> Result<Area, BadArea> {
        let Description { mmap_size, mmap_offset, num_queues: queues, queue_size: size } = shape;
        if queues == 0 || size == 0 || queues > most_queues || size > most_size {
            return Err(BadArea::Shape { queues, size, most_queues, most_size });
        }
        let needed = shape.regions_bytes();
        let file_bytes = fstat(&file).map_err(io::Error::from)?.st_size.cast_unsigned();
        let end = mmap_offset.checked_add(mmap_size);
        if mmap_size < needed as u64 || end.is_none_or(|end| end > file_bytes) {
            let (got, offset) = (mmap_size, mmap_offset);
            return Err(BadArea::Size { got, offset, needed, file: file_bytes });
        }
        // Or a front-end that cuts it would end us with SIGBUS.
        if !fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK)) {
            return Err(BadArea::MayShrink);
        }
        let len = (mmap_size as usize).min(needed + TAIL_BYTES);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let mapped = unsafe {
            mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                mmap_offset,
            )
        };
        let base = NonNull::new(mapped.map_err(io::Error::from)?.cast::<u8>())
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Area { base, len, shape })
    }

    /// Whether the area has room for what only we put there.
    fn has_tail(&self) -> bool {
        self.len >= self.shape.regions_bytes() + TAIL_BYTES
    }

    /// The value of the `writeback` byte of the configuration space, if one was kept.
    pub(crate) fn writeback(&self) -> Option<bool> {
        let at = self.shape.regions_bytes();
        if !self.has_tail() || self.u64_at(at).load(Ordering::Relaxed) != TAIL_MAGIC {
            return None;
        }
        Some(self.u8_at(at + 8).load(Ordering::Relaxed) != 0)
    }

    /// Keeps the value of the `writeback` byte.
    pub(crate) fn keep_writeback(&self, on: bool) {
        if self.has_tail() {
            let at = self.shape.regions_bytes();
            self.u8_at(at + 8).store(u8::from(on), Ordering::Release);
            self.u64_at(at).store(TAIL_MAGIC, Ordering::Release);
        }
    }

    fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
        assert!(offset.is_multiple_of(bytes) && offset + bytes <= self.len);
        // SAFETY: inside the mapping, as was just checked.
        unsafe { self.base.as_ptr().add(offset) }
    }

    fn u8_at(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: `at` is inside the mapping, which lives as long as `self`; others access it at
        // the same time, which is what atomics are for.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1)) }
    }

    fn u16_at(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as in `u8_at`; aligned, because offset and mapping are.
        unsafe { AtomicU16::from_ptr(self.at(offset, 2).cast()) }
    }

    fn u64_at(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `u16_at`.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: mapped in `open`, unmapped once, and no address of it outlives `self`. Failure
        // would only leak.
        let _ = unsafe { munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
    }
}

/// One queue's part of an area, written by the thread of that queue alone.
#[derive(Debug)]
pub(crate) struct Tracker {
    area: Arc<Area>,
    queue: u16,
    region: usize,
    entries: u16,
    /// Of the next head that is taken.
    counter: u64,
}

impl Tracker {
    /// The part of `queue`, whose ring has `ring_size` descriptors; `None` if the area has none.
    pub(crate) fn new(
        area: &Arc<Area>,
        queue: u16,
        ring_size: u16,
    ) -> Result<Option<Tracker>, BadArea> {
        let shape = area.shape;
        if queue >= shape.num_queues {
            return Ok(None);
        }
        let entries = shape.queue_size;
        if ring_size > entries {
            return Err(BadArea::Ring { queue, entries, size: ring_size });
        }
        let region = shape.region_bytes() * usize::from(queue);
        Ok(Some(Tracker { area: area.clone(), queue, region, entries, counter: 0 }))
    }

    /// After a start: the heads that are in flight, in the order in which they were taken, where
    /// `used_idx` is what the used ring says. Those that an earlier process was just returning
    /// are not among them if the ring has them.
    pub(crate) fn recover(&mut self, used_idx: u16) -> Result<Vec<u16>, BadArea> {
        let queue = self.queue;
        match (self.version().load(Ordering::Acquire), self.desc_num().load(Ordering::Acquire)) {
            (0, _) => {
                self.begin(used_idx);
                return Ok(Vec::new());
            }
            (VERSION, entries) if entries == self.entries => {}
            (version, entries) => return Err(BadArea::Version { queue, version, entries }),
        }
        let ahead = used_idx.wrapping_sub(self.used_idx().load(Ordering::Acquire));
        if ahead > self.entries && (0..self.entries).any(|head| self.is_in_flight(head)) {
            return Err(BadArea::Ahead { queue, ahead });
        }
        // Whatever else the list may be, it begins with those that the used ring got last; a
        // ring that starts anew has nothing in flight.
        let mut head = self.last_batch_head().load(Ordering::Acquire);
        for _ in 0..if ahead > self.entries { 0 } else { ahead } {
            if head >= self.entries {
                return Err(BadArea::Entry { queue, entry: head });
            }
            self.in_flight(head).store(0, Ordering::Release);
            head = self.next(head).load(Ordering::Acquire);
        }
        self.used_idx().store(used_idx, Ordering::Release);

        let mut taken: Vec<(u64, u16)> = (0..self.entries)
            .filter(|head| self.is_in_flight(*head))
            .map(|head| (self.counter_of(head).load(Ordering::Acquire), head))
            .collect();
        taken.sort_unstable();
        self.counter = taken.last().map_or(0, |(newest, _)| newest.wrapping_add(1));
        Ok(taken.into_iter().map(|(_, head)| head).collect())
    }

    /// Heads were taken from the avail ring, in this order, and nothing was done with them yet.
    pub(crate) fn taken(&mut self, heads: &[u16]) {
        for &head in heads {
            // One that does not exist breaks the queue later.
            if head < self.entries {
                self.counter_of(head).store(self.counter, Ordering::Release);
                self.in_flight(head).store(1, Ordering::Release);
                self.counter = self.counter.wrapping_add(1);
            }
        }
    }

    /// Heads are about to be returned: the index of the used ring will be stored once for all of
    /// them, or not at all.
    pub(crate) fn returning(&self, heads: impl Iterator<Item = u16>) {
        for head in heads.filter(|head| *head < self.entries) {
            let last = self.last_batch_head().load(Ordering::Relaxed);
            self.next(head).store(last, Ordering::Release);
            self.last_batch_head().store(head, Ordering::Release);
        }
    }

    /// They were returned: the used ring's index is `used_idx` now.
    pub(crate) fn returned(&self, heads: impl Iterator<Item = u16>, used_idx: u16) {
        for head in heads.filter(|head| *head < self.entries) {
            self.in_flight(head).store(0, Ordering::Release);
        }
        self.used_idx().store(used_idx, Ordering::Release);
    }

    /// The ring was stopped, and everything that could be answered was: nothing is in flight.
    pub(crate) fn begin(&self, used_idx: u16) {
        for head in 0..self.entries {
            self.in_flight(head).store(0, Ordering::Release);
        }
        self.desc_num().store(self.entries, Ordering::Release);
        self.used_idx().store(used_idx, Ordering::Release);
        self.version().store(VERSION, Ordering::Release);
    }

    fn version(&self) -> &AtomicU16 {
        self.area.u16_at(self.region + 8)
    }

    fn desc_num(&self) -> &AtomicU16 {
        self.area.u16_at(self.region + 10)
    }

    fn last_batch_head(&self) -> &AtomicU16 {
        self.area.u16_at(self.region + 12)
    }

    fn used_idx(&self) -> &AtomicU16 {
        self.area.u16_at(self.region + 14)
    }

    fn entry(&self, head: u16) -> usize {
        self.region + REGION_HEADER_BYTES + ENTRY_BYTES * usize::from(head)
    }

    fn in_flight(&self, head: u16) -> &AtomicU8 {
        self.area.u8_at(self.entry(head))
    }

    fn is_in_flight(&self, head: u16) -> bool {
        self.in_flight(head).load(Ordering::Acquire) != 0
    }

    fn next(&self, head: u16) -> &AtomicU16 {
        self.area.u16_at(self.entry(head) + 6)
    }

    fn counter_of(&self, head: u16) -> &AtomicU64 {
        self.area.u64_at(self.entry(head) + 8)
    }
}

#[cfg(test)]
mod tests;
