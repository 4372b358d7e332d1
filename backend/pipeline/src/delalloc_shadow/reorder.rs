//! Events of several processors in the order of their times.
//!
//! In: events as the kernel's buffers were read, each processor's in order. Out: all in order.
//! Must not know: what they mean.
//!
//! The kernel merges its buffers by time, but an event that is entered while they are looked
//! through can come a little late, and one whose processor is stopped by the host, later still.

use std::collections::BTreeMap;

use crate::kernel::KernelEvent;

/// How far back an event may lie behind one that came before, in microseconds.
const WINDOW_US: u64 = 20_000;
/// Most events that wait: more than a batch has.
const MOST: usize = 4096;

/// Events that wait for earlier ones.
#[derive(Debug, Default)]
pub(super) struct Reorder {
    waiting: BTreeMap<(u64, u64), KernelEvent>,
    arrived: u64,
    newest_us: u64,
    /// The time of the last event that was given out.
    given_us: u64,
}

impl Reorder {
    /// An event came. `false`: too late, later ones were given out.
    #[must_use]
    pub(super) fn push(&mut self, event: KernelEvent) -> bool {
        if event.at_us < self.given_us {
            return false;
        }
        self.arrived += 1;
        self.newest_us = self.newest_us.max(event.at_us);
        self.waiting.insert((event.at_us, self.arrived), event);
        true
    }

    /// The next event that no earlier one can precede.
    pub(super) fn pop(&mut self) -> Option<KernelEvent> {
        let &(at_us, arrived) = self.waiting.keys().next()?;
        let due = self.newest_us - at_us >= WINDOW_US || self.waiting.len() > MOST;
        let event = due.then(|| self.waiting.remove(&(at_us, arrived))).flatten()?;
        self.given_us = event.at_us;
        Some(event)
    }

    /// The next event: nothing more is on its way.
    pub(super) fn pop_any(&mut self) -> Option<KernelEvent> {
        let (_, event) = self.waiting.pop_first()?;
        self.given_us = event.at_us;
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_a_little_late_is_put_in_its_place() {
        let event = |at_us| KernelEvent { at_us, ..KernelEvent::default() };
        let mut reorder = Reorder::default();
        for at_us in [10, 12, 11, 25_000, 20_200, 20_200] {
            assert!(reorder.push(event(at_us)));
        }
        let due: Vec<u64> = std::iter::from_fn(|| reorder.pop()).map(|of| of.at_us).collect();
        assert_eq!(due, [10, 11, 12]);
        let rest: Vec<u64> = std::iter::from_fn(|| reorder.pop_any()).map(|of| of.at_us).collect();
        assert_eq!(rest, [20_200, 20_200, 25_000]);
        assert!(!reorder.push(event(24_999)));
        assert!(reorder.push(event(25_000)));
    }

    #[test]
    fn memory_is_bounded() {
        let mut reorder = Reorder::default();
        for at_us in 0..10_000 {
            let _ = reorder.push(KernelEvent { at_us: at_us % 1000, ..KernelEvent::default() });
            while reorder.pop().is_some() {}
        }
        assert!(reorder.waiting.len() <= MOST);
    }
}
