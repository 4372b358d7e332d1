//! What a search is asked for and what it answers.
//!
//! Values only: no writer, no clock. The caller measures time and prints.

use std::ops::ControlFlow;

use crate::model::InvariantId;
use crate::schedule::Schedule;

/// How to look for violations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strategy {
    /// Every reachable state once. Depth first with one worker and no bound on steps or
    /// preemptions; layer by layer otherwise, since a bounded depth-first search with a visited
    /// set can miss states below its bound. Both give the same answer.
    Exhaustive,
    /// Layer by layer with persistent sets and sleep sets: reaches every end state and finds a
    /// violation if there is one, but leaves out interleavings that only swap independent steps.
    PartialOrder,
    /// Independent schedules, each step drawn uniformly from the enabled ones.
    Random {
        /// Seed of the whole search.
        seed: u64,
        /// Number of schedules.
        schedules: u64,
    },
    /// Probabilistic concurrency testing (Burckhardt et al., ASPLOS 2010): random thread
    /// priorities with `depth - 1` random points of change. A bug that needs `depth` ordering
    /// constraints is hit by one schedule with probability at least 1/(n k^(depth-1)), n threads
    /// and k steps.
    Pct {
        /// Seed of the whole search.
        seed: u64,
        /// Number of schedules.
        schedules: u64,
        /// Bug depth aimed at, at least 1.
        depth: u32,
    },
}

/// A search to run. `Options::default()` is exhaustive, unbounded, and stops at a violation.
#[derive(Clone, Debug)]
pub struct Options {
    /// How to search.
    pub strategy: Strategy,
    /// Longest schedule, in steps.
    pub steps_max: Option<u32>,
    /// Largest number of preemptions in a schedule (a switch away from a thread that could go on).
    /// Not with [`Strategy::PartialOrder`], whose reduction would take away schedules with few
    /// preemptions in favour of ones with more.
    pub preemptions_max: Option<u32>,
    /// Largest number of distinct states; the search ends at the first full layer above it (depth
    /// first: at the limit).
    pub states_max: Option<u64>,
    /// End at the first violation (layer by layer: at the end of its layer) instead of collecting
    /// the violations of all invariants.
    pub stop_at_first: bool,
    /// Shrink each violation to a shortest schedule with fewest context switches; the value is the
    /// number of states that may be visited for it. 0: leave schedules as found.
    pub shrink_states: u64,
    /// Count the interleavings even where that takes a second pass, depth first on one worker over
    /// at most this many states: a layered search alone cannot count them if it meets a state at
    /// two depths. 0: do not.
    pub count_states: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            strategy: Strategy::Exhaustive,
            steps_max: None,
            preemptions_max: None,
            states_max: None,
            stop_at_first: true,
            shrink_states: 1 << 22,
            count_states: 1 << 22,
        }
    }
}

/// A search that cannot be run as asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OptionsError {
    /// More threads than schedules can name.
    #[error("model has {threads} threads; at most {max} can be searched", max = crate::THREADS_MAX)]
    TooManyThreads {
        /// Number of threads of the model.
        threads: usize,
    },
    /// A bound that the strategy cannot keep.
    #[error("a preemption bound cannot be combined with partial-order reduction")]
    PreemptionsWithPartialOrder,
    /// PCT depth 0.
    #[error("the depth of a PCT search is at least 1")]
    PctDepth,
}

/// A bound that cut a search.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Bound {
    /// [`Options::steps_max`]: some schedule was cut at its last allowed step.
    Steps,
    /// [`Options::preemptions_max`]: some switch was not taken.
    Preemptions,
    /// [`Options::states_max`].
    States,
    /// The number of schedules of a random strategy, which never exhausts anything.
    Schedules,
    /// [`Options::stop_at_first`]: the search ended because it found something.
    FirstViolation,
    /// The progress callback ended it.
    Cancelled,
}

/// Figures of a search. All are the same for the same model and options, whatever the number of
/// workers and their timing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Coverage {
    /// Distinct states visited, the initial one included; under a preemption bound a state counts
    /// once for each (last thread, preemptions used). `None` for random strategies.
    pub states: Option<u64>,
    /// Steps taken.
    pub transitions: u64,
    /// Transitions that led to a state already visited.
    pub pruned_by_hash: u64,
    /// Enabled steps not taken because partial-order reduction proved them redundant.
    pub pruned_by_order: u64,
    /// Enabled steps not taken because of a bound on steps or preemptions.
    pub pruned_by_bound: u64,
    /// Complete schedules: from the initial state to an end, a deadlock, a violation, or the step
    /// bound. Exhaustive: counted exactly over the graph of states, `u128::MAX` if there are more;
    /// `None` if a cycle makes them infinite, if the search was cut short, or if counting them would
    /// take more than [`Options::count_states`]. Random strategies: schedules run.
    pub interleavings: Option<u128>,
    /// How many of these end in a violation.
    pub interleavings_violating: Option<u128>,
    /// Transitions that broke an invariant.
    pub violating_transitions: u64,
    /// Ends reached: distinct states without enabled steps. Random strategies: schedules that
    /// reached one.
    pub ends: u64,
    /// Longest path taken, in steps: depth first, or the number of layers where interleavings are
    /// not counted.
    pub depth_max: u32,
    /// The bounds that cut the search, in order of the enum; empty if it is complete.
    pub truncated: Vec<Bound>,
}

impl Coverage {
    /// Whether nothing cut the search.
    pub fn complete(&self) -> bool {
        self.truncated.is_empty()
    }

    /// Upper bound of the probability that two different states shared a fingerprint, so that one
    /// was taken for the other: n^2 / 2^65 for n states.
    pub fn omission_probability(&self) -> f64 {
        let states = self.states.unwrap_or(0) as f64;
        states * states / 2f64.powi(65)
    }

    pub(crate) fn cut(&mut self, bound: Bound) {
        if let Err(at) = self.truncated.binary_search(&bound) {
            self.truncated.insert(at, bound);
        }
    }
}

/// A broken invariant and how to get there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which invariant.
    pub invariant: InvariantId,
    /// Its name, from [`crate::Model::invariant`]; `deadlock` for [`InvariantId::DEADLOCK`].
    pub name: String,
    /// What is wrong, from [`crate::Model::explain`].
    pub detail: String,
    /// The schedule that breaks it.
    pub schedule: Schedule,
    /// Whether the schedule was shown to be a shortest one with fewest context switches; if not,
    /// the states allowed for shrinking did not suffice.
    pub minimal: bool,
}

/// The answer of a search.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Violations, at most one for each invariant, in order of the invariant's number.
    pub violations: Vec<Violation>,
    /// Figures.
    pub coverage: Coverage,
}

/// A sign of life from a running search.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Distinct states so far (0 for random strategies).
    pub states: u64,
    /// Transitions so far.
    pub transitions: u64,
    /// States known and not yet expanded, or schedules still to run.
    pub waiting: u64,
    /// Steps from the initial state where the search is now.
    pub depth: u32,
    /// Whether the search is over and counterexamples are being shrunk.
    pub shrinking: bool,
}

/// Called every so often (by count, not by time); `Break` ends the search, which then reports
/// [`Bound::Cancelled`].
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;
