//! What was concluded from the events of all processors waits until none of them can have lost one
//! before.
//!
//! In: how far each processor's events were read, where some are missing, conclusions with the time
//! that they are about. Out: those that nothing which was missing can have led to.
//! Must not know: what is concluded.
//!
//! The kernel reads its buffers by time. One that overflowed begins with its first event that is
//! left, and says only then that others are gone: by that time the events of the other processors
//! from the gap have been read, as if nothing were missing.

use std::collections::BTreeMap;

/// Most processors of a guest; those above are taken for the last of these.
const MOST_CPUS: u32 = 1024;
/// Most conclusions that wait; then the oldest is told.
const MOST: usize = 1024;

/// Conclusions that wait.
#[derive(Debug)]
pub(super) struct Doubt<T> {
    /// Time of the last event of each processor that was seen, in microseconds.
    read_us: BTreeMap<u32, u64>,
    /// By the time that they are about, in microseconds.
    waiting: Vec<(u64, T)>,
}

impl<T> Default for Doubt<T> {
    fn default() -> Doubt<T> {
        Doubt { read_us: BTreeMap::new(), waiting: Vec::new() }
    }
}

impl<T> Doubt<T> {
    /// An event of a processor was read.
    pub(super) fn reached(&mut self, cpu: u32, at_us: u64) {
        let last = self.read_us.entry(cpu.min(MOST_CPUS)).or_default();
        *last = at_us.max(*last);
    }

    /// Something is concluded about `at_us`.
    pub(super) fn put(&mut self, at_us: u64, what: T) {
        self.waiting.push((at_us, what));
    }

    /// Events of a processor are missing after the last one that was read; `None`: who knows of
    /// which, and since when.
    pub(super) fn lost(&mut self, cpu: Option<u32>) {
        let since = cpu.and_then(|cpu| self.read_us.get(&cpu.min(MOST_CPUS)));
        self.since(since.copied().unwrap_or(0));
    }

    /// Whatever was concluded about later times than `at_us` is doubtful.
    pub(super) fn since(&mut self, at_us: u64) {
        self.waiting.retain(|(of_us, _)| *of_us <= at_us);
    }

    /// What is certain now: events of every processor were read up to that time.
    pub(super) fn certain(&mut self) -> Vec<T> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let read_us = self.read_us.values().min().copied().unwrap_or(0);
        let over = self.waiting.len().saturating_sub(MOST);
        let mut place = 0;
        let told = self.waiting.extract_if(.., |(at_us, _)| {
            place += 1;
            *at_us <= read_us || place <= over
        });
        told.map(|(_, what)| what).collect()
    }

    /// All that waits: the buffers of all processors were empty.
    pub(super) fn settle(&mut self) -> Vec<T> {
        std::mem::take(&mut self.waiting).into_iter().map(|(_, what)| what).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certain_when_every_processor_was_read_that_far() {
        let mut doubt = Doubt::default();
        doubt.reached(0, 10);
        doubt.reached(1, 5);
        doubt.put(7, "a");
        assert_eq!(doubt.certain(), [""; 0]);
        doubt.reached(1, 7);
        assert_eq!(doubt.certain(), ["a"]);
        doubt.put(12, "b");
        assert_eq!(doubt.settle(), ["b"]);
        assert_eq!(doubt.settle(), [""; 0]);
    }

    #[test]
    fn a_loss_takes_back_what_lies_in_its_gap() {
        let mut doubt = Doubt::default();
        doubt.reached(0, 20);
        doubt.reached(1, 8);
        for (at_us, what) in [(8, "before"), (9, "within")] {
            doubt.put(at_us, what);
        }
        doubt.lost(Some(1));
        doubt.reached(1, 30);
        assert_eq!(doubt.certain(), ["before"]);
        for (at_us, what) in [(40, "c"), (41, "d")] {
            doubt.put(at_us, what);
        }
        doubt.since(40);
        assert_eq!(doubt.settle(), ["c"]);
        doubt.put(50, "e");
        doubt.lost(Some(2));
        doubt.put(51, "f");
        doubt.lost(None);
        assert_eq!(doubt.settle(), [""; 0]);
    }

    #[test]
    fn memory_is_bounded() {
        let mut doubt = Doubt::default();
        for at in 0..10_000_u64 {
            doubt.reached(u32::try_from(at).unwrap_or(0), 0);
            doubt.put(at + 1, at);
            doubt.certain();
        }
        assert!(doubt.waiting.len() <= MOST && doubt.read_us.len() <= MOST_CPUS as usize + 1);
    }
}
