//! What is known of each page: whether the host caches it, and whether its next READ is a touch.
//!
//! In: READs, answers, pages thrown out. Out: which pages to throw out, which READ to fail.
//! Must not know: why a page matters.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use pipeline::Nanos;

/// The host's page cache may have it.
const CACHED: u8 = 1;
/// Its last READ was failed on purpose: it is in the cache, not up to date, and its next READ is
/// one that somebody waits for.
const PRIMED: u8 = 2;
/// A READ of it is parked.
const PARKED: u8 = 4;
/// It is in the queue of pages to be thrown out.
const QUEUED: u8 = 8;

/// For so long after a READ of a page was failed no other is. A fault retries once; if the page was
/// thrown out before it came to that, a second failure would be a SIGBUS, which ends the VMM. On a
/// busy host a thread can wait for its processor for tens of milliseconds. Until then whoever reads
/// around is taken for a toucher.
const SAFE_NS: u64 = 150_000_000;

/// All pages of a file.
#[derive(Debug)]
pub(super) struct Pages {
    flags: Vec<AtomicU8>,
    /// When READs were failed on purpose, of the pages of which that ever happened.
    failed: Mutex<HashMap<u64, Nanos>>,
}

impl Pages {
    pub(super) fn new(count: u64) -> Pages {
        let flags = (0..count).map(|_| AtomicU8::new(0)).collect();
        Pages { flags, failed: Mutex::default() }
    }

    /// How many pages there are.
    pub(super) fn count(&self) -> u64 {
        self.flags.len() as u64
    }

    fn flags(&self, page: u64) -> u8 {
        self.flags.get(page as usize).map_or(0, |flags| flags.load(Ordering::Acquire))
    }

    /// Sets bits; gives what there was.
    fn set(&self, page: u64, bits: u8) -> u8 {
        self.flags.get(page as usize).map_or(0, |flags| flags.fetch_or(bits, Ordering::AcqRel))
    }

    fn clear(&self, page: u64, bits: u8) -> u8 {
        self.flags.get(page as usize).map_or(0, |flags| flags.fetch_and(!bits, Ordering::AcqRel))
    }

    /// A READ of a page whose touches are wanted has come. `true`: it is a touch; `false`: it is
    /// to be failed, and the next one is.
    pub(super) fn is_touch(&self, page: u64, now: Nanos) -> bool {
        if self.clear(page, PRIMED) & PRIMED != 0 {
            return true;
        }
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.get(&page).is_some_and(|before| now.since(*before) < SAFE_NS) {
            return true;
        }
        failed.insert(page, now);
        self.set(page, PRIMED);
        false
    }

    /// A READ of a page has come that is served whoever asks.
    pub(super) fn read_plainly(&self, page: u64) {
        if self.flags(page) & PRIMED != 0 {
            self.clear(page, PRIMED);
        }
    }

    /// A READ is parked.
    pub(super) fn park(&self, page: u64) {
        self.set(page, PARKED);
    }

    /// The READ is about to be answered, with an error if not `cached`.
    pub(super) fn answer(&self, page: u64, cached: bool) {
        if self.flags(page) & PARKED != 0 {
            self.clear(page, PARKED);
        }
        if cached {
            self.set(page, CACHED);
        }
    }

    /// Puts a page into the queue; `false`: it is there already.
    pub(super) fn enqueue(&self, page: u64) -> bool {
        self.set(page, QUEUED) & QUEUED == 0
    }

    /// Takes a page out of the queue, and out of the cache: `true` if it is to be thrown out. A
    /// page that is being read waits for the next time, one that is primed has no content.
    pub(super) fn take(&self, page: u64) -> bool {
        let before = self.clear(page, QUEUED);
        if before & CACHED == 0 || before & (PRIMED | PARKED) != 0 {
            return false;
        }
        self.clear(page, CACHED);
        true
    }

    /// Whether the host may cache the page.
    pub(super) fn is_cached(&self, page: u64) -> bool {
        self.flags(page) & CACHED != 0
    }
}

#[cfg(test)]
mod tests {
    use pipeline::Nanos;

    use super::{Pages, SAFE_NS};

    /// A page's READs as the kernel sends them: read around, touched, thrown out, touched.
    #[test]
    fn every_other_read_is_a_touch() {
        let pages = Pages::new(4);
        assert!(!pages.is_touch(1, Nanos(0)), "somebody may have read around");
        assert!(pages.is_touch(1, Nanos(1)), "a page that is not up to date is touched");
        pages.answer(1, true);
        assert!(pages.take(1));
        assert!(!pages.is_cached(1));
        assert!(!pages.is_touch(1, Nanos(1 + SAFE_NS)));
        assert!(!pages.is_touch(2, Nanos(1 + SAFE_NS)), "pages do not know each other");
        assert!(pages.is_touch(1, Nanos(2 * SAFE_NS)));
    }

    /// No fault meets two failures.
    #[test]
    fn not_failed_twice_in_a_row() {
        let pages = Pages::new(1);
        assert!(!pages.is_touch(0, Nanos(0)), "a fault's first try");
        assert!(pages.is_touch(0, Nanos(10)), "another thread's fault takes its place");
        pages.answer(0, true);
        assert!(pages.take(0));
        assert!(pages.is_touch(0, Nanos(20)), "the first fault's second try");
    }

    #[test]
    fn pages_at_work_are_not_thrown_out() {
        let pages = Pages::new(2);
        assert!(!pages.take(0), "nothing to throw out");
        pages.answer(0, true);
        assert!(pages.enqueue(0) && !pages.enqueue(0));
        pages.park(0);
        assert!(!pages.take(0), "it is being read");
        pages.answer(0, true);
        assert!(pages.take(0));
        pages.answer(1, true);
        assert!(!pages.is_touch(1, Nanos(0)));
        assert!(!pages.take(1), "throwing it out would let the next reader around take its touch");
        // Off the end: nothing, and no panic.
        pages.answer(7, true);
        assert!(!pages.take(7));
    }
}
