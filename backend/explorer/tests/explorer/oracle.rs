//! Every schedule, one after another, by recursion.

use std::collections::{BTreeMap, HashSet};

use explorer::{InvariantId, Model, Step, StepBuf};

pub(crate) struct Oracle<S> {
    pub(crate) schedules: u128,
    pub(crate) violating: u128,
    /// Distinct states, and those without enabled steps.
    pub(crate) states: HashSet<S>,
    pub(crate) ends: HashSet<S>,
    /// Fewest (steps, switches) that break each invariant.
    pub(crate) cheapest: BTreeMap<InvariantId, (usize, usize)>,
}

/// Enumerates the schedules of an acyclic model with at most so many preemptions.
pub(crate) fn enumerate<M: Model>(model: &M, preemptions_max: u32) -> Oracle<M::State> {
    let mut oracle = Oracle {
        schedules: 0,
        violating: 0,
        states: HashSet::new(),
        ends: HashSet::new(),
        cheapest: BTreeMap::new(),
    };
    let mut path = Vec::new();
    go(model, &model.initial(), preemptions_max, &mut path, &mut oracle);
    oracle
}

fn go<M: Model>(
    model: &M,
    state: &M::State,
    preemptions_left: u32,
    path: &mut Vec<Step>,
    oracle: &mut Oracle<M::State>,
) {
    oracle.states.insert(state.clone());
    let mut enabled = StepBuf::default();
    model.enabled(state, &mut enabled);
    if enabled.as_slice().is_empty() {
        oracle.schedules += 1;
        oracle.ends.insert(state.clone());
        let verdict = if model.finished(state) {
            model.check_final(state)
        } else {
            Err(InvariantId::DEADLOCK)
        };
        note(verdict, path, oracle);
        return;
    }
    let last = path.last().map(|step| step.thread);
    let could_go_on = enabled.as_slice().iter().any(|step| Some(step.thread) == last);
    for &step in enabled.as_slice() {
        let cost = u32::from(could_go_on && Some(step.thread) != last);
        let Some(left) = preemptions_left.checked_sub(cost) else {
            continue;
        };
        let mut after = state.clone();
        model.apply(&mut after, step);
        path.push(step);
        let verdict = model.check(&after, step);
        if verdict.is_ok() {
            go(model, &after, left, path, oracle);
        } else {
            oracle.schedules += 1;
            note(verdict, path, oracle);
        }
        path.pop();
    }
}

fn note<S>(verdict: Result<(), InvariantId>, path: &[Step], oracle: &mut Oracle<S>) {
    let Err(invariant) = verdict else { return };
    oracle.violating += 1;
    let switches = path.windows(2).filter(|pair| pair[0].thread != pair[1].thread).count();
    let cost = (path.len(), switches);
    let cheapest = oracle.cheapest.entry(invariant).or_insert(cost);
    *cheapest = cost.min(*cheapest);
}
