//! Where threads of a trial wait for each other and for signals of the host.
//!
//! In: raised signals, arrivals at barriers. Out: threads let go, or the reason why not.
//! Every wait has a limit, and ends at once when the trial is given up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The meeting point; one for the life of the agent, because signals come at any time.
#[derive(Default)]
pub(crate) struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    raised: BTreeSet<String>,
    arrived: BTreeMap<String, usize>,
    given_up: bool,
}

/// Why a wait ended without what it waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    /// The time limit has passed.
    TimedOut,
    /// Another thread failed and the trial was given up.
    GivenUp,
}

impl Meeting {
    /// Forgets everything: a new trial begins.
    pub(crate) fn reset(&self) {
        *self.lock() = State::default();
    }

    /// Raises a signal; it stays raised for the trial.
    pub(crate) fn raise(&self, signal: &str) {
        self.lock().raised.insert(signal.to_owned());
        self.changed.notify_all();
    }

    /// Whether a signal was raised.
    pub(crate) fn is_raised(&self, signal: &str) -> bool {
        self.lock().raised.contains(signal)
    }

    /// Ends every wait of the trial, now and later.
    pub(crate) fn give_up(&self) {
        self.lock().given_up = true;
        self.changed.notify_all();
    }

    /// Whether the trial was given up.
    pub(crate) fn given_up(&self) -> bool {
        self.lock().given_up
    }

    /// Waits for a signal.
    pub(crate) fn await_signal(&self, signal: &str, limit: Duration) -> Result<(), Missed> {
        self.wait(self.lock(), limit, |state| state.raised.contains(signal))
    }

    /// Waits until `parties` threads are here. The barrier can be used again at once.
    pub(crate) fn barrier(
        &self,
        name: &str,
        parties: usize,
        limit: Duration,
    ) -> Result<(), Missed> {
        let mut state = self.lock();
        let arrived = state.arrived.entry(name.to_owned()).or_default();
        *arrived += 1;
        let enough = arrived.next_multiple_of(parties.max(1));
        self.changed.notify_all();
        self.wait(state, limit, |state| state.arrived.get(name).is_some_and(|n| *n >= enough))
    }

    fn wait(
        &self,
        state: MutexGuard<'_, State>,
        limit: Duration,
        there: impl Fn(&State) -> bool,
    ) -> Result<(), Missed> {
        let waiting = |state: &mut State| !state.given_up && !there(state);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, limit, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        match (there(&state), state.given_up) {
            (_, true) => Err(Missed::GivenUp),
            (true, false) => Ok(()),
            (false, false) => Err(Missed::TimedOut),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No state is left half changed by a panic: every change is one call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_signal_raised_before_or_after_lets_go() {
        let meeting = Meeting::default();
        meeting.raise("early");
        assert_eq!(meeting.await_signal("early", Duration::ZERO), Ok(()));
        thread::scope(|scope| {
            let waiter = scope.spawn(|| meeting.await_signal("late", LONG));
            meeting.raise("late");
            assert_eq!(waiter.join().unwrap(), Ok(()));
        });
        meeting.reset();
        assert_eq!(meeting.await_signal("early", Duration::ZERO), Err(Missed::TimedOut));
    }

    #[test]
    fn giving_up_ends_waits() {
        let meeting = Meeting::default();
        thread::scope(|scope| {
            let signal = scope.spawn(|| meeting.await_signal("never", LONG));
            let barrier = scope.spawn(|| meeting.barrier("b", 2, LONG));
            meeting.give_up();
            assert_eq!(signal.join().unwrap(), Err(Missed::GivenUp));
            assert_eq!(barrier.join().unwrap(), Err(Missed::GivenUp));
        });
    }

    #[test]
    fn nobody_passes_a_barrier_before_all_are_there() {
        let meeting = Meeting::default();
        let arrived = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for round in 1..=50 {
                        arrived.fetch_add(1, Ordering::SeqCst);
                        meeting.barrier("go", 3, LONG).unwrap();
                        assert!(arrived.load(Ordering::SeqCst) >= 3 * round);
                    }
                });
            }
        });
        assert_eq!(arrived.into_inner(), 150);
    }
}
