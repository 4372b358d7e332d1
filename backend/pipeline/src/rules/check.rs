//! What can only be seen with all rules at hand: rules that never get a request.
//!
//! In: the parsed rules and where they are. Out: the first mistake.
//! Must not know: requests.

use super::error::{RulesError, RulesProblem};
use super::read::Table;
use super::{Rule, Trigger};

pub(super) fn check(rules: &[Rule], tables: &[Table<'_>]) -> Result<(), RulesError> {
    never_armed(rules, tables)?;
    never_first(rules, tables)
}

/// Rules that wait for rules that wait for them to be armed.
fn never_armed(rules: &[Rule], tables: &[Table<'_>]) -> Result<(), RulesError> {
    // A rule that starts disarmed without `arm_on` is for the operator to arm.
    let mut armed: Vec<bool> = rules
        .iter()
        .map(|rule| rule.armed || !matches!(rule.arm_on, Some(Trigger::Rule(_))))
        .collect();
    // Each round arms one rule more or is the last.
    for _ in rules {
        for (index, rule) in rules.iter().enumerate() {
            if let Some(Trigger::Rule(other)) = rule.arm_on {
                armed[index] |= armed[other];
            }
        }
    }
    for ((rule, table), armed) in rules.iter().zip(tables).zip(armed) {
        if let (Some(Trigger::Rule(other)), false) = (&rule.arm_on, armed) {
            let problem = RulesProblem::NeverHappens(if rules[*other].name == rule.name {
                "a disarmed rule does not fire, so it cannot arm itself".to_owned()
            } else {
                format!("rule `{}` is itself armed only after this one", rules[*other].name)
            });
            return Err(match table.get("arm_on") {
                Some(field) => field.error(problem),
                None => table.place.error(problem),
            });
        }
    }
    Ok(())
}

/// Rules that come after one that takes everything they match.
fn never_first(rules: &[Rule], tables: &[Table<'_>]) -> Result<(), RulesError> {
    for (index, (rule, table)) in rules.iter().zip(tables).enumerate() {
        let takes_all = rules[..index].iter().find(|earlier| {
            earlier.armed
                && earlier.disarm_on.is_none()
                && earlier.matches.when.always()
                && earlier.matches.covers(&rule.matches)
        });
        if let Some(earlier) = takes_all {
            return Err(table.place.error(RulesProblem::NeverHappens(format!(
                "rule `{}` (line {}) comes first and takes every request that this one matches; \
                 put this one before it",
                earlier.name, earlier.line
            ))));
        }
    }
    Ok(())
}
