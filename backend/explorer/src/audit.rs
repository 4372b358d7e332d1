//! Does a model keep its promises? Without them no search result means anything.
//!
//! In: a model and a seed. Out: a count of what was checked, or the first fault with the schedule
//! that shows it. All is checked on states met by random schedules, so a pass is evidence, not
//! proof.
//!
//! Checked: the same steps give the same states, enabled steps and fingerprints a second time (no
//! hidden randomness, no memory outside the state); steps are listed once and name existing
//! threads; steps whose footprints do not conflict commute, do not enable, disable or alter each
//! other and do not change each other's verdict; a thread's future covers what it then does; a
//! verdict said to follow from the state alone does.
//! Not checked: that an invariant catches what it should (mutants do that), that different states
//! have different fingerprints (see [`crate::Coverage::omission_probability`]).

use crate::found::State;
use crate::model::{Footprint, Model, Step, StepBuf};
use crate::rng::Rng;
use crate::schedule::Schedule;

/// Longest schedule of an audit: a model with a cycle may never end by itself.
const STEPS_MAX: usize = 1 << 9;

/// What an audit went through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Audited {
    /// Schedules run twice.
    pub schedules: u64,
    /// Steps compared.
    pub steps: u64,
    /// Pairs of steps declared independent and tried in both orders.
    pub independent_pairs: u64,
}

/// A promise that a model breaks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// The second run of a schedule differs from the first.
    #[error("not deterministic: after {} steps the {what} differ in a second run of {schedule}", schedule.steps.len())]
    NotDeterministic {
        /// What differs.
        what: &'static str,
        /// The steps up to the difference.
        schedule: Schedule,
    },
    /// A step is listed twice, or names a thread that does not exist.
    #[error("step {step} is listed twice or has no thread, after {schedule}")]
    BadStep {
        /// The step.
        step: Step,
        /// The steps up to there.
        schedule: Schedule,
    },
    /// Two steps were declared independent and are not.
    #[error("steps {first} and {second} are declared independent, but {what}, after {schedule}")]
    NotIndependent {
        /// The step taken first.
        first: Step,
        /// The other.
        second: Step,
        /// In what way they depend on each other.
        what: &'static str,
        /// The steps up to there.
        schedule: Schedule,
    },
    /// The verdict on a state was declared to follow from the state, and depends on the step that
    /// led there.
    #[error("the verdict on a state depends on the step that led there, after {schedule}")]
    StateDoesNotDecide {
        /// The steps up to the state.
        schedule: Schedule,
    },
    /// A thread touches what its future did not name.
    #[error("the future of thread {thread} does not cover what it does, after {schedule}")]
    FutureTooSmall {
        /// The thread.
        thread: u8,
        /// The steps up to there.
        schedule: Schedule,
    },
}

/// Runs `schedules` random schedules and checks every promise along them.
pub fn audit<M: Model>(model: &M, seed: u64, schedules: u64) -> Result<Audited, Fault> {
    let mut audited = Audited::default();
    for number in 0..schedules {
        let recording = record(model, &mut Rng::new(seed, number))?;
        audited.steps += recording.steps.len() as u64;
        audited.schedules += 1;
        verdicts(model, &recording)?;
        audited.independent_pairs += promises(model, &recording)?;
        verify(model, &recording)?;
    }
    Ok(audited)
}

/// A schedule with all that was seen on the way.
struct Recording<M: Model> {
    steps: Vec<Step>,
    /// Before each step, and at the end: one more than there are steps.
    states: Vec<State<M>>,
    enabled: Vec<Vec<Step>>,
    fingerprints: Vec<u64>,
}

impl<M: Model> Recording<M> {
    fn up_to(&self, model: &M, index: usize) -> Schedule {
        Schedule::new(model, self.steps[..index].to_vec())
    }
}

fn enabled_in<M: Model>(model: &M, state: &State<M>) -> Vec<Step> {
    let mut steps = StepBuf::default();
    model.enabled(state, &mut steps);
    steps.as_slice().to_vec()
}

fn record<M: Model>(model: &M, rng: &mut Rng) -> Result<Recording<M>, Fault> {
    let mut recording = Recording {
        steps: Vec::new(),
        states: Vec::new(),
        enabled: Vec::new(),
        fingerprints: Vec::new(),
    };
    let mut state = model.initial();
    loop {
        let enabled = enabled_in(model, &state);
        for (at, &step) in enabled.iter().enumerate() {
            if usize::from(step.thread) >= model.threads() || enabled[..at].contains(&step) {
                let schedule = Schedule::new(model, recording.steps);
                return Err(Fault::BadStep { step, schedule });
            }
        }
        recording.states.push(state.clone());
        recording.fingerprints.push(model.fingerprint(&state));
        recording.enabled.push(enabled);
        let enabled = &recording.enabled[recording.steps.len()];
        if enabled.is_empty() || recording.steps.len() == STEPS_MAX {
            return Ok(recording);
        }
        let step = enabled[rng.below(enabled.len())];
        model.apply(&mut state, step);
        recording.steps.push(step);
        if model.check(&state, step).is_err() {
            // A violation ends a schedule; what a model offers beyond it does not matter.
            recording.enabled.push(Vec::new());
            recording.fingerprints.push(model.fingerprint(&state));
            recording.states.push(state);
            return Ok(recording);
        }
    }
}

/// Runs a recorded schedule again and compares everything.
fn verify<M: Model>(model: &M, recording: &Recording<M>) -> Result<(), Fault> {
    let mut state = model.initial();
    for index in 0..=recording.steps.len() {
        let broken = recording.enabled[index].is_empty();
        let what = if state != recording.states[index] {
            "states"
        } else if !broken && enabled_in(model, &state) != recording.enabled[index] {
            "enabled steps"
        } else if model.fingerprint(&state) != recording.fingerprints[index] {
            "fingerprints"
        } else {
            if let Some(&step) = recording.steps.get(index) {
                model.apply(&mut state, step);
            }
            continue;
        };
        let schedule = recording.up_to(model, index);
        return Err(Fault::NotDeterministic { what, schedule });
    }
    Ok(())
}

/// Compares the verdicts on each recorded state as if each thread had taken the last step.
fn verdicts<M: Model>(model: &M, recording: &Recording<M>) -> Result<(), Fault> {
    let reached = recording.steps.iter().zip(&recording.states[1..]);
    for (index, (&last, state)) in (1..).zip(reached) {
        let verdict = model.check(state, last);
        let mut steps = (0..model.threads() as u8).map(|thread| Step { thread, ..last });
        if model.state_decides() && steps.any(|step| model.check(state, step) != verdict) {
            return Err(Fault::StateDoesNotDecide { schedule: recording.up_to(model, index) });
        }
    }
    Ok(())
}

/// Checks footprints and futures at each recorded state; the number of pairs tried.
fn promises<M: Model>(model: &M, recording: &Recording<M>) -> Result<u64, Fault> {
    let mut pairs = 0;
    let mut before: Option<Vec<Footprint>> = None;
    for (index, enabled) in recording.enabled.iter().enumerate() {
        if enabled.is_empty() {
            break;
        }
        let state = &recording.states[index];
        let futures: Vec<Footprint> =
            (0..model.threads() as u8).map(|thread| model.future(state, thread)).collect();
        if let Some(thread) = beyond_future(model, state, enabled, before.as_deref(), &futures) {
            let schedule = recording.up_to(model, index);
            return Err(Fault::FutureTooSmall { thread, schedule });
        }
        pairs += independent_pairs(model, state, enabled).map_err(|(first, second, what)| {
            let schedule = recording.up_to(model, index);
            Fault::NotIndependent { first, second, what, schedule }
        })?;
        before = Some(futures);
    }
    Ok(pairs)
}

/// A thread whose future does not cover its next steps, has grown, or leaves out what another
/// thread's step does to the steps that it is offered.
fn beyond_future<M: Model>(
    model: &M,
    state: &State<M>,
    enabled: &[Step],
    before: Option<&[Footprint]>,
    futures: &[Footprint],
) -> Option<u8> {
    let of = |steps: &[Step], thread: u8| -> Vec<Step> {
        steps.iter().copied().filter(|step| step.thread == thread).collect()
    };
    let after: Vec<(Step, Footprint, Vec<Step>)> = enabled
        .iter()
        .map(|&step| {
            let mut after = state.clone();
            model.apply(&mut after, step);
            // What a model offers beyond a violation does not matter.
            let offered = match model.check(&after, step) {
                Ok(()) => enabled_in(model, &after),
                Err(_) => enabled.to_vec(),
            };
            (step, model.footprint(state, step), offered)
        })
        .collect();
    (0..).zip(futures).find_map(|(thread, &future)| {
        let grew = before.is_some_and(|before| !before[usize::from(thread)].covers(future));
        let own = after.iter().filter(|(step, ..)| step.thread == thread);
        let uncovered = own.clone().any(|&(_, footprint, _)| !future.covers(footprint));
        let swayed = after.iter().any(|(step, footprint, offered)| {
            step.thread != thread
                && !footprint.conflicts(future)
                && of(enabled, thread) != of(offered, thread)
        });
        (grew || uncovered || swayed).then_some(thread)
    })
}

/// Tries all pairs of steps declared independent; their number, or one that is not.
fn independent_pairs<M: Model>(
    model: &M,
    state: &State<M>,
    enabled: &[Step],
) -> Result<u64, (Step, Step, &'static str)> {
    let mut pairs = 0;
    for (at, &a) in enabled.iter().enumerate() {
        for &b in &enabled[at + 1..] {
            let conflict = model.footprint(state, a).conflicts(model.footprint(state, b));
            if a.thread == b.thread || conflict {
                continue;
            }
            pairs += 1;
            for (first, second) in [(a, b), (b, a)] {
                if let Some(what) = dependence(model, state, first, second) {
                    return Err((first, second, what));
                }
            }
        }
    }
    Ok(pairs)
}

/// In what way `second` depends on `first`, both enabled in `state`.
fn dependence<M: Model>(
    model: &M,
    state: &State<M>,
    first: Step,
    second: Step,
) -> Option<&'static str> {
    let after = |state: &State<M>, step| {
        let mut state = state.clone();
        model.apply(&mut state, step);
        state
    };
    let of_thread = |state: &State<M>| {
        let steps = enabled_in(model, state);
        steps.into_iter().filter(|step| step.thread == second.thread).collect::<Vec<_>>()
    };
    let after_first = after(state, first);
    let after_second = after(state, second);
    if model.check(&after_first, first).is_err() {
        return None; // The branch ends there: no second order to compare.
    }
    if of_thread(state) != of_thread(&after_first) {
        return Some("the first changes what the thread of the second may do");
    }
    if model.footprint(state, second) != model.footprint(&after_first, second) {
        return Some("the first changes the footprint of the second");
    }
    let both = after(&after_first, second);
    if model.check(&both, second) != model.check(&after_second, second) {
        return Some("the first changes the verdict on the second");
    }
    if model.check(&after_second, second).is_err() {
        return None;
    }
    let swapped = after(&after_second, first);
    if both != swapped {
        return Some("the order changes the state");
    }
    (model.fingerprint(&both) != model.fingerprint(&swapped))
        .then_some("the order changes the fingerprint of one state")
}
