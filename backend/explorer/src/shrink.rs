//! From a schedule that breaks an invariant to a minimal one: fewest steps, then fewest context
//! switches.
//!
//! First by search: layer by layer over (state, last thread), each with the fewest switches that
//! lead to it, up to a given number of states. That result is minimal and depends on nothing but
//! the model and the invariant. Where the states do not suffice, by deletion (delta debugging):
//! the result is then as short as dropping and joining runs of steps can make it.

use std::ops::ControlFlow;

use crate::found::{State, check_end};
use crate::model::{InvariantId, Model, Step, StepBuf};
use crate::report::{OnProgress, Progress};
use crate::rng::mix;
use crate::table::Table;

/// A shrunk schedule.
pub(crate) struct Shrunk {
    pub(crate) steps: Vec<Step>,
    /// Whether it is known to be minimal.
    pub(crate) minimal: bool,
}

/// Shrinks `steps`, which break `invariant`, visiting at most `states_max` states in search.
pub(crate) fn shrink<M: Model>(
    model: &M,
    invariant: InvariantId,
    steps: Vec<Step>,
    states_max: u64,
    on_progress: OnProgress<'_>,
) -> Shrunk {
    if let Some(steps) = Shortest::new(model, invariant, states_max).search(on_progress) {
        return Shrunk { steps, minimal: true };
    }
    Shrunk { steps: delete(model, invariant, steps), minimal: false }
}

/// A state as left by one thread.
struct Place {
    parent: u32,
    step: Step,
    switches: u32,
}

/// A violation: its cost (steps, switches), its place, and the step out of there that broke the
/// invariant, if it was a step.
type Candidate = ((u32, u32), u32, Option<Step>);

struct Shortest<'a, M: Model> {
    model: &'a M,
    invariant: InvariantId,
    states_max: u64,
    /// (state, last thread), with its place.
    visited: Table<2>,
    /// State, with the layer in which it was first reached: a longer way there is of no use.
    reached: Table<2>,
    places: Vec<Place>,
    next: Vec<State<M>>,
    /// The best violation met.
    best: Option<Candidate>,
}

impl<'a, M: Model> Shortest<'a, M> {
    fn new(model: &'a M, invariant: InvariantId, states_max: u64) -> Self {
        Shortest {
            model,
            invariant,
            states_max,
            visited: Table::new(),
            reached: Table::new(),
            places: Vec::new(),
            next: Vec::new(),
            best: None,
        }
    }

    /// A minimal schedule; `None` if the states do not suffice, or the callback says stop.
    fn search(mut self, on_progress: OnProgress<'_>) -> Option<Vec<Step>> {
        let initial = self.model.initial();
        self.reached.insert(self.model.fingerprint(&initial));
        // No thread has moved yet: the first step is no switch, so its place has no thread.
        self.places.push(Place { parent: 0, step: Step::default(), switches: 0 });
        let mut layer = vec![initial];
        let mut steps = StepBuf::default();
        let mut transitions = 0;
        for depth in 0_u32.. {
            let first = self.places.len() - layer.len();
            let open = self.places.len() as u32;
            for (number, state) in (first as u32..).zip(&layer) {
                steps.truncate(0);
                self.model.enabled(state, &mut steps);
                transitions += steps.len() as u64;
                self.expand(depth, number, open, state, steps.as_slice());
            }
            if self.best.is_some() {
                self.offer_ends(depth + 1, open);
                return self.best.map(|best| self.steps_of(best));
            }
            let progress = Progress {
                states: self.places.len() as u64,
                transitions,
                waiting: self.next.len() as u64,
                depth,
                shrinking: true,
            };
            if self.next.is_empty()
                || self.places.len() as u64 >= self.states_max
                || on_progress(progress) == ControlFlow::Break(())
            {
                return None;
            }
            layer = std::mem::take(&mut self.next);
        }
        None
    }

    /// Takes all steps of one state. `open` is the number of the first place of the next layer.
    fn expand(&mut self, depth: u32, number: u32, open: u32, state: &State<M>, steps: &[Step]) {
        let Place { step: arrived_by, switches, .. } = self.places[number as usize];
        if steps.is_empty() && check_end(self.model, state) == Err(self.invariant) {
            self.offer((depth, switches), number, None);
        }
        for &step in steps {
            let mut after = state.clone();
            self.model.apply(&mut after, step);
            let other = depth > 0 && step.thread != arrived_by.thread;
            let switches = switches + u32::from(other);
            match self.model.check(&after, step) {
                Ok(()) => self.arrive(depth, number, open, step, switches, after),
                Err(broken) if broken == self.invariant => {
                    self.offer((depth + 1, switches), number, Some(step));
                }
                Err(_) => {}
            }
        }
    }

    fn arrive(
        &mut self,
        depth: u32,
        parent: u32,
        open: u32,
        step: Step,
        switches: u32,
        state: State<M>,
    ) {
        let fingerprint = self.model.fingerprint(&state);
        match self.reached.insert(fingerprint) {
            (reached, true) => reached[1] = u64::from(depth) + 1,
            (reached, false) if reached[1] <= u64::from(depth) => return,
            _ => {}
        }
        let key = mix(fingerprint ^ mix(u64::from(step.thread) + 1));
        let (place, new) = self.visited.insert(key);
        if new {
            place[1] = self.places.len() as u64;
            self.places.push(Place { parent, step, switches });
            self.next.push(state);
        } else if place[1] >= u64::from(open) {
            let place = &mut self.places[place[1] as usize];
            if switches < place.switches {
                *place = Place { parent, step, switches };
            }
        }
    }

    /// An end of the next layer is as many steps away as a violation on the way there, and may
    /// take fewer switches.
    fn offer_ends(&mut self, depth: u32, open: u32) {
        let mut steps = StepBuf::default();
        for (number, state) in (open..).zip(std::mem::take(&mut self.next)) {
            steps.truncate(0);
            self.model.enabled(&state, &mut steps);
            if steps.len() == 0 && check_end(self.model, &state) == Err(self.invariant) {
                self.offer((depth, self.places[number as usize].switches), number, None);
            }
        }
    }

    fn offer(&mut self, cost: (u32, u32), place: u32, last: Option<Step>) {
        let candidate = (cost, place, last);
        let better = self.best.is_none_or(|best| {
            // Of equals the one that the first threads begin: it reads best.
            cost < best.0 || cost == best.0 && self.steps_of(candidate) < self.steps_of(best)
        });
        if better {
            self.best = Some(candidate);
        }
    }

    fn steps_of(&self, (_, mut place, last): Candidate) -> Vec<Step> {
        let mut steps: Vec<Step> = last.into_iter().collect();
        while place != 0 {
            let Place { parent, step, .. } = self.places[place as usize];
            steps.push(step);
            place = parent;
        }
        steps.reverse();
        steps
    }
}

/// Follows `steps`, leaving out those that are not enabled; the part up to the violation of
/// `invariant`, if they lead there. At their end, goes on with the first step listed for as many
/// steps as were given, so that an invariant of the end can be met.
fn follow<M: Model>(model: &M, invariant: InvariantId, steps: &[Step]) -> Option<Vec<Step>> {
    let mut state = model.initial();
    let mut enabled = StepBuf::default();
    let mut taken = Vec::with_capacity(steps.len());
    let mut wanted = steps.iter();
    let mut extra = steps.len();
    loop {
        enabled.truncate(0);
        model.enabled(&state, &mut enabled);
        let Some(&first) = enabled.as_slice().first() else {
            return (check_end(model, &state) == Err(invariant)).then_some(taken);
        };
        let step = if let Some(&step) = wanted.find(|step| enabled.as_slice().contains(step)) {
            step
        } else {
            extra = extra.checked_sub(1)?;
            first
        };
        model.apply(&mut state, step);
        taken.push(step);
        match model.check(&state, step) {
            Ok(()) => {}
            Err(broken) => return (broken == invariant).then_some(taken),
        }
    }
}

fn cost(steps: &[Step]) -> (usize, usize) {
    (steps.len(), steps.windows(2).filter(|pair| pair[0].thread != pair[1].thread).count())
}

/// Delta debugging: drops chunks, halving their size, and joins runs of one thread, as long as
/// the same invariant breaks at a lower cost.
fn delete<M: Model>(model: &M, invariant: InvariantId, mut steps: Vec<Step>) -> Vec<Step> {
    loop {
        let before = cost(&steps);
        let mut chunk = steps.len().div_ceil(2);
        while chunk > 0 {
            let mut at = 0;
            while at < steps.len() {
                let mut fewer = steps.clone();
                fewer.drain(at..steps.len().min(at + chunk));
                match follow(model, invariant, &fewer) {
                    Some(better) if cost(&better) < cost(&steps) => steps = better,
                    _ => at += chunk,
                }
            }
            chunk /= 2;
        }
        join_runs(model, invariant, &mut steps);
        if cost(&steps) >= before {
            return steps;
        }
    }
}

/// Joins each run of one thread with the run of that thread before it, at the place of either.
fn join_runs<M: Model>(model: &M, invariant: InvariantId, steps: &mut Vec<Step>) {
    let mut at = 1;
    while at < steps.len() {
        let better = joined(steps, at)
            .into_iter()
            .flatten()
            .filter_map(|candidate| follow(model, invariant, &candidate))
            .find(|candidate| cost(candidate) < cost(steps));
        match better {
            Some(better) => *steps = better,
            None => at += 1,
        }
    }
}

/// The run that begins at `at` moved up to its predecessor, and the predecessor moved down to it.
/// `None` if nothing lies between.
fn joined(steps: &[Step], at: usize) -> Option<[Vec<Step>; 2]> {
    let of_thread = |step: &Step| step.thread == steps[at].thread;
    let before = steps[..at].iter().rposition(of_thread).filter(|&before| before + 1 < at)?;
    let end = at + steps[at..].iter().take_while(|step| of_thread(step)).count();
    let start = before + 1 - steps[..=before].iter().rev().take_while(|s| of_thread(s)).count();
    let (mut up, mut down) = (steps.to_vec(), steps.to_vec());
    up[before + 1..end].rotate_right(end - at);
    down[start..at].rotate_left(before + 1 - start);
    Some([up, down])
}
