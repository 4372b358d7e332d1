//! A disk that starts as an image and never changes it: copy on write, in memory.
//!
//! In: operations. Out: results, on the spot; [`Storage::reset`] drops every change.
//! Must not know: virtqueues, requests.
//!
//! A page of 4 KiB is *own* once anything in it was written; own pages live in a mapping as
//! large as the disk, the others are read from the base. Reading and writing own pages takes no
//! lock. Making a page own does (one lock per 2 MiB of disk, striped), because the part of the
//! page that is not written has to come from the base, and must not come over a write that
//! another queue did meanwhile.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::image::{Image, Use};
use super::mapping::{Mapping, PAGE};
use super::{Channel, Io, IoResult, SECTOR_BYTES, Storage, StorageError, Submitted};
use crate::segments::Segments;

/// Pages under one lock.
const CHUNK_PAGES: u64 = 512;
/// Locks; chunks share them round robin.
const STRIPES: usize = 64;

/// A copy-on-write disk over an image that stays as it is.
#[derive(Debug)]
pub struct OverlayStorage {
    shared: Arc<Overlay>,
}

impl OverlayStorage {
    /// Opens, checks and locks (for reading) the base image at `path`.
    pub fn open(path: &Path) -> Result<OverlayStorage, StorageError> {
        let base = Image::open(path, Use { read_only: true, direct: false })?;
        let bytes = base.sectors() * SECTOR_BYTES;
        // Huge pages would make of each sector written 2 MiB of memory.
        let mapping = Mapping::new(bytes, false)?;
        let pages = mapping.len() / PAGE;
        let own = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let stripes = (0..STRIPES).map(|_| Mutex::new(())).collect();
        let shared = Arc::new(Overlay { base, bytes, mapping, own, stripes });
        Ok(OverlayStorage { shared })
    }

    /// Bytes of memory that changes take: 4 KiB for each page that was written.
    pub fn own_bytes(&self) -> u64 {
        let pages: u64 =
            self.shared.own.iter().map(|w| u64::from(w.load(Ordering::Relaxed).count_ones())).sum();
        pages * PAGE
    }
}

impl Storage for OverlayStorage {
    fn capacity_sectors(&self) -> u64 {
        self.shared.bytes / SECTOR_BYTES
    }

    fn channel(&self) -> Result<Box<dyn Channel>, StorageError> {
        Ok(Box::new(OverlayChannel { shared: self.shared.clone() }))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let shared = &self.shared;
        shared.runs(offset, buf.len() as u64, |own, range| {
            let to = &mut buf[(range.start - offset) as usize..(range.end - offset) as usize];
            if own {
                shared.mapping.read_slice(range.start, to)
            } else {
                shared.base.read_at(range.start, to)
            }
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let shared = &self.shared;
        shared.write_pages(offset, bytes.len() as u64, |at, range| {
            shared.mapping.write_slice(at, &bytes[range.start as usize..range.end as usize])
        })
    }

    fn sync(&self) -> Result<(), Errno> {
        Ok(())
    }

    /// Requests in flight meanwhile see either state.
    fn reset(&self) -> Result<(), StorageError> {
        let shared = &self.shared;
        // With every lock held nobody is between filling a page and making it own, so a page
        // that is own after this was made so after this.
        let _locks: Vec<MutexGuard<'_, ()>> =
            (0..STRIPES as u64).map(|chunk| shared.lock_chunk(chunk)).collect();
        for word in &shared.own {
            word.store(0, Ordering::Release);
        }
        let bytes = shared.mapping.len();
        shared.mapping.zero(0, bytes).map_err(|source| StorageError::Memory { bytes, source })
    }
}

#[derive(Debug)]
struct Overlay {
    base: Image,
    bytes: u64,
    mapping: Mapping,
    /// One bit per page.
    own: Vec<AtomicU64>,
    stripes: Vec<Mutex<()>>,
}

impl Overlay {
    fn is_own(&self, page: u64) -> bool {
        self.own
            .get((page / 64) as usize)
            .is_some_and(|word| word.load(Ordering::Acquire) & (1 << (page % 64)) != 0)
    }

    fn make_own(&self, pages: Range<u64>) {
        for page in pages {
            if let Some(word) = self.own.get((page / 64) as usize) {
                word.fetch_or(1 << (page % 64), Ordering::Release);
            }
        }
    }

    fn lock_chunk(&self, chunk: u64) -> MutexGuard<'_, ()> {
        // The lock guards no value, so a thread that died with it left nothing half done.
        self.stripes[(chunk % STRIPES as u64) as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the range is inside the disk.
    fn check(&self, offset: u64, len: u64) -> Result<u64, Errno> {
        offset.checked_add(len).filter(|end| *end <= self.bytes).ok_or(Errno::INVAL)
    }

    /// Calls `each` with the maximal runs of own and not own pages that cover the range.
    fn runs(
        &self,
        offset: u64,
        len: u64,
        mut each: impl FnMut(bool, Range<u64>) -> IoResult,
    ) -> IoResult {
        let end = self.check(offset, len)?;
        let mut at = offset;
        while at < end {
            let own = self.is_own(at / PAGE);
            let mut until = (at / PAGE + 1) * PAGE;
            while until < end && self.is_own(until / PAGE) == own {
                until += PAGE;
            }
            let until = until.min(end);
            each(own, at..until)?;
            at = until;
        }
        Ok(())
    }

    fn read(&self, offset: u64, mut to: Segments) -> IoResult {
        let len = to.len();
        // Most reads are of one kind: then the base can fill the segments by itself.
        if len > 0 && self.check(offset, len).is_ok() {
            let (first, last) = (offset / PAGE, (offset + len - 1) / PAGE);
            if (first..=last).all(|page| !self.is_own(page)) {
                return self.base.read(offset, to);
            }
        }
        self.runs(offset, len, |own, range| {
            let n = range.end - range.start;
            if own {
                self.mapping.read(range.start, &to, range.start - offset, n)
            } else {
                self.base.read(range.start, to.slice(range.start - offset, n))
            }
        })?;
        to.advance(len);
        Ok(())
    }

    fn write(&self, offset: u64, from: &Segments) -> IoResult {
        self.write_pages(offset, from.len(), |at, range| {
            self.mapping.write(at, from, range.start, range.end - range.start)
        })
    }

    /// Makes the pages of a range own; `put` is called with a place on the disk and the part of
    /// the data that goes there, for each page.
    fn write_pages(
        &self,
        offset: u64,
        len: u64,
        put: impl Fn(u64, Range<u64>) -> IoResult,
    ) -> IoResult {
        let end = self.check(offset, len)?;
        let mut at = offset;
        while at < end {
            let page = at / PAGE;
            let until = ((page + 1) * PAGE).min(end);
            let part = at - offset..until - offset;
            if self.is_own(page) {
                put(at, part)?;
            } else {
                let _lock = self.lock_chunk(page / CHUNK_PAGES);
                if !self.is_own(page) && until - at < PAGE {
                    self.fill(page)?;
                }
                put(at, part)?;
                self.make_own(page..page + 1);
            }
            at = until;
        }
        Ok(())
    }

    /// Copies a page of the base into the mapping. The caller holds the chunk's lock.
    fn fill(&self, page: u64) -> IoResult {
        let mut bytes = [0; PAGE as usize];
        let start = page * PAGE;
        // The last page may be shorter on the disk than in the mapping.
        let n = PAGE.min(self.bytes - start) as usize;
        self.base.read_at(start, &mut bytes[..n])?;
        self.mapping.write_slice(start, &bytes)
    }

    fn zero(&self, offset: u64, len: u64) -> IoResult {
        let end = self.check(offset, len)?;
        let mut at = offset;
        while at < end {
            let chunk = at / (PAGE * CHUNK_PAGES);
            let until = ((chunk + 1) * PAGE * CHUNK_PAGES).min(end);
            let _lock = self.lock_chunk(chunk);
            let (first, last) = (at / PAGE, (until - 1) / PAGE);
            // Pages at the edges that keep something of the base.
            for (page, whole) in [
                (first, at.is_multiple_of(PAGE) && (first < last || until.is_multiple_of(PAGE))),
                (last, until.is_multiple_of(PAGE) && (first < last || at.is_multiple_of(PAGE))),
            ] {
                if !whole && !self.is_own(page) {
                    self.fill(page)?;
                    self.make_own(page..page + 1);
                }
            }
            self.mapping.zero(at, until - at)?;
            self.make_own(first..last + 1);
            at = until;
        }
        Ok(())
    }
}

struct OverlayChannel {
    shared: Arc<Overlay>,
}

impl OverlayChannel {
    fn run(&self, io: Io) -> IoResult {
        match io {
            Io::Read { offset, to } => self.shared.read(offset, to),
            Io::Write { offset, from, .. } => self.shared.write(offset, &from),
            Io::Flush => Ok(()),
            Io::Discard { offset, len } | Io::WriteZeroes { offset, len, .. } => {
                self.shared.zero(offset, len)
            }
        }
    }
}

impl Channel for OverlayChannel {
    fn at_once(&mut self, io: &mut Io) -> Option<IoResult> {
        Some(self.run(std::mem::replace(io, Io::Flush)))
    }

    fn submit(&mut self, _token: u64, io: Io) -> Submitted {
        Submitted::Done(self.run(io))
    }
}
