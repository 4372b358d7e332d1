//! When a driver is called that sleeps while there is more to serve.
//!
//! In: requests that ended, and how many are left. Out: whether now is the time.
//! Must not know: what a call is, clocks.
//!
//! To wake the driver costs some tens of microseconds of the processor that calls (on a virtual
//! machine it is an exit), and as long again until it is there; an awake one sees what has ended
//! without any call. So it is called once some requests have ended, and then makes new ones beside
//! us. Large requests are different: while we copy it has nothing to do, and sleeps again after
//! each call. It is called for them when those that are left last until it brings new ones.

use super::Worker;

/// Ended requests for which a call is worth it. Later, and there is nothing left to serve until
/// the driver is awake.
const LEAST: usize = 10;

/// The same by their bytes: large ones take long by themselves.
const LEAST_BYTES: u64 = 1280 << 10;

/// Requests of that many bytes, on average, are large.
const LARGE_BYTES: u64 = 32 << 10;

/// Copied while a driver wakes up (at 8 GiB/s, 60 us).
const WAKING_BYTES: u64 = 512 << 10;

/// Never more is kept from a driver that sleeps: it would be half a millisecond.
const MOST_BYTES: u64 = 4 << 20;

/// What ended since the driver was last called, or known to be awake.
#[derive(Debug, Default)]
pub(super) struct Calls {
    bytes: u64,
}

impl Calls {
    /// A request ended that moved that many bytes.
    pub(super) fn ended(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// The driver was called, or needs no call.
    fn called(&mut self) {
        self.bytes = 0;
    }

    /// Whether `ended` requests are worth a call at all.
    #[inline]
    fn worth_it(&self, ended: usize) -> bool {
        ended >= LEAST || self.bytes >= LEAST_BYTES
    }

    /// Whether requests were too small to wait for more of them, or `left` more of the same size
    /// take no longer than the driver to wake up, or too much ended already.
    fn now(&self, ended: usize, left: impl FnOnce() -> usize) -> bool {
        let each = self.bytes / (ended as u64).max(1);
        each < LARGE_BYTES
            || self.bytes >= MOST_BYTES
            || each.saturating_mul(left() as u64) <= WAKING_BYTES
    }
}

impl Worker {
    /// Calls the driver if it wants to be.
    pub(super) fn call_driver(&mut self) {
        if let Some(ring) = &mut self.ring
            && ring.uncalled() > 0
        {
            ring.call_driver();
            self.calls.called();
        }
    }

    /// The same while there is more to do: `left` requests that were taken from the ring, and what
    /// is still there.
    pub(super) fn call_driver_in_time(&mut self, left: usize) {
        let Some(ring) = &self.ring else { return };
        let ended = ring.uncalled();
        if self.calls.worth_it(ended) && self.calls.now(ended, || left + ring.available()) {
            self.call_driver();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests that end before the first call, of `depth` that all wait.
    fn first_call(depth: usize, bytes: u64) -> usize {
        let mut calls = Calls::default();
        (1..=depth)
            .find(|ended| {
                calls.ended(bytes);
                calls.worth_it(*ended) && calls.now(*ended, || depth - ended)
            })
            .unwrap_or(depth)
    }

    #[test]
    fn late_but_before_there_is_nothing_left() {
        assert_eq!(first_call(4, 4096), 4);
        // Small ones: as soon as it pays.
        assert_eq!(first_call(32, 4096), LEAST);
        assert_eq!(first_call(256, 4096), LEAST);
        // Large ones: when a few are left.
        for depth in [16_usize, 32] {
            let left = (WAKING_BYTES / (128 << 10)) as usize;
            assert_eq!(first_call(depth, 128 << 10), depth - left);
        }
        // Never too late for the first of them.
        assert_eq!(first_call(256, 1 << 20), 4);
        assert_eq!(first_call(256, LARGE_BYTES), (MOST_BYTES / LARGE_BYTES) as usize);
    }
}
