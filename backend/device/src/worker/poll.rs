//! How long a worker looks at its ring before it sleeps.
//!
//! In: when it woke, what it found. Out: how long to look.
//! Must not know: rings, clocks (times are arguments).
//!
//! To sleep costs a kick of the driver and a wake-up of ours: some microseconds on each side, some
//! tens on a virtual machine whose idle processor was given away. So a worker that was woken soon
//! after it had fallen asleep looks first, the next time, and longer than it had slept; one that
//! looked in vain sleeps at once, and looks again only after more such sleeps, the more the more
//! often it has looked in vain: with a driver on the same processor it keeps that one from what it
//! waits for. An idle one never looks.

use std::time::{Duration, Instant};

/// When a worker looks at its ring instead of sleeping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Polling {
    /// Never.
    Off,
    /// While requests follow each other closely.
    #[default]
    Adaptive,
    /// Always: one processor for each queue is kept busy.
    Always,
}

/// Longest look, unless it is for ever: a sleep that was as short was not worth it.
const LONGEST: Duration = Duration::from_micros(100);
/// First look after a short sleep.
const FIRST: Duration = Duration::from_micros(12);
/// Most short sleeps that a look in vain makes pass by before the next one.
const MOST_PASSED: u32 = 64;
/// A look of one that always looks: then it sees to its other events.
const TURN: Duration = Duration::from_millis(5);

/// What one worker has learnt.
#[derive(Debug)]
pub(super) struct Poller {
    polling: Polling,
    window: Duration,
    asleep_since: Option<Instant>,
    /// Short sleeps to pass by before the next look.
    pass: u32,
    /// What `pass` became after the last look in vain.
    penalty: u32,
}

impl Poller {
    pub(super) fn new(polling: Polling) -> Poller {
        Poller { polling, window: Duration::ZERO, asleep_since: None, pass: 0, penalty: 0 }
    }

    /// Whether the next look comes after this one, whatever it finds.
    pub(super) fn never_sleeps(&self) -> bool {
        self.polling == Polling::Always
    }

    /// How long to look now; zero: not at all.
    pub(super) fn window(&self) -> Duration {
        match self.polling {
            Polling::Off => Duration::ZERO,
            Polling::Adaptive => self.window,
            Polling::Always => TURN,
        }
    }

    /// It looked, for the whole window or until it found something.
    pub(super) fn looked(&mut self, found: bool) {
        if found {
            self.penalty = 0;
        } else {
            self.window = Duration::ZERO;
            self.penalty = (self.penalty * 2).clamp(1, MOST_PASSED);
            self.pass = self.penalty;
        }
    }

    /// It goes to sleep.
    pub(super) fn sleeps(&mut self, now: Instant) {
        self.asleep_since = Some(now);
    }

    /// The driver woke it.
    pub(super) fn woken(&mut self, now: Instant) {
        let Some(since) = self.asleep_since.take() else { return };
        let slept = now.saturating_duration_since(since);
        if slept > LONGEST {
            return;
        }
        if self.pass > 0 {
            self.pass -= 1;
        } else {
            // The next wait will be much like this one.
            self.window = (self.window.max(slept) * 2).clamp(FIRST, LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(poller: &mut Poller, slept_us: u64) -> Duration {
        let now = Instant::now();
        poller.sleeps(now);
        poller.woken(now + Duration::from_micros(slept_us));
        poller.window()
    }

    #[test]
    fn looks_while_requests_are_close() {
        let mut poller = Poller::new(Polling::Adaptive);
        assert_eq!(poller.window(), Duration::ZERO);
        assert_eq!(after(&mut poller, 1), FIRST);
        assert_eq!(after(&mut poller, 1), 2 * FIRST);
        // Longer than the next wait, if that is like the last one.
        assert_eq!(after(&mut poller, 40), Duration::from_micros(80));
        assert_eq!(after(&mut poller, 40), LONGEST);
        poller.looked(true);
        assert_eq!(poller.window(), LONGEST);
    }

    #[test]
    fn sleeps_once_it_looked_in_vain() {
        let mut poller = Poller::new(Polling::Adaptive);
        after(&mut poller, 20);
        poller.looked(false);
        assert_eq!(poller.window(), Duration::ZERO);
        // A request now and then does not make it look.
        assert_eq!(after(&mut poller, 10_000), Duration::ZERO);
    }

    /// Goal: where looking never helps, nearly nobody looks.
    /// Method: a thousand short sleeps with a look in vain whenever there is one; then one that
    /// finds something.
    #[test]
    fn looks_seldom_where_it_is_of_no_use() {
        let mut poller = Poller::new(Polling::Adaptive);
        let mut looks = 0;
        for _ in 0..1000 {
            if !after(&mut poller, 20).is_zero() {
                looks += 1;
                poller.looked(false);
            }
        }
        assert!((7..30).contains(&looks), "{looks} looks");
        while after(&mut poller, 20).is_zero() {}
        poller.looked(true);
        poller.looked(false);
        after(&mut poller, 20);
        assert!(!after(&mut poller, 20).is_zero(), "after one that helped it looks soon again");
    }

    #[test]
    fn as_it_is_told() {
        let mut off = Poller::new(Polling::Off);
        assert_eq!(after(&mut off, 1), Duration::ZERO);
        let mut always = Poller::new(Polling::Always);
        always.looked(false);
        assert_eq!(always.window(), TURN);
    }
}
