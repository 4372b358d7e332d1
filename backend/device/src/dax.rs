//! Persistent memory from the side of a program: a mapped file, and stores that survive a power
//! cut in a known order.
//!
//! In: bytes for offsets, words to be published. Out: cache lines written back, fences, or
//! msync() where the mapping is not persistent memory itself.
//! Must not know: what the bytes mean.
//!
//! [`Writer`] holds the protocol: what was stored is noted, written back when it is drained, and
//! an 8-byte word is published only after everything before it is durable. It is generic over
//! [`Domain`], the few things that a processor (or a kernel) offers, so that the same code runs
//! on a [`DaxFile`] and under the checker of its tests, which knows every state that a power cut
//! may leave.

use std::ops::Range;

use rustix::io::Errno;
use smallvec::SmallVec;

mod file;
mod lines;

#[cfg(test)]
mod checker;
#[cfg(test)]
mod tests;

pub use file::{DaxError, DaxFile, Durability};
pub use lines::{LINE_BYTES, WriteBack};

/// From this length on a write bypasses the cache where that is possible: it is durable sooner than
/// through the cache (`benches/dax.rs`), and takes no room there.
pub const STREAM_FROM_BYTES: usize = 256;

/// What stores go through on their way to durability.
///
/// A store is durable for certain once its granule was written back after it, and a fence came
/// after that; or, if it was streamed and streams bypass the cache, once a fence came after it.
/// Before, it may or may not be: caches write back when they like. Only aligned words of 8 bytes
/// are durable as a whole. Offsets and lengths outside of the memory are refused (`EINVAL`).
pub trait Domain {
    /// Size of the memory in bytes.
    fn bytes(&self) -> u64;

    /// Unit of [`Domain::write_back`] and [`Domain::stream`] in bytes, a power of two.
    fn granule(&self) -> u64;

    /// Whether a stream needs no write-back.
    fn stream_bypasses_cache(&self) -> bool;

    /// Stores bytes.
    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno>;

    /// Stores an aligned word in one piece.
    fn store_word(&self, offset: u64, word: u64) -> Result<(), Errno>;

    /// Stores whole granules, bypassing the cache where that is possible.
    fn stream(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno>;

    /// Starts to write back whole granules.
    fn write_back(&self, range: Range<u64>) -> Result<(), Errno>;

    /// Waits for what was streamed and written back.
    fn fence(&self);
}

/// Writes to a domain, in the order that a crash must not break.
///
/// Nothing is durable for certain before [`Writer::drain`]; dropping a writer drains nothing.
#[derive(Debug)]
pub struct Writer<'a, D: Domain> {
    domain: &'a D,
    /// Stored and not yet written back, in granules.
    dirty: SmallVec<[Range<u64>; 8]>,
    /// Streamed since the last fence.
    streamed: bool,
}

impl<'a, D: Domain> Writer<'a, D> {
    /// A writer with nothing to drain.
    pub fn new(domain: &'a D) -> Writer<'a, D> {
        Writer { domain, dirty: SmallVec::new(), streamed: false }
    }

    /// Copies `bytes` to `offset`: through the cache, or past it from [`STREAM_FROM_BYTES`] on.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.len() < STREAM_FROM_BYTES {
            self.write_cached(offset, bytes)
        } else {
            self.write_streamed(offset, bytes)
        }
    }

    /// Copies `bytes` to `offset` through the cache: they are read again soon.
    pub fn write_cached(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.domain.store(offset, bytes)?;
        self.note(offset..offset + bytes.len() as u64);
        Ok(())
    }

    /// Copies `bytes` to `offset` past the cache, where that is possible: whole granules, that is;
    /// the ends are stored as by [`Writer::write_cached`].
    pub fn write_streamed(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let granule = self.domain.granule();
        let end = offset.checked_add(bytes.len() as u64).ok_or(Errno::INVAL)?;
        let first = offset.checked_next_multiple_of(granule).ok_or(Errno::INVAL)?;
        let last = end / granule * granule;
        if !self.domain.stream_bypasses_cache() || first >= last {
            return self.write_cached(offset, bytes);
        }
        let (head, rest) = bytes.split_at((first - offset) as usize);
        let (middle, tail) = rest.split_at((last - first) as usize);
        self.write_cached(offset, head)?;
        self.domain.stream(first, middle)?;
        self.streamed = true;
        self.write_cached(last, tail)
    }

    /// Notes bytes that somebody else stored, to be written back by the next drain.
    pub fn note(&mut self, range: Range<u64>) {
        let granule = self.domain.granule();
        let start = range.start / granule * granule;
        // Rounded up: the last granule may end behind the memory, which is mapped that far.
        let end = range.end.checked_next_multiple_of(granule).unwrap_or(range.end);
        match self.dirty.last_mut() {
            Some(last) if start <= last.end && end >= last.start => {
                *last = last.start.min(start)..last.end.max(end);
            }
            _ => self.dirty.push(start..end),
        }
    }

    /// Everything written before is durable. Costs nothing if there is nothing to wait for.
    pub fn drain(&mut self) -> Result<(), Errno> {
        if self.dirty.is_empty() && !self.streamed {
            return Ok(());
        }
        for range in &self.dirty {
            self.domain.write_back(range.clone())?;
        }
        self.domain.fence();
        self.dirty.clear();
        self.streamed = false;
        Ok(())
    }

    /// Stores `word` at `offset`, a multiple of 8, so that it is durable on return, and never
    /// durable before everything written before it.
    pub fn publish(&mut self, offset: u64, word: u64) -> Result<(), Errno> {
        self.drain()?;
        self.domain.store_word(offset, word)?;
        self.note(offset..offset + 8);
        self.drain()
    }
}
