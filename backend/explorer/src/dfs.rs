//! Depth first, every reachable state once, one worker.
//!
//! In: a model and a limit on states. Out: coverage and, for each broken invariant, the shortest
//! schedule met. Interleavings are counted in the same pass: a state's count is the sum over its
//! steps, known when the search leaves it, so any graph without cycles is counted exactly.
//!
//! All steps of a state are taken when the search enters it, and the states that they lead to wait
//! in one stack. The slot of each in the visited set is on its way from memory while the next is
//! being made. The stack is reused: after the first descent a transition allocates nothing of the
//! search's own.

use std::collections::HashMap;
use std::ops::ControlFlow;

use crate::found::{Found, State};
use crate::model::{InvariantId, Model, Step, StepBuf};
use crate::report::{Bound, Coverage, OnProgress, Options, Progress};
use crate::table::Table;

/// Transitions between two calls of the progress callback.
const PROGRESS_EVERY: u64 = 1 << 16;

/// Complete schedules from one state on.
#[derive(Clone, Copy, Default)]
struct Counts {
    all: u128,
    violating: u128,
}

impl Counts {
    #[inline]
    fn add(&mut self, more: Counts) {
        self.all = self.all.saturating_add(more.all);
        if more.violating != 0 {
            self.violating = self.violating.saturating_add(more.violating);
        }
    }
}

/// The fingerprints of the states visited, each with one word: the number of complete schedules
/// from that state on, or where it is if it takes more bits. 0 before the state is left.
struct Visited {
    table: Table<2>,
    /// Counts of [`LARGE`] and more.
    large: Vec<u128>,
    /// How many of the schedules end in a violation, by fingerprint, where some do.
    violating: HashMap<u64, u128>,
}

/// Counts from here on are kept apart.
const LARGE: u64 = 1 << 63;

impl Visited {
    /// Schedules from a state on, if it was visited.
    #[allow(clippy::inline_always, reason = "one call a transition; its result is large")]
    #[inline(always)]
    fn get(&self, fingerprint: u64) -> Option<Counts> {
        let [_, word] = *self.table.get(fingerprint)?;
        let all = match word.checked_sub(LARGE) {
            None => u128::from(word),
            Some(place) => self.large[place as usize],
        };
        let violating = if self.violating.is_empty() {
            0
        } else {
            self.violating.get(&fingerprint).copied().unwrap_or(0)
        };
        Some(Counts { all, violating })
    }

    /// Notes the schedules from a visited state on.
    #[inline]
    fn set(&mut self, fingerprint: u64, counts: Counts) {
        let (place, _) = self.table.insert(fingerprint);
        place[1] = match u64::try_from(counts.all) {
            Ok(all) if all < LARGE => all,
            _ => {
                self.large.push(counts.all);
                LARGE + self.large.len() as u64 - 1
            }
        };
        if counts.violating > 0 {
            self.violating.insert(fingerprint, counts.violating);
        }
    }
}

/// One state on the way from the initial state to where the search is.
struct Frame {
    /// Its fingerprint.
    fingerprint: u64,
    /// Where those of its successors that still wait begin in the stack of the waiting, and where
    /// they end.
    next: usize,
    end: usize,
    /// Where they began.
    first: usize,
    /// The step that led here.
    arrived_by: Step,
    counts: Counts,
}

/// A successor that waits for its turn.
#[derive(Clone, Copy)]
struct Waiting {
    step: Step,
    fingerprint: u64,
}

struct Search<'a, M: Model> {
    model: &'a M,
    options: &'a Options,
    visited: Visited,
    states: u64,
    /// Whether the verdict on a state is the same whatever step led there.
    state_decides: bool,
    cyclic: bool,
    frames: Vec<Frame>,
    waiting: Vec<Waiting>,
    /// The states of the waiting, by the same index; used-up ones lie above, to be overwritten.
    reached: Vec<State<M>>,
    steps: StepBuf,
    coverage: Coverage,
    found: Found,
}

/// Searches until everything is visited, a limit is met or the callback says stop.
pub(crate) fn search<M: Model>(
    model: &M,
    options: &Options,
    on_progress: OnProgress<'_>,
) -> (Found, Coverage) {
    let initial = model.initial();
    let mut search = Search {
        model,
        options,
        visited: Visited { table: Table::new(), large: Vec::new(), violating: HashMap::new() },
        states: 0,
        state_decides: model.state_decides(),
        cyclic: false,
        frames: Vec::new(),
        waiting: Vec::new(),
        reached: Vec::new(),
        steps: StepBuf::default(),
        coverage: Coverage::default(),
        found: Found::default(),
    };
    let fingerprint = model.fingerprint(&initial);
    search.visited.table.insert(fingerprint);
    // The initial state lies below the waiting ones, as if it had waited, too.
    search.waiting.push(Waiting { step: Step::default(), fingerprint });
    search.reached.push(initial);
    search.enter(0);
    search.run(on_progress);
    let mut coverage = std::mem::take(&mut search.coverage);
    coverage.states = Some(search.states);
    if coverage.complete() && !search.cyclic {
        let counts = search.visited.get(fingerprint).unwrap_or_default();
        coverage.interleavings = Some(counts.all);
        coverage.interleavings_violating = Some(counts.violating);
    }
    (search.found, coverage)
}

impl<M: Model> Search<'_, M> {
    fn run(&mut self, on_progress: OnProgress<'_>) {
        let states_max = self.options.states_max.unwrap_or(u64::MAX);
        let mut report_at = PROGRESS_EVERY;
        while let Some(at) = self.next() {
            self.take(at);
            if self.options.stop_at_first && self.found.any() {
                self.coverage.cut(Bound::FirstViolation);
                return;
            }
            let states = self.states;
            if states >= states_max {
                self.coverage.cut(Bound::States);
                return;
            }
            if self.coverage.transitions >= report_at {
                report_at += PROGRESS_EVERY;
                let progress = Progress {
                    states,
                    transitions: self.coverage.transitions,
                    waiting: self.waiting.len() as u64,
                    depth: self.frames.len() as u32 - 1,
                    shrinking: false,
                };
                if on_progress(progress) == ControlFlow::Break(()) {
                    self.coverage.cut(Bound::Cancelled);
                    return;
                }
            }
        }
    }

    /// The place of the next successor to take; leaves the states that have no more. Passes those
    /// that are known already, if that is all there is to it. None at the end of the search.
    #[inline]
    fn next(&mut self) -> Option<usize> {
        loop {
            let frame = self.frames.last_mut()?;
            while frame.next < frame.end {
                let at = frame.next;
                frame.next += 1;
                self.coverage.transitions += 1;
                if !self.state_decides {
                    return Some(at);
                }
                let Some(counts) = self.visited.get(self.waiting[at].fingerprint) else {
                    return Some(at);
                };
                self.coverage.pruned_by_hash += 1;
                self.cyclic |= counts.all == 0;
                frame.counts.add(counts);
            }
            self.leave();
        }
    }

    /// Goes on with the successor at this place of the waiting.
    fn take(&mut self, at: usize) {
        let Waiting { step, fingerprint } = self.waiting[at];
        if self.breaks(at, step) {
            return;
        }
        let (_, new) = self.visited.table.insert(fingerprint);
        if new {
            self.enter(at);
        } else {
            let counts = self.visited.get(fingerprint).unwrap_or_default();
            self.coverage.pruned_by_hash += 1;
            self.cyclic |= counts.all == 0;
            self.add(counts);
        }
    }

    /// Whether the state that waits at this place breaks an invariant; if so, that ends the branch.
    fn breaks(&mut self, at: usize, step: Step) -> bool {
        let Err(invariant) = self.model.check(&self.reached[at], step) else {
            return false;
        };
        self.coverage.violating_transitions += 1;
        self.violated(invariant, Some(step));
        self.add(Counts { all: 1, violating: 1 });
        true
    }

    /// Enters a new state, which lies at this place of the waiting, and takes all of its steps.
    fn enter(&mut self, at: usize) {
        self.states += 1;
        self.coverage.depth_max = self.coverage.depth_max.max(self.frames.len() as u32);
        self.steps.truncate(0);
        self.model.enabled(&self.reached[at], &mut self.steps);
        let first = self.waiting.len();
        for &step in self.steps.as_slice() {
            let place = self.waiting.len();
            if place == self.reached.len() {
                self.reached.push(self.reached[at].clone());
            } else {
                let (below, above) = self.reached.split_at_mut(place);
                above[0].clone_from(&below[at]);
            }
            let state = &mut self.reached[place];
            self.model.apply(state, step);
            let fingerprint = self.model.fingerprint(state);
            self.visited.table.prefetch(fingerprint);
            self.waiting.push(Waiting { step, fingerprint });
        }
        let end = self.waiting.len();
        let Waiting { step: arrived_by, fingerprint } = self.waiting[at];
        let counts = Counts::default();
        self.frames.push(Frame { fingerprint, next: first, end, first, arrived_by, counts });
        if first == end {
            self.coverage.ends += 1;
            let verdict = crate::found::check_end(self.model, &self.reached[at]);
            if let Err(invariant) = verdict {
                self.violated(invariant, None);
            }
            self.add(Counts { all: 1, violating: u128::from(verdict.is_err()) });
        }
    }

    /// Leaves the state on top, whose steps have all been taken.
    fn leave(&mut self) {
        let Some(Frame { fingerprint, first, counts, .. }) = self.frames.pop() else {
            return;
        };
        self.visited.set(fingerprint, counts);
        self.waiting.truncate(first);
        self.add(counts);
    }

    /// Adds schedules to the state on top.
    fn add(&mut self, more: Counts) {
        if let Some(frame) = self.frames.last_mut() {
            frame.counts.add(more);
        }
    }

    fn violated(&mut self, invariant: InvariantId, last: Option<Step>) {
        let arrived = self.frames.iter().skip(1).map(|frame| frame.arrived_by);
        let length = self.frames.len() - 1 + usize::from(last.is_some());
        self.found.shorter(invariant, || arrived.chain(last).collect(), length);
    }
}
