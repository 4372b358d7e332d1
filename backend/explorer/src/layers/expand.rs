//! Takes the steps of one state after another and sends what they reach to the shards.
//!
//! In: nodes of one layer. Out: arrivals in the shards, and a tally that merges with others in any
//! order.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError, TryLockError};

use super::shard::{Arrival, Shard};
use super::{Lineage, Node, Setting};
use crate::found::{State, check_end};
use crate::model::{InvariantId, Model, Step, StepBuf};
use crate::order::Threads;
use crate::report::{Bound, Coverage};
use crate::rng::mix;

/// Arrivals gathered for each shard, on average, before the locks are taken.
const BATCH: usize = 32;

/// Counts and violations of a part of a search.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) transitions: u64,
    pub(super) uneven: bool,
    /// For each broken invariant the smallest (state it was broken from, last step). An invariant
    /// of an end has no last step.
    pub(super) violations: BTreeMap<InvariantId, (u64, Option<Step>)>,
    pruned_by_hash: u64,
    pruned_by_order: u64,
    pruned_by_steps: u64,
    pruned_by_preemptions: u64,
    violating_transitions: u64,
    ends: u64,
    paths: u128,
    paths_violating: u128,
}

impl Tally {
    pub(super) fn merge(&mut self, other: Tally) {
        self.transitions += other.transitions;
        self.uneven |= other.uneven;
        self.pruned_by_hash += other.pruned_by_hash;
        self.pruned_by_order += other.pruned_by_order;
        self.pruned_by_steps += other.pruned_by_steps;
        self.pruned_by_preemptions += other.pruned_by_preemptions;
        self.violating_transitions += other.violating_transitions;
        self.ends += other.ends;
        self.paths = self.paths.saturating_add(other.paths);
        self.paths_violating = self.paths_violating.saturating_add(other.paths_violating);
        for (invariant, place) in other.violations {
            self.violated(invariant, place);
        }
    }

    fn violated(&mut self, invariant: InvariantId, place: (u64, Option<Step>)) {
        // An end of this layer is one step shorter than a transition out of it.
        let rank = |(key, last): (u64, Option<Step>)| (last.is_some(), key, last);
        let kept = self.violations.entry(invariant).or_insert(place);
        if rank(place) < rank(*kept) {
            *kept = place;
        }
    }

    pub(super) fn report(&self, coverage: &mut Coverage) {
        coverage.transitions = self.transitions;
        coverage.pruned_by_hash = self.pruned_by_hash;
        coverage.pruned_by_order = self.pruned_by_order;
        coverage.pruned_by_bound = self.pruned_by_steps + self.pruned_by_preemptions;
        coverage.violating_transitions = self.violating_transitions;
        coverage.ends = self.ends;
        if self.pruned_by_steps > 0 {
            coverage.cut(Bound::Steps);
        }
        if self.pruned_by_preemptions > 0 {
            coverage.cut(Bound::Preemptions);
        }
        let cut_short = [Bound::States, Bound::FirstViolation, Bound::Cancelled]
            .map(|b| coverage.truncated.contains(&b));
        if !self.uneven && cut_short == [false; 3] {
            coverage.interleavings = Some(self.paths);
            coverage.interleavings_violating = Some(self.paths_violating);
        }
    }
}

/// The way to the shards.
struct Outlet<'a, S> {
    /// Arrivals gathered, by shard.
    arrivals: Vec<Vec<Arrival>>,
    /// Their states, in the order in which they were made; used-up ones lie above `len`, to be
    /// overwritten.
    states: Vec<S>,
    len: usize,
    /// The only shard, held throughout, if there is one worker.
    only: Option<MutexGuard<'a, Shard<S>>>,
}

impl<S: Clone> Outlet<'_, S> {
    /// A copy of a state, to be changed: dropped again unless it is kept before the next call.
    fn copy(&mut self, state: &S) -> &mut S {
        if self.len == self.states.len() {
            self.states.push(state.clone());
        } else {
            self.states[self.len].clone_from(state);
        }
        &mut self.states[self.len]
    }
}

/// One worker's expansion of nodes of one layer.
pub(super) struct Expansion<'a, M: Model> {
    setting: &'a Setting<'a, M>,
    depth: u32,
    steps: StepBuf,
    outlet: Outlet<'a, State<M>>,
    tally: Tally,
}

impl<'a, M: Model> Expansion<'a, M> {
    pub(super) fn new(setting: &'a Setting<'a, M>, depth: u32) -> Expansion<'a, M> {
        let only = match &setting.shards[..] {
            [only] => Some(only.lock().unwrap_or_else(PoisonError::into_inner)),
            _ => None,
        };
        let arrivals = vec![Vec::new(); setting.shards.len()];
        let outlet = Outlet { arrivals, states: Vec::new(), len: 0, only };
        Expansion { setting, depth, steps: StepBuf::default(), outlet, tally: Tally::default() }
    }

    /// Sends what is still gathered and gives the counts.
    pub(super) fn finish(mut self) -> Tally {
        self.flush();
        self.tally
    }

    /// Hands what is gathered to the shards: first to those that no other worker has just now.
    fn flush(&mut self) {
        let Outlet { arrivals, states, len, only } = &mut self.outlet;
        if let Some(shard) = only {
            self.tally.pruned_by_hash += shard.arrive_all(&arrivals[0], states);
            arrivals[0].clear();
        } else {
            for patient in [false, true] {
                for (arrivals, shard) in arrivals.iter_mut().zip(&self.setting.shards) {
                    if arrivals.is_empty() {
                        continue;
                    }
                    let mut shard = match shard.try_lock() {
                        Ok(shard) => shard,
                        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                        Err(TryLockError::WouldBlock) if !patient => continue,
                        Err(TryLockError::WouldBlock) => {
                            shard.lock().unwrap_or_else(PoisonError::into_inner)
                        }
                    };
                    self.tally.pruned_by_hash += shard.arrive_all(arrivals, states);
                    arrivals.clear();
                }
            }
        }
        *len = 0;
    }

    /// Expands one chunk of a layer.
    pub(super) fn expand_all_of(&mut self, (nodes, lineages): (&[Node<State<M>>], &[Lineage])) {
        for (node, lineage) in nodes.iter().zip(lineages) {
            self.expand(node, lineage);
        }
    }

    fn expand(&mut self, node: &Node<State<M>>, lineage: &Lineage) {
        self.steps.truncate(0);
        self.setting.model.enabled(&node.state, &mut self.steps);
        if self.steps.len() == 0 {
            self.end(node, lineage);
        } else if self.setting.options.steps_max.is_some_and(|max| self.depth >= max) {
            self.tally.pruned_by_steps += self.steps.len() as u64;
            self.tally.paths = self.tally.paths.saturating_add(lineage.paths);
        } else if self.setting.reduce {
            self.expand_reduced(node, lineage);
        } else {
            self.expand_all(node, lineage);
        }
    }

    fn end(&mut self, node: &Node<State<M>>, lineage: &Lineage) {
        if lineage.slept != u32::MAX {
            return; // Seen at its first visit.
        }
        self.tally.ends += 1;
        self.tally.paths = self.tally.paths.saturating_add(lineage.paths);
        if let Err(invariant) = check_end(self.setting.model, &node.state) {
            self.tally.paths_violating = self.tally.paths_violating.saturating_add(lineage.paths);
            self.tally.violated(invariant, (node.key, None));
        }
    }

    fn expand_all(&mut self, node: &Node<State<M>>, lineage: &Lineage) {
        let bound = self.setting.options.preemptions_max;
        for at in 0..self.steps.len() {
            let step = self.steps.as_slice()[at];
            let mut last = None;
            let mut preemptions = 0;
            if let Some(bound) = bound {
                last = Some(step.thread);
                preemptions = node.preemptions + u32::from(self.preempts(node.last, step));
                if preemptions > bound {
                    self.tally.pruned_by_preemptions += 1;
                    continue;
                }
            }
            self.take(node, lineage, step, 0, last, preemptions);
        }
    }

    /// Whether `step` takes the turn from a thread that could go on.
    fn preempts(&self, last: Option<u8>, step: Step) -> bool {
        last.is_some_and(|last| {
            last != step.thread && self.steps.as_slice().iter().any(|other| other.thread == last)
        })
    }

    fn expand_reduced(&mut self, node: &Node<State<M>>, lineage: &Lineage) {
        let model = self.setting.model;
        let threads = Threads::of(model, &node.state, &self.steps);
        let awake = threads.enabled & !lineage.sleep;
        let mut moving = threads.moving(model, &node.state, awake);
        if moving != awake && !self.progresses(node, moving) {
            moving = awake;
        }
        // At a later visit only what has slept so far.
        let moving = moving & lineage.slept;
        let mut earlier = 0;
        for at in 0..self.steps.len() {
            let step = self.steps.as_slice()[at];
            if moving & (1 << step.thread) == 0 {
                self.tally.pruned_by_order += 1;
                continue;
            }
            // A thread does not send itself to sleep, whatever its footprint says.
            let others = (lineage.sleep | earlier) & !(1 << step.thread);
            let sleep = threads.undisturbed(others, model.footprint(&node.state, step));
            let last_of_thread = self
                .steps
                .as_slice()
                .get(at + 1)
                .is_none_or(|following| following.thread != step.thread);
            if last_of_thread {
                earlier |= 1 << step.thread;
            }
            self.take(node, lineage, step, sleep, None, 0);
        }
    }

    /// Whether some step of these threads leads to a state that no earlier layer has. Were all old,
    /// the threads that wait could wait for ever around a cycle.
    fn progresses(&mut self, node: &Node<State<M>>, threads: u32) -> bool {
        let model = self.setting.model;
        let mut steps = self.steps.as_slice().iter().filter(|s| threads & (1 << s.thread) != 0);
        steps.any(|&step| {
            let after = self.outlet.copy(&node.state);
            model.apply(after, step);
            let key = model.fingerprint(after);
            model.check(after, step).is_ok()
                && !match &self.outlet.only {
                    Some(shard) => shard.known_before(key),
                    None => self.setting.with_shard(key, |shard| shard.known_before(key)),
                }
        })
    }

    fn take(
        &mut self,
        node: &Node<State<M>>,
        lineage: &Lineage,
        step: Step,
        sleep: u32,
        last: Option<u8>,
        preemptions: u32,
    ) {
        let model = self.setting.model;
        let after = self.outlet.copy(&node.state);
        model.apply(after, step);
        self.tally.transitions += 1;
        if let Err(invariant) = model.check(after, step) {
            self.tally.violating_transitions += 1;
            self.tally.paths = self.tally.paths.saturating_add(lineage.paths);
            self.tally.paths_violating = self.tally.paths_violating.saturating_add(lineage.paths);
            self.tally.violated(invariant, (node.key, Some(step)));
            return;
        }
        let mut key = model.fingerprint(after);
        if let Some(last) = last {
            key = mix(key ^ mix(u64::from(last) << 32 | u64::from(preemptions)));
        }
        let state = self.outlet.len as u32;
        let at = self.setting.shard_index(key);
        self.outlet.arrivals[at].push(Arrival {
            key,
            parent: node.key,
            step,
            paths: lineage.paths,
            sleep,
            last,
            preemptions,
            state,
        });
        self.outlet.len += 1;
        if self.outlet.len == BATCH * self.setting.shards.len() {
            self.flush();
        }
    }
}
