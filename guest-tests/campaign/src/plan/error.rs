//! What is wrong with a plan.

use std::io;

use agent::wire::WorkloadError;
use pipeline::RulesError;
use thiserror::Error;

/// A plan cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// No built-in plan has that name.
    #[error(
        "no plan is named \"{name}\"; built in are {known}; a file of your own needs a / or .toml in its name"
    )]
    Unknown {
        /// The name.
        name: String,
        /// The built-in plans.
        known: String,
    },
    /// The file cannot be read.
    #[error("Could not read the plan {file}")]
    Read {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A mistake in the file.
    #[error("{file}:{line}: {problem}")]
    Mistake {
        /// The file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        problem: PlanProblem,
    },
    /// A mistake in an arm's rules; names file and line itself.
    #[error(transparent)]
    Rules(RulesError),
}

/// What can be wrong in a plan file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanProblem {
    /// Not TOML, an unknown or missing field, or a value of another type.
    #[error("{0}")]
    Syntax(String),
    /// The rate does not separate affected from fixed.
    #[error("rate_if_affected is {0}; give a share from 0.05 to 1")]
    Rate(f64),
    /// No trials.
    #[error("trials is 0; give at least 1")]
    NoTrials,
    /// The workload does not fit together.
    #[error(transparent)]
    Workload(WorkloadError),
    /// Nothing counts as a hit.
    #[error("nothing counts as a hit; give kernel_log, counter_rises, shadow, or several")]
    NoHit,
    /// A rule that no shadow has.
    #[error("no shadow has a rule \"{rule}\"; there are {known}")]
    UnknownRule {
        /// The rule.
        rule: String,
        /// Those that there are.
        known: String,
    },
    /// A hit needs a value that the workload does not read.
    #[error("counter_rises needs the value \"{0}\", which no read_value of the workload reads")]
    UnreadValue(String),
    /// Two arms of one name.
    #[error("a second arm is named \"{0}\"; choose another name")]
    DuplicateArm(String),
    /// No arm for the verdict.
    #[error("no arm is named \"rules\"; the verdict is about that one")]
    NoRulesArm,
}

impl PlanError {
    pub(super) fn unknown(name: &str) -> PlanError {
        let known = super::names().collect::<Vec<_>>().join(", ");
        PlanError::Unknown { name: name.to_owned(), known }
    }
}
