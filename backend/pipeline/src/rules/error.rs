//! What is wrong with a rules file.
//!
//! In: places and mistakes. Out: [`RulesError`], one line that says where and what to do.
//! Must not know: how rules are parsed.

use thiserror::Error;

/// A mistake in a rules file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{file}:{line}: {}{problem}", place(.rule, .field))]
pub struct RulesError {
    /// Name of the file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Name of the rule, where one is known.
    pub rule: Option<String>,
    /// The field, for example `match.class`; empty for the file as a whole.
    pub field: String,
    /// What is wrong with it, and the mend.
    pub problem: RulesProblem,
}

/// What can be wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RulesProblem {
    /// Not TOML.
    #[error("{0}")]
    Syntax(String),
}

fn place(rule: &Option<String>, field: &str) -> String {
    match (rule, field) {
        (None, "") => String::new(),
        (None, field) => format!("`{field}`: "),
        (Some(rule), "") => format!("rule `{rule}`: "),
        (Some(rule), field) => format!("rule `{rule}`: `{field}`: "),
    }
}
