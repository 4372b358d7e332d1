//! The disk's volatile write cache, as VIRTIO_BLK_F_FLUSH has it (virtio 1.3, 5.2.6.2): what
//! completed before a flush arrived is durable when the flush completes, and only that.
//!
//! In: flushes as they arrive and complete. Out: a [`Stamp`] for each completed write, and which
//! stamps are durable.
//! Must not know: what was written.

/// When a write completed, in flushes that had arrived by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp(u64);

/// Whether the guest relies on flushes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Barriers {
    /// No commit was seen yet.
    #[default]
    Unknown,
    /// Commits were preceded by a flush.
    On,
    /// They were not: the disk is write-through, or the file system mounted with `nobarrier`. What
    /// completed counts as durable.
    Off,
}

/// Flushes so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cache {
    arrived: u64,
    durable: u64,
    pub(super) barriers: Barriers,
}

impl Cache {
    /// A flush arrives; its number.
    pub(super) fn flush_arrived(&mut self) -> u64 {
        self.arrived += 1;
        self.arrived - 1
    }

    /// The flush of that number completed well. Returns whether more is durable now.
    pub(super) fn flush_done(&mut self, number: u64) -> bool {
        let more = number + 1 > self.durable;
        self.durable = self.durable.max(number + 1);
        more
    }

    /// The stamp of a write that completes now.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp(self.arrived)
    }

    /// Whether a flush has made it durable, whatever the guest relies on.
    pub(super) fn flushed(&self, stamp: Stamp) -> bool {
        stamp.0 < self.durable
    }

    /// Whether it would survive a power cut now.
    pub(super) fn durable(&self, stamp: Stamp) -> bool {
        self.barriers != Barriers::On || self.flushed(stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_covers_what_completed_before_it_arrived() {
        let mut cache = Cache { barriers: Barriers::On, ..Cache::default() };
        let before = cache.stamp();
        let first = cache.flush_arrived();
        let during = cache.stamp();
        let second = cache.flush_arrived();
        assert!(!cache.durable(before));
        assert!(cache.flush_done(first));
        assert!(cache.durable(before) && !cache.durable(during));
        assert!(cache.flush_done(second) && cache.durable(during));
        assert!(!cache.flush_done(first), "a flush that ends late takes nothing back");
        assert!(cache.durable(during));
    }
}
