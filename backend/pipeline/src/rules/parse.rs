//! From the text of a rules file to rules.
//!
//! In: TOML, and a function that gives the text of the files it names. Out: checked rules.
//! Must not know: requests in flight.

use std::collections::BTreeMap;
use std::sync::Arc;

use toml::de::DeTable;

use super::action::parse_action;
use super::error::{RulesError, RulesProblem};
use super::matching::parse_match;
use super::read::{Field, Place, Source, Table};
use super::{RULES_MAX, Rule, RuleSet, Trigger, check};
use crate::event::RulesText;
use crate::nearest::nearest;

/// Gives the text of a file that the rules name, or says why it cannot.
pub(super) type ReadFile<'a> = dyn FnMut(&str) -> Result<String, String> + 'a;

const RULE_FIELDS: &[&str] =
    &["name", "match", "action", "tell_agent", "armed", "arm_on", "disarm_on"];

/// What is known while the rules of a file are parsed.
pub(super) struct Context<'a, 'r> {
    /// Names of all rules of the file.
    pub(super) names: Vec<Arc<str>>,
    pub(super) read: &'r mut ReadFile<'a>,
    /// Files read so far.
    pub(super) files: BTreeMap<String, String>,
}

pub(super) fn parse(
    toml: &str,
    file: &str,
    read: &mut ReadFile<'_>,
) -> Result<RuleSet, RulesError> {
    let source = Source { file, text: toml };
    let whole = Place { source, rule: None, field: String::new(), span: 0..0 };
    let document = DeTable::parse(toml).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        // The parser's message may run over several lines; ours is one.
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        Place { span, ..whole.clone() }.error(RulesProblem::Syntax(message))
    })?;
    let top = Table::new(whole.clone(), document.get_ref());
    top.only(&["rule"])?;

    let mut tables = Vec::new();
    if let Some(list) = top.get("rule") {
        for member in list.list("a list of tables, each headed [[rule]]")? {
            tables.push(member.table("a table headed [[rule]]")?);
        }
    }
    if tables.len() > RULES_MAX {
        return Err(whole.error(RulesProblem::TooMany { count: tables.len() }));
    }

    let mut context = Context { names: name_all(&mut tables)?, read, files: BTreeMap::new() };
    let mut rules = Vec::with_capacity(tables.len());
    for (index, table) in tables.iter().enumerate() {
        rules.push(parse_rule(index, table, &mut context)?);
    }
    check::check(&rules, &tables)?;
    let text = RulesText {
        file: file.to_owned(),
        text: toml.to_owned(),
        files: context.files,
        seed: None,
    };
    Ok(RuleSet { rules, text })
}

/// Reads the names and puts them into the places of all later errors.
fn name_all(tables: &mut [Table<'_>]) -> Result<Vec<Arc<str>>, RulesError> {
    let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
    let mut names = Vec::with_capacity(tables.len());
    for table in tables {
        let field = table.require("name", "name = \"...\"")?;
        let name = field.str("a name")?;
        if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(field.error(RulesProblem::Type {
                found: format!("{name:?}"),
                expected: "a name without spaces, for example \"hold-bitmap\"",
            }));
        }
        if let Some(&first_line) = lines.get(name) {
            return Err(field.error(RulesProblem::Duplicate { first_line }));
        }
        lines.insert(name, table.place.line());
        names.push(Arc::from(name));
        table.place.rule = Some(name);
        table.place.field.clear();
    }
    Ok(names)
}

fn parse_rule(
    index: usize,
    table: &Table<'_>,
    context: &mut Context<'_, '_>,
) -> Result<Rule, RulesError> {
    table.only(RULE_FIELDS)?;
    let field = table.require("match", "match = { op = \"read\" }, or {} for every request")?;
    let matches = parse_match(&field.table("a table, for example { op = \"read\" }")?)?;
    let field = table.require("action", "action = { delay = \"80ms\" }")?;
    let action_table = field.table("a table, for example { delay = \"80ms\" }")?;
    let action = parse_action(index, &matches, &action_table, context)?;
    let flag = |name| table.get(name).map(|field| field.bool()).transpose();
    let arm_on = table.get("arm_on").map(|field| parse_trigger(&field, context)).transpose()?;
    let disarm_on =
        table.get("disarm_on").map(|field| parse_trigger(&field, context)).transpose()?;
    let armed = flag("armed")?.unwrap_or(arm_on.is_none());
    if let Some(field) = table.get("disarm_on").filter(|_| arm_on == disarm_on) {
        return Err(field.error(RulesProblem::Contradiction {
            other: "arm_on",
            reason: "the same event would arm and disarm; give another",
        }));
    }
    Ok(Rule {
        name: Arc::clone(&context.names[index]),
        line: table.place.line(),
        matches,
        action,
        tell_agent: flag("tell_agent")?.unwrap_or(false),
        armed,
        arm_on,
        disarm_on,
    })
}

/// `agent:MARK`, `rule:NAME` or `count:REQUESTS`.
fn parse_trigger(field: &Field<'_>, context: &Context<'_, '_>) -> Result<Trigger, RulesError> {
    const EXPECTED: &str = "\"agent:MARK\", \"rule:NAME\" or \"count:REQUESTS\"";
    let text = field.str(EXPECTED)?;
    match text.split_once(':') {
        Some(("agent", mark)) if !mark.is_empty() => Ok(Trigger::Agent(Arc::from(mark))),
        Some(("rule", name)) => find_rule(name, field, context).map(Trigger::Rule),
        Some(("count", count)) => parse_count(count, field).map(Trigger::Count),
        _ => Err(unknown_event(text, "event", &["agent", "rule", "count"], EXPECTED, field)),
    }
}

/// A word before a colon that is none of those known.
pub(super) fn unknown_event(
    text: &str,
    what: &'static str,
    words: &[&'static str],
    known: &str,
    field: &Field<'_>,
) -> RulesError {
    let word = text.split(':').next().unwrap_or(text);
    // A known word that is merely incomplete (`agent:`) is best served by the list of forms.
    let nearest = nearest(word, words.iter().copied()).filter(|nearest| *nearest != word);
    field.error(RulesProblem::UnknownName {
        what,
        name: text.to_owned(),
        nearest: nearest.map(str::to_owned),
        known: known.to_owned(),
    })
}

/// Index of the rule with that name.
pub(super) fn find_rule(
    name: &str,
    field: &Field<'_>,
    context: &Context<'_, '_>,
) -> Result<usize, RulesError> {
    context.names.iter().position(|known| &**known == name).ok_or_else(|| {
        let known = context.names.iter().map(|known| &**known);
        field.error(RulesProblem::UnknownRule {
            name: name.to_owned(),
            nearest: nearest(name, known).map(str::to_owned),
        })
    })
}

/// The number after `count:` or `request:`.
pub(super) fn parse_count(text: &str, field: &Field<'_>) -> Result<u64, RulesError> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(field.error(RulesProblem::OutOfRange {
            found: format!("`{text}`"),
            expected: "a number of requests, 1 or more",
        })),
    }
}

/// Looks a word up; the error names the nearest known one.
pub(super) fn parse_name<T>(
    field: &Field<'_>,
    what: &'static str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
    known: &[&'static str],
) -> Result<T, RulesError> {
    let name = field.str(expected)?;
    parse(name).ok_or_else(|| {
        field.error(RulesProblem::UnknownName {
            what,
            name: name.to_owned(),
            nearest: nearest(name, known.iter().copied()).map(str::to_owned),
            known: known.join(", "),
        })
    })
}
