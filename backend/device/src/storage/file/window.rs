//! A window onto an image in the page cache: what is there is read without a system call.
//!
//! In: ranges that were just read from the cache; ranges to read. Out: their bytes, if they can be
//! had without waiting.
//! Must not know: io_uring, requests.
//!
//! A mapping of a file is read at less than half the cost of a system call, but one that is not in
//! memory keeps the whole queue waiting. So a page is read here only once it was found in the cache
//! twice, and entered into the page tables then. The kernel may take it away again without a word:
//! the thread's major faults tell of that, and everything is learnt anew.

use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::guarded::{self, Guarded};
use crate::prefetch::prefetch_start;
use crate::segments::Segments;
use crate::storage::SECTOR_BYTES;
use crate::storage::image::Image;
use crate::storage::mapping::PAGE;

/// Found in the cache once.
const FOUND: u64 = 1;
/// In the page tables.
const HERE: u64 = 2;
/// Bits of a page.
const BITS: u64 = 2;
/// Pages of a word.
const PAGES: u64 = u64::BITS as u64 / BITS;

/// How much of an image there is a window onto, from its beginning: what is known of it takes
/// 16 MiB then. What lies beyond is read by system calls.
const WIDEST_BYTES: u64 = 256 << 30;

/// Longest read: more would keep the rest of the queue waiting by itself.
const MOST_BYTES: u64 = 256 << 10;

/// Reads between two looks at the thread's faults.
const LOOK: u32 = 64;

/// Reads that are not made here after one that waited; twice as many after the next, unless as
/// many went well in between.
const REST: u32 = 16_384;
const REST_MOST: u32 = 1 << 24;

/// One thread's.
pub(super) struct Window {
    view: Option<View>,
    /// [`BITS`] for each page. Not touched where nothing was read.
    pages: Vec<u64>,
    /// Reads until the next look at the faults.
    unlooked: u32,
    /// Major faults of the thread when they were last looked at.
    faults: Option<i64>,
    /// Reads to pass by.
    rest: u32,
    /// What `rest` became after the last one that waited, less what went well since.
    penalty: u32,
}

/// The mapping.
struct View {
    base: NonNull<u8>,
    len: u64,
    guarded: Guarded,
}

// SAFETY: the mapping belongs to no thread, and is read by raw copies only.
unsafe impl Send for View {}

impl Window {
    /// A window onto the image, unless the system does not want us to have one.
    pub(super) fn new(image: &Image) -> Window {
        let view = View::new(image);
        let pages = view.as_ref().map_or(0, |view| view.len.div_ceil(PAGE * PAGES) as usize);
        Window { view, pages: vec![0; pages], ..Window::closed() }
    }

    /// None.
    pub(super) fn closed() -> Window {
        Window { view: None, pages: Vec::new(), unlooked: LOOK, faults: None, rest: 0, penalty: 0 }
    }

    /// Reads the whole of `to` from byte `offset` of the image, if that waits for nothing. False:
    /// it was not read.
    #[inline]
    pub(super) fn read(&mut self, offset: u64, to: &Segments) -> bool {
        if self.view.is_none() || to.len() > MOST_BYTES {
            return false;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return false;
        }
        if !self.all_here(offset, to.len()) {
            return false;
        }
        self.unlooked -= 1;
        if self.unlooked == 0 {
            self.look_at_faults();
        }
        let Some(view) = &self.view else { return false };
        if view.read(offset, to) {
            return true;
        }
        // The file shrank, or cannot be read: the system call says what is the matter.
        *self = Window::closed();
        false
    }

    /// A read of that range follows soon.
    #[inline]
    pub(super) fn soon(&self, offset: u64, len: u64) {
        if let Some(view) = &self.view
            && self.all_here(offset, 1)
        {
            prefetch_start(view.base.as_ptr().wrapping_add(offset as usize), len);
        }
    }

    /// That range was just read from the page cache.
    pub(super) fn found(&mut self, offset: u64, len: u64) {
        let Some(view) = self.view.as_ref().filter(|_| self.rest == 0 && len <= MOST_BYTES) else {
            return;
        };
        let Some((first, last)) = pages(offset, len).filter(|(_, last)| *last < view.len / PAGE)
        else {
            return;
        };
        for page in first..=last {
            let (word, shift) = place(page);
            let Some(word) = self.pages.get_mut(word) else { return };
            match (*word >> shift) & (FOUND | HERE) {
                0 => *word |= FOUND << shift,
                FOUND if view.enter(page) => *word |= HERE << shift,
                FOUND => {
                    *self = Window::closed();
                    return;
                }
                _ => {}
            }
        }
    }

    #[inline]
    fn all_here(&self, offset: u64, len: u64) -> bool {
        pages(offset, len).is_some_and(|(first, last)| {
            (first..=last).all(|page| {
                let (word, shift) = place(page);
                self.pages.get(word).is_some_and(|word| (word >> shift) & HERE != 0)
            })
        })
    }

    /// Forgets what is here if the last reads had to wait for some of it.
    #[cold]
    fn look_at_faults(&mut self) {
        self.unlooked = LOOK;
        let now = major_faults();
        if self.faults.is_some_and(|before| before != now) {
            // New memory, which is not there until it is touched.
            self.pages = vec![0; self.pages.len()];
            self.penalty = self.penalty.saturating_mul(2).clamp(REST, REST_MOST);
            self.rest = self.penalty;
        } else {
            self.penalty = self.penalty.saturating_sub(LOOK);
        }
        self.faults = Some(now);
    }
}

/// First and last page of a range that is not empty.
#[inline]
fn pages(offset: u64, len: u64) -> Option<(u64, u64)> {
    let last = offset.checked_add(len.checked_sub(1)?)?;
    Some((offset / PAGE, last / PAGE))
}

/// The word of a page, and how far its bits are shifted there.
#[inline]
fn place(page: u64) -> (usize, u64) {
    ((page / PAGES) as usize, page % PAGES * BITS)
}

impl View {
    fn new(image: &Image) -> Option<View> {
        let guarded = Guarded::install()?;
        let len = (image.sectors() * SECTOR_BYTES / PAGE * PAGE).min(WIDEST_BYTES);
        // SAFETY: a new mapping at an address of the kernel's choice, read by raw copies only.
        let base = unsafe {
            mmap(
                ptr::null_mut(),
                len as usize,
                ProtFlags::READ,
                MapFlags::SHARED,
                image.buffered_fd(),
                0,
            )
        };
        let base = NonNull::new(base.ok()?.cast::<u8>())?;
        // What is not touched is not wanted either.
        // SAFETY: the advice changes no contents.
        let _ = unsafe { madvise(base.as_ptr().cast(), len as usize, Advice::Random) };
        Some(View { base, len, guarded })
    }

    /// Enters a page that is in the cache into the page tables, with the ones around it that are.
    /// False: the system does not know how.
    fn enter(&self, page: u64) -> bool {
        // SAFETY: a page of the mapping (`found` has looked); the advice changes no contents.
        let entered = unsafe {
            let at = self.base.as_ptr().add((page * PAGE) as usize);
            madvise(at.cast(), PAGE as usize, Advice::LinuxPopulateRead)
        };
        entered.is_ok()
    }

    /// False: some of it is gone.
    #[inline]
    fn read(&self, offset: u64, to: &Segments) -> bool {
        let at = self.base.as_ptr().wrapping_add(offset as usize);
        let range = at as usize..at as usize + to.len() as usize;
        // SAFETY: pages that are HERE lie in the mapping, which is this thread's alone.
        let read = unsafe {
            guarded::read(self.guarded, range, || to.write_raw(0, at, to.len() as usize))
        };
        read.is_ok()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, unmapped once, and no address of it outlives `self`. Failure
        // would only leak.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len as usize) };
    }
}

/// Faults of this thread that waited for a disk.
fn major_faults() -> i64 {
    // SAFETY: all zeroes is a valid rusage, which the call fills.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
        usage.ru_majflt
    }
}

#[cfg(test)]
mod tests;
