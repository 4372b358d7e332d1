//! The guest's clock, and sleeping on it.
//!
//! CLOCK_MONOTONIC in nanoseconds throughout.

use std::time::Duration;

use rustix::thread::{NanosleepRelativeResult, clock_nanosleep_relative};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Now, in nanoseconds.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Gives the processor away for that long, or longer.
pub(crate) fn sleep(time: Duration) {
    let mut rest =
        Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: i64::from(time.subsec_nanos()) };
    while let NanosleepRelativeResult::Interrupted(left) =
        clock_nanosleep_relative(ClockId::Monotonic, &rest)
    {
        rest = left;
    }
}
