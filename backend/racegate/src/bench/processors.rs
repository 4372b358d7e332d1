//! What the machine's processors did meanwhile.
//!
//! In: /proc/stat. Out: time that they were busy, and time that a hypervisor took from them.
//! Must not know: who kept them busy.

use std::fs;
use std::time::{Duration, Instant};

/// Milliseconds of a tick (USER_HZ is 100 on every architecture that Debian has).
const TICK_MS: u64 = 10;

/// Time of all processors together since the machine started (proc(5), to a tick).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Processors {
    /// They worked.
    pub(super) busy: Duration,
    /// They would have worked, and the hypervisor ran something else, or nothing: it limits what a
    /// virtual machine may use.
    pub(super) stolen: Duration,
}

impl Processors {
    /// Until now; nothing if the system does not say.
    pub(super) fn now() -> Processors {
        Processors::parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    /// From then until now.
    pub(super) fn since(before: Processors) -> Processors {
        let now = Processors::now();
        Processors {
            busy: now.busy.saturating_sub(before.busy),
            stolen: now.stolen.saturating_sub(before.stolen),
        }
    }

    /// What was stolen in a window that lies somewhere between `began` and now: its share of the
    /// whole.
    pub(super) fn stolen_in(window: Duration, before: Processors, began: Instant) -> Duration {
        let share = window.as_secs_f64() / began.elapsed().as_secs_f64();
        Processors::since(before).stolen.mul_f64(share.clamp(0.0, 1.0))
    }

    fn parse(text: &str) -> Processors {
        // cpu user nice system idle iowait irq softirq steal
        let mut ticks = text.lines().next().unwrap_or_default().split_ascii_whitespace().skip(1);
        let mut next = || {
            let ticks = ticks.next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
            Duration::from_millis(ticks.saturating_mul(TICK_MS))
        };
        let [user, nice, system, _, _, irq, softirq, stolen] = std::array::from_fn(|_| next());
        let working = [user, nice, system, irq, softirq];
        Processors {
            busy: working.into_iter().fold(Duration::ZERO, Duration::saturating_add),
            stolen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_prints() {
        let text = "cpu  100 10 50 4000 300 1 2 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        let found = Processors::parse(text);
        assert_eq!(found.busy, Duration::from_millis(1630));
        assert_eq!(found.stolen, Duration::from_millis(70));
        assert_eq!(Processors::parse(""), Processors::default());
        assert!(Processors::now().busy > Duration::ZERO);
    }
}
