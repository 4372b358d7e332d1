//! Depth first, every reachable state once, one worker.
//!
//! In: a model and a limit on states. Out: coverage and, for each broken invariant, the shortest
//! schedule met. Interleavings are counted in the same pass: a state's count is the sum over its
//! steps, known when the search leaves it, so any graph without cycles is counted exactly.
//!
//! An explicit stack of states is reused: after the first descent a transition allocates nothing
//! of the search's own.

use std::ops::ControlFlow;

use crate::found::{Found, State};
use crate::model::{InvariantId, Model, Step, StepBuf};
use crate::report::{Bound, Coverage, OnProgress, Options, Progress};
use crate::table::{NUMBERS_MAX, Table};

/// Transitions between two calls of the progress callback.
const PROGRESS_EVERY: u64 = 1 << 16;

/// Complete schedules from a state on, saturating.
#[derive(Clone, Copy, Default)]
struct Paths {
    all: u128,
    violating: u128,
    /// Still on the stack: reaching it again closes a cycle.
    open: bool,
}

/// One state on the way from the initial state to where the search is.
struct Frame {
    /// Its number in `paths`.
    number: u32,
    /// Where its untaken steps begin in the step buffer, and where they end.
    next: usize,
    end: usize,
    /// The step that led here.
    arrived_by: Step,
}

struct Search<'a, M: Model> {
    model: &'a M,
    options: &'a Options,
    visited: Table,
    paths: Vec<Paths>,
    cyclic: bool,
    frames: Vec<Frame>,
    /// States of the frames, with some used-up ones above to be overwritten.
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
    let mut search = Search {
        model,
        options,
        visited: Table::new(),
        paths: Vec::new(),
        cyclic: false,
        frames: Vec::new(),
        states: vec![model.initial()],
        steps: StepBuf::default(),
        coverage: Coverage::default(),
        found: Found::default(),
    };
    let fingerprint = model.fingerprint(&search.states[0]);
    search.visited.insert(fingerprint, 0);
    search.enter(0, Step::default());
    search.run(on_progress);
    let mut coverage = search.coverage;
    coverage.states = Some(search.paths.len() as u64);
    if coverage.complete() && !search.cyclic {
        coverage.interleavings = Some(search.paths[0].all);
        coverage.interleavings_violating = Some(search.paths[0].violating);
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
            let step = self.steps.as_slice()[frame.next];
            frame.next += 1;
            self.take(step);
            if self.options.stop_at_first && self.found.any() {
                self.coverage.cut(Bound::FirstViolation);
                return;
            }
            let states = self.paths.len() as u64;
            if states
                >= self
                    .options
                    .states_max
                    .unwrap_or(NUMBERS_MAX)
                    .min(NUMBERS_MAX)
            {
                self.coverage.cut(Bound::States);
                return;
            }
            if self.coverage.transitions >= report_at {
                report_at += PROGRESS_EVERY;
                let progress = Progress {
                    states,
                    transitions: self.coverage.transitions,
                    waiting: self.steps.len() as u64,
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

    /// Takes one step from the state on top of the stack.
    fn take(&mut self, step: Step) {
        let top = self.frames.len() - 1;
        if self.states.len() == top + 1 {
            self.states.push(self.states[top].clone());
        } else {
            let (below, above) = self.states.split_at_mut(top + 1);
            above[0].clone_from(&below[top]);
        }
        let state = &mut self.states[top + 1];
        self.model.apply(state, step);
        self.coverage.transitions += 1;
        if let Err(invariant) = self.model.check(state, step) {
            self.coverage.violating_transitions += 1;
            self.violated(invariant, Some(step));
            self.add(Paths {
                all: 1,
                violating: 1,
                open: false,
            });
            return;
        }
        let number = self.paths.len() as u32;
        match self.visited.insert(self.model.fingerprint(state), number) {
            Some(known) => {
                self.coverage.pruned_by_hash += 1;
                let paths = self.paths[known as usize];
                self.cyclic |= paths.open;
                self.add(paths);
            }
            None => self.enter(number, step),
        }
    }

    /// Goes into the new state that lies above the stack.
    fn enter(&mut self, number: u32, arrived_by: Step) {
        let depth = self.frames.len();
        self.coverage.depth_max = self.coverage.depth_max.max(depth as u32);
        let next = self.steps.len();
        self.model.enabled(&self.states[depth], &mut self.steps);
        let end = self.steps.len();
        self.paths.push(Paths {
            open: true,
            ..Paths::default()
        });
        self.frames.push(Frame {
            number,
            next,
            end,
            arrived_by,
        });
        if next == end {
            self.coverage.ends += 1;
            let verdict = crate::found::check_end(self.model, &self.states[depth]);
            if let Err(invariant) = verdict {
                self.violated(invariant, None);
            }
            self.add(Paths {
                all: 1,
                violating: u128::from(verdict.is_err()),
                open: false,
            });
        }
    }

    /// Leaves the state on top, whose steps have all been taken.
    fn leave(&mut self) {
        let Some(frame) = self.frames.pop() else {
            return;
        };
        let paths = &mut self.paths[frame.number as usize];
        paths.open = false;
        let paths = *paths;
        self.steps
            .truncate(self.frames.last().map_or(0, |below| below.end));
        if !self.frames.is_empty() {
            self.add(paths);
        }
    }

    /// Adds schedules to the state on top.
    fn add(&mut self, more: Paths) {
        let Some(frame) = self.frames.last() else {
            return;
        };
        let paths = &mut self.paths[frame.number as usize];
        paths.all = paths.all.saturating_add(more.all);
        paths.violating = paths.violating.saturating_add(more.violating);
    }

    fn violated(&mut self, invariant: InvariantId, last: Option<Step>) {
        let arrived = self.frames.iter().skip(1).map(|frame| frame.arrived_by);
        let length = self.frames.len() - 1 + usize::from(last.is_some());
        self.found
            .shorter(invariant, || arrived.chain(last).collect(), length);
    }
}
