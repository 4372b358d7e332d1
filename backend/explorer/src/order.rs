//! Partial-order reduction: which threads to move in a state, and which to leave asleep.
//!
//! **Persistent set**: a set of threads such that nothing the others will ever do conflicts with
//! the next steps of these; the others can wait (Godefroid, LNCS 1032, chapter 4; the closure is
//! that of stubborn sets with [`Model::future`] as the over-approximation of what others do).
//! **Sleep set**: threads whose next steps have been or will be taken from an earlier state of the
//! same trace, and have met nothing since that conflicts with them (chapter 5).
//!
//! Why nothing is lost, cycles or not: let w be steps from a state to a violation or an end, of
//! which none that could come first is asleep. If one that could come first is in the persistent
//! set, the first such explored leads on with a shorter w. If not, w is independent of the set, and
//! an awake member of it leads to a state of a later layer with the same w; where no member does,
//! all awake threads move. Lengths and layers are bounded, so w is met.
//!
//! A thread is the unit of both: all its alternatives together count as one step, with the union
//! of their footprints. Sets of threads are bit masks.
//!
//! Holds: every end state of the plain search is reached, and a violation is found if the plain
//! search finds one (the tests compare both on generated models). The set of violated invariants
//! can be smaller than in the plain search, since a violation ends its branch and the branch that
//! is left may break another invariant first.

use crate::found::State;
use crate::model::{Footprint, Model, StepBuf, THREADS_MAX};

/// The threads of one state as reduction sees them.
pub(crate) struct Threads {
    /// Threads with an enabled step.
    pub(crate) enabled: u32,
    /// Union of the footprints of a thread's enabled steps.
    next: [Footprint; THREADS_MAX],
}

impl Threads {
    pub(crate) fn of<M: Model>(model: &M, state: &State<M>, steps: &StepBuf) -> Threads {
        let mut threads = Threads { enabled: 0, next: [Footprint::NOTHING; THREADS_MAX] };
        for &step in steps.as_slice() {
            let thread = usize::from(step.thread);
            threads.enabled |= 1 << thread;
            threads.next[thread] = threads.next[thread].with(model.footprint(state, step));
        }
        threads
    }

    /// The threads to move: the awake ones of that persistent set, among those grown from one
    /// thread each, that has the fewest of them, but one. All awake threads if that is the best.
    ///
    /// A set that sleeps altogether is passed over: in a graph with cycles what it waits for may
    /// wait for it in turn.
    pub(crate) fn moving<M: Model>(&self, model: &M, state: &State<M>, awake: u32) -> u32 {
        let awake = self.enabled & awake;
        let count = model.threads();
        let mut future = [Footprint::NOTHING; THREADS_MAX];
        for (thread, future) in (0..).zip(&mut future[..count]) {
            *future = model.future(state, thread);
        }
        let mut best = awake;
        for seed in bits(awake) {
            let set = self.close(1 << seed, &future[..count]) & awake;
            if set.count_ones() < best.count_ones() {
                best = set;
            }
        }
        best
    }

    /// Adds to `set` every thread whose future conflicts with the next steps of a thread in it. A
    /// thread that is blocked has no next step yet; what it may do at all stands in.
    fn close(&self, mut set: u32, future: &[Footprint]) -> u32 {
        let mut open = set;
        while open != 0 {
            let member = open.trailing_zeros() as usize;
            open &= open - 1;
            let blocked = self.enabled & (1 << member) == 0;
            let next = if blocked { future[member] } else { self.next[member] };
            for (other, future) in future.iter().enumerate() {
                if set & (1 << other) == 0 && next.conflicts(*future) {
                    set |= 1 << other;
                    open |= 1 << other;
                }
            }
        }
        set
    }

    /// Those of `threads` that stay asleep across a step with this footprint.
    pub(crate) fn undisturbed(&self, threads: u32, step: Footprint) -> u32 {
        bits(threads & self.enabled)
            .filter(|&thread| !self.next[thread as usize].conflicts(step))
            .fold(0, |mask, thread| mask | 1 << thread)
    }
}

fn bits(mut mask: u32) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (mask != 0).then(|| mask.trailing_zeros())?;
        mask &= mask - 1;
        Some(bit)
    })
}
