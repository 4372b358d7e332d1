//! Independent random schedules: uniform, or with random priorities (PCT).
//!
//! In: a model, a seed, a number of schedules, workers. Out: coverage and, for each broken
//! invariant, the schedule with the lowest number that breaks it. Schedule `i` draws from stream
//! `i` of the seed, so the answer does not depend on who ran it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::found::{Found, check_end};
use crate::model::{InvariantId, Model, Step, StepBuf};
use crate::report::{Bound, Coverage, OnProgress, Options, Progress, Strategy};
use crate::rng::Rng;
use crate::workers::Workers;

/// Schedules between two looks at violations and at the progress callback.
const ROUND: u64 = 2048;
/// Schedules that a worker takes at a time.
const CHUNK: u64 = 32;
/// Step bound of a schedule if none is given: a model with a cycle may never end by itself.
const STEPS_MAX: u32 = 1 << 16;

/// Counts and violations of some schedules.
#[derive(Default)]
struct Tally {
    transitions: u64,
    ends: u64,
    violating: u64,
    pruned_by_bound: u64,
    cut_by_steps: bool,
    cut_by_preemptions: bool,
    depth_max: u32,
    violations: BTreeMap<InvariantId, (u64, Vec<Step>)>,
}

impl Tally {
    fn merge(&mut self, other: Tally) {
        self.transitions += other.transitions;
        self.ends += other.ends;
        self.violating += other.violating;
        self.pruned_by_bound += other.pruned_by_bound;
        self.cut_by_steps |= other.cut_by_steps;
        self.cut_by_preemptions |= other.cut_by_preemptions;
        self.depth_max = self.depth_max.max(other.depth_max);
        for (invariant, found) in other.violations {
            let kept = self.violations.entry(invariant).or_insert_with(|| found.clone());
            if found.0 < kept.0 {
                *kept = found;
            }
        }
    }
}

/// Runs the schedules of a random strategy; the other strategies have none.
pub(crate) fn search<M: Model>(
    model: &M,
    options: &Options,
    workers: &dyn Workers,
    on_progress: OnProgress<'_>,
) -> (Found, Coverage) {
    let (seed, schedules, pct_depth) = match options.strategy {
        Strategy::Random { seed, schedules } => (seed, schedules, None),
        Strategy::Pct { seed, schedules, depth } => (seed, schedules, Some(depth)),
        Strategy::Exhaustive | Strategy::PartialOrder => (0, 0, None),
    };
    let mut plan = Plan { model, options, seed, pct: None };
    if let Some(depth) = pct_depth {
        // The length that change points are spread over: that of one run without a switch more
        // than needed.
        let mut walker = Walker::new(&plan);
        walker.run(0, &mut FirstListed);
        plan.pct = Some((depth, walker.schedule.len().max(1)));
    }

    let mut total = Tally::default();
    let mut coverage = Coverage::default();
    let mut done = 0;
    while done < schedules {
        let end = schedules.min(done + ROUND);
        let next = AtomicU64::new(done);
        let merged = Mutex::new(std::mem::take(&mut total));
        workers.run(&|_worker| {
            let mut walker = Walker::new(&plan);
            loop {
                let first = next.fetch_add(CHUNK, Ordering::Relaxed);
                if first >= end {
                    break;
                }
                (first..end.min(first + CHUNK)).for_each(|number| walker.walk(number));
            }
            merged.lock().unwrap_or_else(PoisonError::into_inner).merge(walker.tally);
        });
        total = merged.into_inner().unwrap_or_else(PoisonError::into_inner);
        done = end;
        let progress = Progress {
            transitions: total.transitions,
            waiting: schedules - done,
            depth: total.depth_max,
            ..Progress::default()
        };
        if on_progress(progress) == ControlFlow::Break(()) {
            coverage.cut(Bound::Cancelled);
            break;
        }
        if options.stop_at_first && !total.violations.is_empty() {
            coverage.cut(Bound::FirstViolation);
            break;
        }
    }
    coverage.cut(Bound::Schedules);
    if total.cut_by_steps {
        coverage.cut(Bound::Steps);
    }
    if total.cut_by_preemptions {
        coverage.cut(Bound::Preemptions);
    }
    coverage.transitions = total.transitions;
    coverage.ends = total.ends;
    coverage.pruned_by_bound = total.pruned_by_bound;
    coverage.violating_transitions = total.violating;
    coverage.interleavings = Some(u128::from(done));
    coverage.interleavings_violating = Some(u128::from(total.violating));
    coverage.depth_max = total.depth_max;
    let mut found = Found::default();
    for (invariant, (_, steps)) in total.violations {
        found.shorter(invariant, || steps, 0);
    }
    (found, coverage)
}

/// What all walkers of a search share.
struct Plan<'a, M: Model> {
    model: &'a M,
    options: &'a Options,
    seed: u64,
    /// Depth of PCT and the number of steps that its change points are spread over.
    pct: Option<(u32, usize)>,
}

/// How a walker chooses among the steps that it may take; at least one.
trait Choose {
    fn choose(&mut self, index: usize, steps: &[Step]) -> Step;
}

/// Always the first step listed: the run with the fewest switches that the model's order gives.
struct FirstListed;

impl Choose for FirstListed {
    fn choose(&mut self, _index: usize, steps: &[Step]) -> Step {
        steps[0]
    }
}

/// Each step with the same probability.
struct Uniform(Rng);

impl Choose for Uniform {
    fn choose(&mut self, _index: usize, steps: &[Step]) -> Step {
        steps[self.0.below(steps.len())]
    }
}

/// Always the thread of the highest priority, which changes at a few points.
struct Priorities {
    rng: Rng,
    /// By thread; initial ones lie above all that change points assign.
    of: Vec<usize>,
    /// Steps before which the running thread drops, and to which priority.
    changes: Vec<(usize, usize)>,
}

impl Priorities {
    fn new(mut rng: Rng, threads: usize, depth: u32, length: usize) -> Priorities {
        let low = depth as usize;
        let mut of: Vec<usize> = (low..low + threads).collect();
        for at in (1..of.len()).rev() {
            of.swap(at, rng.below(at + 1));
        }
        let changes = (1..low).map(|priority| (rng.below(length), priority)).collect();
        Priorities { rng, of, changes }
    }

    fn highest(&self, steps: &[Step]) -> u8 {
        let priority = |step: &&Step| self.of[usize::from(step.thread)];
        steps.iter().max_by_key(priority).map_or(0, |step| step.thread)
    }
}

impl Choose for Priorities {
    fn choose(&mut self, index: usize, steps: &[Step]) -> Step {
        for at in 0..self.changes.len() {
            let (when, priority) = self.changes[at];
            if when == index {
                let running = self.highest(steps);
                self.of[usize::from(running)] = priority;
            }
        }
        let thread = self.highest(steps);
        let alternatives = steps.iter().filter(|step| step.thread == thread);
        let pick = self.rng.below(alternatives.clone().count());
        // OK to index as a fallback: `steps` is not empty.
        alternatives.copied().nth(pick).unwrap_or(steps[0])
    }
}

/// Runs schedules one after another in the same buffers.
struct Walker<'a, M: Model> {
    plan: &'a Plan<'a, M>,
    enabled: StepBuf,
    allowed: Vec<Step>,
    schedule: Vec<Step>,
    tally: Tally,
}

impl<'a, M: Model> Walker<'a, M> {
    fn new(plan: &'a Plan<'a, M>) -> Walker<'a, M> {
        Walker {
            plan,
            enabled: StepBuf::default(),
            allowed: Vec::new(),
            schedule: Vec::new(),
            tally: Tally::default(),
        }
    }

    fn walk(&mut self, number: u64) {
        let rng = Rng::new(self.plan.seed, number);
        match self.plan.pct {
            None => self.run(number, &mut Uniform(rng)),
            Some((depth, length)) => {
                let threads = self.plan.model.threads();
                self.run(number, &mut Priorities::new(rng, threads, depth, length));
            }
        }
    }

    fn run(&mut self, number: u64, choose: &mut impl Choose) {
        let model = self.plan.model;
        let steps_max = self.plan.options.steps_max.unwrap_or(STEPS_MAX) as usize;
        let mut state = model.initial();
        let mut preemptions = 0;
        self.schedule.clear();
        loop {
            self.enabled.truncate(0);
            model.enabled(&state, &mut self.enabled);
            if self.enabled.len() == 0 {
                self.tally.ends += 1;
                if let Err(invariant) = check_end(model, &state) {
                    self.violated(number, invariant);
                }
                break;
            }
            if self.schedule.len() >= steps_max {
                self.tally.pruned_by_bound += self.enabled.len() as u64;
                self.tally.cut_by_steps = true;
                break;
            }
            let last = self.schedule.last().map(|step| step.thread);
            let could_go_on = self.allow(last, preemptions);
            let step = choose.choose(self.schedule.len(), &self.allowed);
            preemptions += u32::from(could_go_on && last != Some(step.thread));
            model.apply(&mut state, step);
            self.schedule.push(step);
            self.tally.transitions += 1;
            if let Err(invariant) = model.check(&state, step) {
                self.violated(number, invariant);
                break;
            }
        }
        self.tally.depth_max = self.tally.depth_max.max(self.schedule.len() as u32);
    }

    /// Fills `allowed` with the steps that the preemption bound leaves; true if the last thread
    /// could go on.
    fn allow(&mut self, last: Option<u8>, preemptions: u32) -> bool {
        let enabled = self.enabled.as_slice();
        let could_go_on = enabled.iter().any(|step| Some(step.thread) == last);
        let used_up = self.plan.options.preemptions_max.is_some_and(|max| preemptions >= max);
        self.allowed.clear();
        if could_go_on && used_up {
            self.allowed.extend(enabled.iter().filter(|step| Some(step.thread) == last));
            let cut = enabled.len() - self.allowed.len();
            self.tally.pruned_by_bound += cut as u64;
            self.tally.cut_by_preemptions |= cut > 0;
        } else {
            self.allowed.extend(enabled);
        }
        could_go_on
    }

    fn violated(&mut self, number: u64, invariant: InvariantId) {
        self.tally.violating += 1;
        let schedule = &self.schedule;
        let kept =
            self.tally.violations.entry(invariant).or_insert_with(|| (number, schedule.clone()));
        if number < kept.0 {
            *kept = (number, schedule.clone());
        }
    }
}
