//! How long before its due time a release must be sent so that the queue thread is awake when it
//! is due.
//!
//! In: how long wake-ups took. Out: a time that most of them stay below.
//! Must not know: what is released.
//!
//! Waking a sleeping thread costs from 5 to 60 microseconds, more on virtual processors, and all
//! of it would be added to every delay. So the timer lets go of a request that much too early,
//! and the queue thread, once awake, waits actively for the rest ([`super::Inbox::drain`]). On a
//! busy queue wake-ups cost nothing, the lead shrinks to nothing, and nobody waits.

use std::sync::atomic::{AtomicU64, Ordering};

/// Longest lead, in nanoseconds, and so the longest time that a queue thread waits actively.
pub(super) const LEAD_MAX_NS: u64 = 80_000;

/// An estimate of the time that a wake-up takes: mean and mean deviation, smoothed as TCP does
/// for round trips (RFC 6298). Updates that race may lose one value, which does no harm.
#[derive(Debug, Default)]
pub(super) struct Lead {
    mean_ns: AtomicU64,
    deviation_ns: AtomicU64,
}

impl Lead {
    /// Takes in how long a wake-up took.
    pub(super) fn observe(&self, ns: u64) {
        let ns = ns.min(LEAD_MAX_NS);
        let mean = self.mean_ns.load(Ordering::Relaxed);
        let deviation = self.deviation_ns.load(Ordering::Relaxed);
        self.mean_ns.store((mean * 7 + ns) / 8, Ordering::Relaxed);
        self.deviation_ns.store((deviation * 3 + mean.abs_diff(ns)) / 4, Ordering::Relaxed);
    }

    /// The lead for the next release, in nanoseconds.
    pub(super) fn get_ns(&self) -> u64 {
        let mean = self.mean_ns.load(Ordering::Relaxed);
        (mean + self.deviation_ns.load(Ordering::Relaxed)).min(LEAD_MAX_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::{LEAD_MAX_NS, Lead};

    #[test]
    fn follows_wake_ups_and_stays_bounded() {
        let lead = Lead::default();
        assert_eq!(lead.get_ns(), 0);
        (0..100).for_each(|_| lead.observe(30_000));
        assert!((29_000..32_000).contains(&lead.get_ns()), "{}", lead.get_ns());
        (0..100).for_each(|_| lead.observe(u64::MAX));
        assert!((LEAD_MAX_NS - 100..=LEAD_MAX_NS).contains(&lead.get_ns()));
        (0..100).for_each(|_| lead.observe(0));
        assert!(lead.get_ns() < 100, "{}", lead.get_ns());
    }
}
