//! Runs one schedule and tells what happened, step by step.
//!
//! In: a model and a schedule. Out: a trace of values that a program prints, or the reason why the
//! schedule cannot be followed.

use crate::found::{State, check_end};
use crate::model::{InvariantId, Model, Step, StepBuf};
use crate::schedule::{Schedule, ScheduleError};

/// One step of a trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The step.
    pub step: Step,
    /// What it is: [`Model::step_label`].
    pub label: String,
    /// What its thread holds after it: [`Model::held`].
    pub held: String,
    /// What it changed: [`Model::changed`].
    pub changed: String,
}

/// How a schedule ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It breaks an invariant.
    Violation {
        /// Which.
        invariant: InvariantId,
        /// Its name.
        name: String,
        /// What is wrong.
        detail: String,
    },
    /// It reaches a proper end.
    End,
    /// More steps are enabled after its last one.
    Open,
}

/// A schedule, followed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trace {
    /// Names of the threads, by number.
    pub threads: Vec<String>,
    /// The steps.
    pub rows: Vec<Row>,
    /// What they lead to.
    pub outcome: Outcome,
}

/// Why a schedule cannot be followed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplayError {
    /// It was made for another model.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A step is not enabled when its turn comes.
    #[error("step {index} ({step}) is not enabled; enabled are: {}", list(enabled))]
    NotEnabled {
        /// Position in the schedule, from 1.
        index: usize,
        /// The step.
        step: Step,
        /// What the model offers instead.
        enabled: Vec<Step>,
    },
    /// Steps follow a violation, which ends a schedule.
    #[error("step {index} follows the violation of {name}, which ends the schedule")]
    AfterViolation {
        /// Position of the first superfluous step, from 1.
        index: usize,
        /// Name of the invariant.
        name: String,
    },
}

fn list(steps: &[Step]) -> String {
    let texts: Vec<String> = steps.iter().map(Step::to_string).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

/// Follows a schedule.
pub fn replay<M: Model>(model: &M, schedule: &Schedule) -> Result<Trace, ReplayError> {
    schedule.check_model(model)?;
    let mut rows = Vec::with_capacity(schedule.steps.len());
    let mut state = model.initial();
    let mut enabled = StepBuf::default();
    let mut verdict = Ok(());
    for (at, &step) in schedule.steps.iter().enumerate() {
        if let Err(invariant) = verdict {
            let name = invariant_name(model, invariant);
            return Err(ReplayError::AfterViolation { index: at + 1, name });
        }
        enabled.truncate(0);
        model.enabled(&state, &mut enabled);
        if !enabled.as_slice().contains(&step) {
            let enabled = enabled.as_slice().to_vec();
            return Err(ReplayError::NotEnabled { index: at + 1, step, enabled });
        }
        let before = state.clone();
        model.apply(&mut state, step);
        rows.push(Row {
            step,
            label: model.step_label(&before, step),
            held: model.held(&state, step.thread),
            changed: model.changed(&before, &state),
        });
        verdict = model.check(&state, step);
    }
    let mut outcome = Outcome::Open;
    if verdict.is_ok() {
        enabled.truncate(0);
        model.enabled(&state, &mut enabled);
        if enabled.len() == 0 {
            verdict = check_end(model, &state);
            outcome = Outcome::End;
        }
    }
    if let Err(invariant) = verdict {
        outcome = Outcome::Violation {
            invariant,
            name: invariant_name(model, invariant),
            detail: explain(model, &schedule.steps, &state, invariant),
        };
    }
    let threads = (0..model.threads()).map(|thread| model.thread_name(thread as u8)).collect();
    Ok(Trace { threads, rows, outcome })
}

/// The name of an invariant, the search's own included.
pub(crate) fn invariant_name<M: Model>(model: &M, invariant: InvariantId) -> String {
    match invariant {
        InvariantId::DEADLOCK => "deadlock".to_owned(),
        own => model.invariant(own),
    }
}

/// What is wrong in `state`.
pub(crate) fn explain<M: Model>(
    model: &M,
    history: &[Step],
    state: &State<M>,
    invariant: InvariantId,
) -> String {
    if invariant != InvariantId::DEADLOCK {
        return model.explain(history, state, invariant);
    }
    let threads = (0..model.threads() as u8).map(|thread| {
        let held = model.held(state, thread);
        let held = if held.is_empty() { "nothing".to_owned() } else { held };
        format!("{} holds {held}", model.thread_name(thread))
    });
    format!("no thread can move: {}", threads.collect::<Vec<_>>().join("; "))
}
