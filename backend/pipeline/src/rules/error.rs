//! What is wrong with a rules file.
//!
//! In: places and mistakes. Out: [`RulesError`], one line that says where and what to do.
//! Must not know: how rules are parsed.

use thiserror::Error;

use crate::nearest::hint;

/// A mistake in a rules file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{file}:{line}: {}{problem}", place(.rule.as_deref(), .field))]
pub struct RulesError {
    /// Name of the file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Name of the rule, where one is known.
    pub rule: Option<String>,
    /// The field, for example `match.class`; empty for the file or the rule as a whole.
    pub field: String,
    /// What is wrong with it, and the mend.
    pub problem: Box<RulesProblem>,
}

/// What can be wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RulesProblem {
    /// Not TOML.
    #[error("not valid TOML: {0}")]
    Syntax(String),
    /// No such field.
    #[error("unknown field{}", hint_or_known(.nearest.as_deref(), .known))]
    UnknownField {
        /// The field that was probably meant.
        nearest: Option<String>,
        /// All fields that may stand here, comma separated.
        known: String,
    },
    /// A field that must be there is not.
    #[error("missing; give {example}")]
    Missing {
        /// What to write.
        example: &'static str,
    },
    /// A value of another type.
    #[error("is {found}; give {expected}")]
    Type {
        /// What is there.
        found: String,
        /// What is wanted.
        expected: &'static str,
    },
    /// A word that is not one of those known.
    #[error("unknown {what} `{name}`{}", hint_or_known(.nearest.as_deref(), .known))]
    UnknownName {
        /// What it should name.
        what: &'static str,
        /// The word.
        name: String,
        /// The word that was probably meant.
        nearest: Option<String>,
        /// All words that may stand here, comma separated.
        known: String,
    },
    /// A rule that is not in the file.
    #[error("no rule is named `{name}`{}", hint(.nearest.as_deref()))]
    UnknownRule {
        /// The name.
        name: String,
        /// The rule that was probably meant.
        nearest: Option<String>,
    },
    /// Two rules of one name.
    #[error("line {first_line} has a rule of this name; choose another")]
    Duplicate {
        /// Line of the first.
        first_line: usize,
    },
    /// A field that blocks of the class do not have.
    #[error("class `{class}` has no `{field}`; these have: {classes}")]
    NotOfClass {
        /// The field.
        field: &'static str,
        /// The class.
        class: &'static str,
        /// Classes that have the field, comma separated.
        classes: String,
    },
    /// Not a duration.
    #[error("`{text}` is not a duration ({reason}); write for example \"80ms\" or \"1.5s\"")]
    Duration {
        /// What is there.
        text: String,
        /// Why not.
        reason: String,
    },
    /// A duration outside what is allowed.
    #[error("{found} is {}; give {}", if *.too_long { "too long" } else { "too short" }, .expected)]
    DurationRange {
        /// What is there.
        found: String,
        /// Above the limit, not below.
        too_long: bool,
        /// What is allowed.
        expected: &'static str,
    },
    /// Not a number, or not a range of numbers.
    #[error(
        "`{text}` is not a number or a range; write 7, \"0..=9\", \"0..10\", \"7..\" or a list"
    )]
    Range {
        /// What is there.
        text: String,
    },
    /// A number outside what is allowed.
    #[error("{found} is out of range; give {expected}")]
    OutOfRange {
        /// What is there.
        found: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// Fields that exclude each other.
    #[error("cannot stand with `{other}`: {reason}")]
    Contradiction {
        /// The other field.
        other: &'static str,
        /// Why, and the mend.
        reason: &'static str,
    },
    /// The rule can never match a request, or never fire.
    #[error("can never match: {0}")]
    NeverMatches(String),
    /// The rule can match but never fire, or wait for what cannot come.
    #[error("can never happen: {0}")]
    NeverHappens(String),
    /// A histogram that is no histogram.
    #[error("not a histogram: {0}")]
    Histogram(String),
    /// A file that a rule names cannot be had.
    #[error("cannot read `{name}`: {reason}")]
    File {
        /// The file.
        name: String,
        /// Why not.
        reason: String,
    },
    /// More rules than [`RULES_MAX`](crate::RULES_MAX).
    #[error("{count} rules are too many; the most is {}", crate::RULES_MAX)]
    TooMany {
        /// How many there are.
        count: usize,
    },
}

fn place(rule: Option<&str>, field: &str) -> String {
    match (rule, field) {
        (None, "") => String::new(),
        (None, field) => format!("`{field}`: "),
        (Some(rule), "") => format!("rule `{rule}`: "),
        (Some(rule), field) => format!("rule `{rule}`: `{field}`: "),
    }
}

fn hint_or_known(nearest: Option<&str>, known: &str) -> String {
    if nearest.is_some() { hint(nearest) } else { format!("; known: {known}") }
}
