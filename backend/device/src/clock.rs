//! The backend's clock: CLOCK_MONOTONIC, counted from when the backend started.
//!
//! In: nothing. Out: [`Nanos`], and absolute times for timers.
//! Must not know: what is timed.

use pipeline::Nanos;
use rustix::time::{ClockId, Timespec, clock_gettime};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A clock that read zero when it was made. Copies of it agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start_ns: u64,
}

impl Clock {
    /// A clock that reads zero now.
    #[must_use]
    pub fn start() -> Clock {
        Clock { start_ns: monotonic_ns() }
    }

    /// Nanoseconds since [`Clock::start`].
    pub fn now(self) -> Nanos {
        Nanos(monotonic_ns().saturating_sub(self.start_ns))
    }

    /// That time on CLOCK_MONOTONIC, for `TFD_TIMER_ABSTIME`.
    pub fn absolute(self, at: Nanos) -> Timespec {
        let ns = self.start_ns.saturating_add(at.0);
        Timespec {
            tv_sec: (ns / NANOS_PER_SECOND).cast_signed(),
            tv_nsec: (ns % NANOS_PER_SECOND).cast_signed(),
        }
    }
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // CLOCK_MONOTONIC starts at 0 when the machine boots and is never negative.
    (now.tv_sec as u64) * NANOS_PER_SECOND + now.tv_nsec as u64
}
