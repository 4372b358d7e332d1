//! Schedules: the order of steps that leads to a state, as one line of text.
//!
//! ```text
//! rgs1:mkwrite-fallocate@linux-5.10.223:0123456789abcdef:Ax3-B-A.2-Bx4
//! ^    ^                                ^                ^
//! |    name of the model                |                steps: thread letter, .choice, x repeats
//! format version                        identity of the model (16 hex digits)
//! ```
//!
//! No blank, quote or character that a shell expands, so that a schedule can be pasted after
//! `--replay`. A schedule of another format version or of another model is refused, because its
//! steps would mean something else.

use std::fmt;
use std::str::FromStr;

use crate::model::{Model, Step, THREADS_MAX};

/// Format tag of this version; the number changes with any change of the text form.
const TAG: &str = "rgs1";
/// What the tags of all versions begin with.
const TAG_FAMILY: &str = "rgs";
/// Longest schedule that is read, in steps: far above any search, and a bound on hostile input.
const STEPS_MAX: usize = 1 << 20;

/// An order of steps from a model's initial state.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Schedule {
    /// [`Model::name`] of the model it was made for.
    pub model: String,
    /// [`Model::identity`] of the model it was made for.
    pub identity: u64,
    /// The steps, first to last.
    pub steps: Vec<Step>,
}

/// Why a text is not a schedule, or not one for this model.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The text does not begin like a schedule.
    #[error("not a schedule: expected `{TAG}:MODEL:IDENTITY:STEPS`, found `{found}`")]
    NotASchedule {
        /// The beginning of the text.
        found: String,
    },
    /// A schedule of another version of the format.
    #[error("schedule format `{found}` is not supported; this build reads `{TAG}`")]
    Version {
        /// The tag found.
        found: String,
    },
    /// The identity is not 16 hexadecimal digits.
    #[error("schedule identity `{found}` is not 16 hexadecimal digits")]
    Identity {
        /// The field found.
        found: String,
    },
    /// A step cannot be read.
    #[error("schedule step {index} `{found}` is not LETTER[.CHOICE][xREPEATS]")]
    Step {
        /// Position in the list of steps as written, from 1.
        index: usize,
        /// The text found.
        found: String,
    },
    /// More steps than any search makes.
    #[error("schedule has more than {STEPS_MAX} steps")]
    TooLong,
    /// Made for a model with another name.
    #[error("schedule is for model `{found}`, not for `{expected}`")]
    OtherModel {
        /// Name of the model at hand.
        expected: String,
        /// Name in the schedule.
        found: String,
    },
    /// Made for another content of the model of that name.
    #[error(
        "schedule is for `{model}` with identity {found:016x}, but this build's is {expected:016x}: \
         the scenario or the model has changed since"
    )]
    OtherIdentity {
        /// Name of the model.
        model: String,
        /// Identity of the model at hand.
        expected: u64,
        /// Identity in the schedule.
        found: u64,
    },
}

impl Schedule {
    /// A schedule for `model`.
    pub fn new<M: Model>(model: &M, steps: Vec<Step>) -> Schedule {
        Schedule { model: model.name(), identity: model.identity(), steps }
    }

    /// Refuses a schedule that was made for another model.
    pub fn check_model<M: Model>(&self, model: &M) -> Result<(), ScheduleError> {
        if self.model != model.name() {
            return Err(ScheduleError::OtherModel {
                expected: model.name(),
                found: self.model.clone(),
            });
        }
        if self.identity != model.identity() {
            return Err(ScheduleError::OtherIdentity {
                model: self.model.clone(),
                expected: model.identity(),
                found: self.identity,
            });
        }
        Ok(())
    }

    /// How often the schedule goes from one thread to another.
    pub fn switches(&self) -> usize {
        self.steps.windows(2).filter(|pair| pair[0].thread != pair[1].thread).count()
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TAG}:{}:{:016x}:", self.model, self.identity)?;
        for (index, run) in self.steps.chunk_by(|a, b| a == b).enumerate() {
            if index > 0 {
                f.write_str("-")?;
            }
            write!(f, "{}", run[0])?;
            if run.len() > 1 {
                write!(f, "x{}", run.len())?;
            }
        }
        Ok(())
    }
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Schedule, ScheduleError> {
        let not_a_schedule =
            || ScheduleError::NotASchedule { found: text.chars().take(40).collect() };
        let mut fields = text.trim().splitn(4, ':');
        let tag = fields.next().unwrap_or_default();
        if tag != TAG {
            let version = tag.strip_prefix(TAG_FAMILY);
            return Err(match version {
                Some(digits) if digits.parse::<u32>().is_ok() => {
                    ScheduleError::Version { found: tag.to_owned() }
                }
                _ => not_a_schedule(),
            });
        }
        let (Some(model), Some(identity), Some(steps)) =
            (fields.next(), fields.next(), fields.next())
        else {
            return Err(not_a_schedule());
        };
        let identity_error = || ScheduleError::Identity { found: identity.to_owned() };
        if identity.len() != 16 || !identity.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(identity_error());
        }
        let identity = u64::from_str_radix(identity, 16).map_err(|_| identity_error())?;
        Ok(Schedule { model: model.to_owned(), identity, steps: parse_steps(steps)? })
    }
}

fn parse_steps(text: &str) -> Result<Vec<Step>, ScheduleError> {
    let mut steps = Vec::new();
    if text.is_empty() {
        return Ok(steps);
    }
    for (index, token) in text.split('-').enumerate() {
        let (step, repeats) = parse_run(token)
            .ok_or_else(|| ScheduleError::Step { index: index + 1, found: token.to_owned() })?;
        if steps.len() + repeats > STEPS_MAX {
            return Err(ScheduleError::TooLong);
        }
        steps.extend(std::iter::repeat_n(step, repeats));
    }
    Ok(steps)
}

/// One token: `A`, `A.2`, `Ax3`, `A.2x3`.
fn parse_run(token: &str) -> Option<(Step, usize)> {
    let letter = token.bytes().next()?;
    let thread = letter.checked_sub(b'A').filter(|&n| usize::from(n) < THREADS_MAX)?;
    let rest = &token[1..];
    let (choice, repeats) = match rest.split_once('x') {
        Some((choice, repeats)) => (choice, number(repeats)?),
        None => (rest, 1),
    };
    let choice = match choice.strip_prefix('.') {
        Some(digits) => u8::try_from(number(digits)?).ok()?,
        None if choice.is_empty() => 0,
        None => return None,
    };
    (repeats > 0 && repeats <= STEPS_MAX).then_some((Step { thread, choice }, repeats))
}

/// Plain decimal digits only: `parse` alone would take a sign.
fn number(digits: &str) -> Option<usize> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests;
