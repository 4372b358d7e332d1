//! Depth first, every reachable state once, one worker.
//!
//! In: a model and a limit on states. Out: coverage and, for each broken invariant, the shortest
//! schedule met. Interleavings are counted in the same pass: a state's count is the sum over its
//! steps, known when the search leaves it, so any graph without cycles is counted exactly.
//!
//! All steps of a state are taken when the search enters it, and the states that they lead to wait
//! in one stack: their slots in the visited set are then fetched together. The stack is reused:
//! after the first descent a transition allocates nothing of the search's own.

use std::hint::black_box;
use std::ops::ControlFlow;

use crate::found::{Found, State};
use crate::model::{InvariantId, Model, Step, StepBuf};
use crate::report::{Bound, Coverage, OnProgress, Options, Progress};
use crate::table::{NUMBERS_MAX, Table};

/// Transitions between two calls of the progress callback.
const PROGRESS_EVERY: u64 = 1 << 16;

/// Complete schedules from each state on, saturating.
#[derive(Default)]
struct Paths {
    /// By number of the state; 0 while the state is on the stack.
    all: Vec<u128>,
    /// Those that end in a violation; empty as long as there is none.
    violating: Vec<u128>,
}

impl Paths {
    /// Makes room for one more state.
    fn open(&mut self) {
        self.all.push(0);
        if !self.violating.is_empty() {
            self.violating.push(0);
        }
    }

    fn close(&mut self, number: u32, counts: Counts) {
        self.all[number as usize] = counts.all;
        if counts.violating > 0 && self.violating.is_empty() {
            self.violating.resize(self.all.len(), 0);
        }
        if let Some(violating) = self.violating.get_mut(number as usize) {
            *violating = counts.violating;
        }
    }

    fn of(&self, number: u32) -> Counts {
        let number = number as usize;
        let violating = self.violating.get(number).copied().unwrap_or(0);
        Counts { all: self.all[number], violating }
    }
}

/// Complete schedules from one state on.
#[derive(Clone, Copy, Default)]
struct Counts {
    all: u128,
    violating: u128,
}

impl Counts {
    fn add(&mut self, more: Counts) {
        self.all = self.all.saturating_add(more.all);
        self.violating = self.violating.saturating_add(more.violating);
    }
}

/// One state on the way from the initial state to where the search is.
struct Frame {
    /// Its number.
    number: u32,
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
    verdict: Result<(), InvariantId>,
    fingerprint: u64,
}

struct Search<'a, M: Model> {
    model: &'a M,
    options: &'a Options,
    visited: Table,
    paths: Paths,
    cyclic: bool,
    frames: Vec<Frame>,
    waiting: Vec<Waiting>,
    /// The states of the waiting, by the same index; used-up ones lie above, to be overwritten.
    states: Vec<State<M>>,
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
        visited: Table::new(),
        paths: Paths::default(),
        cyclic: false,
        frames: Vec::new(),
        waiting: Vec::new(),
        states: Vec::new(),
        steps: StepBuf::default(),
        coverage: Coverage::default(),
        found: Found::default(),
    };
    search.visited.insert(model.fingerprint(&initial), 0);
    // The initial state lies below the waiting ones, as if it had waited, too.
    search.waiting.push(Waiting { step: Step::default(), verdict: Ok(()), fingerprint: 0 });
    search.states.push(initial);
    search.enter(0, 0);
    search.run(on_progress);
    let mut coverage = search.coverage;
    coverage.states = Some(search.paths.all.len() as u64);
    if coverage.complete() && !search.cyclic {
        let counts = search.paths.of(0);
        coverage.interleavings = Some(counts.all);
        coverage.interleavings_violating = Some(counts.violating);
    }
    (search.found, coverage)
}

impl<M: Model> Search<'_, M> {
    fn run(&mut self, on_progress: OnProgress<'_>) {
        let mut report_at = PROGRESS_EVERY;
        while let Some(frame) = self.frames.last_mut() {
            if frame.next == frame.end {
                self.leave();
                continue;
            }
            frame.next += 1;
            let at = frame.next - 1;
            self.take(at);
            if self.options.stop_at_first && self.found.any() {
                self.coverage.cut(Bound::FirstViolation);
                return;
            }
            let states = self.paths.all.len() as u64;
            if states >= self.options.states_max.unwrap_or(NUMBERS_MAX).min(NUMBERS_MAX) {
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

    /// Goes on with the successor at this place of the waiting.
    fn take(&mut self, at: usize) {
        let Waiting { step, verdict, fingerprint } = self.waiting[at];
        self.coverage.transitions += 1;
        if let Err(invariant) = verdict {
            self.coverage.violating_transitions += 1;
            self.violated(invariant, Some(step));
            self.add(Counts { all: 1, violating: 1 });
            return;
        }
        let number = self.paths.all.len() as u32;
        match self.visited.insert(fingerprint, number) {
            Some(known) => {
                self.coverage.pruned_by_hash += 1;
                let counts = self.paths.of(known);
                self.cyclic |= counts.all == 0;
                self.add(counts);
            }
            None => self.enter(number, at),
        }
    }

    /// Enters a new state, which lies at this place of the waiting, and takes all of its steps.
    fn enter(&mut self, number: u32, at: usize) {
        self.coverage.depth_max = self.coverage.depth_max.max(self.frames.len() as u32);
        self.paths.open();
        self.steps.truncate(0);
        self.model.enabled(&self.states[at], &mut self.steps);
        let first = self.waiting.len();
        for &step in self.steps.as_slice() {
            let place = self.waiting.len();
            if place == self.states.len() {
                self.states.push(self.states[at].clone());
            } else {
                let (below, above) = self.states.split_at_mut(place);
                above[0].clone_from(&below[at]);
            }
            let state = &mut self.states[place];
            self.model.apply(state, step);
            let verdict = self.model.check(state, step);
            let fingerprint = self.model.fingerprint(state);
            self.waiting.push(Waiting { step, verdict, fingerprint });
        }
        self.fetch(first);
        let end = self.waiting.len();
        let arrived_by = self.waiting[at].step;
        let counts = Counts::default();
        self.frames.push(Frame { number, next: first, end, first, arrived_by, counts });
        if first == end {
            self.coverage.ends += 1;
            let verdict = crate::found::check_end(self.model, &self.states[at]);
            if let Err(invariant) = verdict {
                self.violated(invariant, None);
            }
            self.add(Counts { all: 1, violating: u128::from(verdict.is_err()) });
        }
    }

    /// Has the memory that the successors from `first` on will need brought to the cache, all at
    /// once: nothing waits for the values.
    fn fetch(&self, first: usize) {
        let mut sum = 0_u128;
        for waiting in &self.waiting[first..] {
            let number = self.visited.glance(waiting.fingerprint);
            sum ^= self.paths.all.get(number as usize).copied().unwrap_or(0);
        }
        black_box(sum);
    }

    /// Leaves the state on top, whose steps have all been taken.
    fn leave(&mut self) {
        let Some(frame) = self.frames.pop() else {
            return;
        };
        self.paths.close(frame.number, frame.counts);
        self.waiting.truncate(frame.first);
        self.add(frame.counts);
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
