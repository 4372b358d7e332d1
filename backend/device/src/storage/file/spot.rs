//! What a queue thread does itself before it asks io_uring: transfers that the page cache can
//! serve.
//!
//! In: what became of the last tries. Out: whether to try the next one.
//! Must not know: requests, io_uring, clocks (times are arguments).

use std::time::{Duration, Instant};

/// Bytes of a page of the cache: what is written in part may have to be read first.
const PAGE: u64 = 4096;

/// Reads: whether one is in the cache can be asked without waiting (RWF_NOWAIT).
pub(super) struct Reads {
    possible: bool,
    /// Reads to pass by before the next try.
    skip: u32,
    /// What `skip` becomes after the next miss.
    penalty: u32,
}

impl Reads {
    /// Most reads that a miss makes pass by: a try that fails costs a tenth of what a read from
    /// a disk does.
    const MOST: u32 = 64;

    pub(super) fn new(possible: bool) -> Reads {
        Reads { possible, skip: 0, penalty: 0 }
    }

    pub(super) fn worth_a_try(&mut self) -> bool {
        if self.possible && self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.possible
    }

    pub(super) fn tried(&mut self, hit: bool) {
        self.penalty = if hit { 0 } else { (self.penalty * 2).clamp(1, Self::MOST) };
        self.skip = self.penalty;
    }

    /// The file system cannot tell.
    pub(super) fn give_up(&mut self) {
        self.possible = false;
    }
}

/// Writes: whether one will wait (for a journal, or because too much is dirty) cannot be asked of
/// ext4, which sends each one that must not wait to a kernel thread and back. So they are written
/// as if none waited, and not for a long time after one that did: a queue spends little of its
/// time in such waits.
pub(super) struct Writes {
    possible: bool,
    not_before: Option<Instant>,
}

impl Writes {
    /// Largest one: more would keep the rest of the queue waiting by itself.
    const MOST_BYTES: u64 = 128 << 10;
    /// One that takes longer has waited, or was large.
    const QUICK: Duration = Duration::from_micros(500);
    /// How much longer than it waited no other is tried.
    const REST: u32 = 64;

    pub(super) fn new(possible: bool) -> Writes {
        Writes { possible, not_before: None }
    }

    /// Whether a write of `len` bytes at byte `offset` is one of those that hardly ever wait.
    pub(super) fn suits(&self, offset: u64, len: u64) -> bool {
        self.possible && (offset | len).is_multiple_of(PAGE) && len <= Self::MOST_BYTES
    }

    pub(super) fn worth_a_try(&mut self, now: Instant) -> bool {
        if self.not_before.is_some_and(|then| now < then) {
            return false;
        }
        self.not_before = None;
        true
    }

    pub(super) fn took(&mut self, now: Instant, time: Duration) {
        if time > Self::QUICK {
            self.not_before = Some(now + time * Self::REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_make_reads_pass_by() {
        let mut reads = Reads::new(true);
        let mut tries = 0;
        for _ in 0..1000 {
            if reads.worth_a_try() {
                tries += 1;
                reads.tried(false);
            }
        }
        assert!((15..30).contains(&tries), "{tries} tries");
        while !reads.worth_a_try() {}
        reads.tried(true);
        assert!(reads.worth_a_try());
        reads.give_up();
        assert!(!reads.worth_a_try());
    }

    /// Goal: writes that wait take little of a queue's time.
    /// Method: for a minute each write waits 20 ms.
    #[test]
    fn a_write_that_waited_is_the_last_for_a_while() {
        let mut writes = Writes::new(true);
        let start = Instant::now();
        let (mut now, mut waited) = (start, Duration::ZERO);
        while now < start + Duration::from_secs(60) {
            let time = Duration::from_millis(20);
            now += Duration::from_micros(50);
            if writes.worth_a_try(now) {
                (now, waited) = (now + time, waited + time);
                writes.took(now, time);
            }
        }
        assert!(waited < Duration::from_secs(1), "{waited:?}");
        assert!(waited > Duration::from_millis(500), "{waited:?}: it tries again");
    }

    #[test]
    fn quick_writes_go_on() {
        let mut writes = Writes::new(true);
        let now = Instant::now();
        writes.took(now, Duration::from_micros(20));
        assert!(writes.worth_a_try(now));
    }

    #[test]
    fn only_whole_pages_of_a_cached_file() {
        let writes = Writes::new(true);
        assert!(writes.suits(8192, 4096));
        assert!(!writes.suits(8192, 512), "the rest of the page would have to be read");
        assert!(!writes.suits(512, 4096));
        assert!(!writes.suits(0, 1 << 20));
        assert!(!Writes::new(false).suits(0, 4096));
    }
}
