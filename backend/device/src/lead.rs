//! How long before its time a thread must be woken so that it is awake then.
//!
//! In: how long wake-ups took. Out: a time that most of them stay below.
//! Must not know: what the thread is woken for.
//!
//! Waking a sleeping thread costs from 5 to 60 microseconds, more on virtual processors and on
//! busy ones, and all of it would be added to every delay. So whoever sleeps is woken that much
//! too early, and waits actively for the rest. Where wake-ups cost nothing (a busy queue), the
//! lead shrinks to nothing, and nobody waits.

use std::sync::atomic::{AtomicU64, Ordering};

/// An estimate of the time that a wake-up takes: mean and mean deviation, smoothed as TCP does
/// for round trips (RFC 6298). Updates that race may lose one value, which does no harm.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "the unit ends every name")]
pub(crate) struct Lead {
    max_ns: u64,
    mean_ns: AtomicU64,
    deviation_ns: AtomicU64,
}

impl Lead {
    /// A lead of nothing at first, and never more than `max_ns` nanoseconds.
    pub(crate) const fn new(max_ns: u64) -> Lead {
        Lead { max_ns, mean_ns: AtomicU64::new(0), deviation_ns: AtomicU64::new(0) }
    }

    /// Takes in how long a wake-up took.
    pub(crate) fn observe(&self, ns: u64) {
        let ns = ns.min(self.max_ns);
        let mean = self.mean_ns.load(Ordering::Relaxed);
        let deviation = self.deviation_ns.load(Ordering::Relaxed);
        self.mean_ns.store((mean * 7 + ns) / 8, Ordering::Relaxed);
        self.deviation_ns.store((deviation * 3 + mean.abs_diff(ns)) / 4, Ordering::Relaxed);
    }

    /// The lead for the next time, in nanoseconds.
    pub(crate) fn get_ns(&self) -> u64 {
        let mean = self.mean_ns.load(Ordering::Relaxed);
        (mean + self.deviation_ns.load(Ordering::Relaxed)).min(self.max_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::Lead;

    #[test]
    fn follows_wake_ups_and_stays_bounded() {
        let lead = Lead::new(80_000);
        assert_eq!(lead.get_ns(), 0);
        (0..100).for_each(|_| lead.observe(30_000));
        assert!((29_000..32_000).contains(&lead.get_ns()), "{}", lead.get_ns());
        (0..100).for_each(|_| lead.observe(u64::MAX));
        assert!((79_000..=80_000).contains(&lead.get_ns()), "{}", lead.get_ns());
        (0..100).for_each(|_| lead.observe(0));
        assert!(lead.get_ns() < 100, "{}", lead.get_ns());
    }
}
