//! The `action` of a rule.
//!
//! In: its table. Out: [`RuleAction`]. Must not know: requests in flight, other rules but by name.

use std::sync::Arc;

use super::error::{RulesError, RulesProblem};
use super::parse::{Context, find_rule, parse_count, parse_name, unknown_event};
use super::read::{Field, Table, parse_duration};
use super::{DEFAULT_HOLD_NS, Match, RuleAction, Until, Wait};
use crate::delay::Delay;
use crate::errno::Errno;

const DELAY: &str = "a duration such as \"80ms\", or a table that names a distribution";
const DISTRIBUTIONS: &[&str] = &["uniform", "normal", "exponential", "pareto", "histogram"];

/// Parses the action of the rule with that index.
pub(super) fn parse_action(
    index: usize,
    matches: &Match,
    table: &Table<'_>,
    context: &mut Context<'_, '_>,
) -> Result<RuleAction, RulesError> {
    table.only(&["delay", "hold", "fail", "pass"])?;
    let (delay, hold) = (table.get("delay"), table.get("hold"));
    let (fail, pass) = (table.get("fail"), table.get("pass"));
    if let Some(field) = &pass {
        if !field.bool()? {
            let problem =
                RulesProblem::Type { found: "false".to_owned(), expected: "true, or leave it out" };
            return Err(field.error(problem));
        }
        if delay.is_some() || hold.is_some() || fail.is_some() {
            return Err(field.error(RulesProblem::Contradiction {
                other: "delay, hold, fail",
                reason: "a request that passes meets none of them; leave one out",
            }));
        }
    } else if delay.is_none() && hold.is_none() && fail.is_none() {
        return Err(table
            .place
            .error(RulesProblem::Missing { example: "one of delay, hold, fail or pass = true" }));
    }
    let wait = match (delay, hold) {
        (Some(_), Some(hold)) => {
            return Err(hold.error(RulesProblem::Contradiction {
                other: "delay",
                reason: "a hold has its own limit, at_most; leave one out",
            }));
        }
        (Some(delay), None) => Wait::Delay(parse_delay(&delay, context)?),
        (None, Some(hold)) => parse_hold(index, matches, &hold, context)?,
        (None, None) => Wait::None,
    };
    let names: Vec<&'static str> = Errno::names().collect();
    let fail = fail
        .map(|field| {
            parse_name(
                &field,
                "errno",
                "the name of an errno such as \"EIO\"",
                Errno::parse,
                &names,
            )
        })
        .transpose()?;
    Ok(RuleAction { wait, fail })
}

fn parse_hold(
    index: usize,
    matches: &Match,
    field: &Field<'_>,
    context: &Context<'_, '_>,
) -> Result<Wait, RulesError> {
    let table =
        field.table("a table, for example { until = \"agent:ready\", at_most = \"500ms\" }")?;
    table.only(&["until", "at_most"])?;
    let at_most_ns = match table.get("at_most") {
        Some(field) => field.duration()?,
        None => DEFAULT_HOLD_NS,
    };
    let Some(field) = table.get("until") else {
        return Ok(Wait::Hold { until: Until::Control, spelling: "control".into(), at_most_ns });
    };
    let expected = "\"agent:MARK\", \"rule:NAME\", \"request:N\" or \"control\"";
    let text = field.str(expected)?;
    let until = match text.split_once(':') {
        None if text == "control" => Until::Control,
        Some(("agent", mark)) if !mark.is_empty() => Until::Agent(Arc::from(mark)),
        Some(("rule", name)) => Until::Rule(find_rule(name, &field, context)?),
        Some(("request", count)) => Until::Requests(parse_count(count, &field)?),
        _ => {
            let words = ["agent", "rule", "request", "control"];
            return Err(unknown_event(text, "end of a hold", &words, expected, &field));
        }
    };
    if until == Until::Rule(index) && matches.when.fires_at_most() == Some(1) {
        return Err(field.error(RulesProblem::NeverHappens(
            "the rule fires once, so no second firing can end its hold; wait for another rule"
                .to_owned(),
        )));
    }
    Ok(Wait::Hold { until, spelling: text.into(), at_most_ns })
}

fn parse_delay(field: &Field<'_>, context: &mut Context<'_, '_>) -> Result<Delay, RulesError> {
    if field.is_str() {
        return Ok(Delay::Fixed { ns: field.duration()? });
    }
    let table = field.table(DELAY)?;
    table.only(DISTRIBUTIONS)?;
    let Some((name, field)) = table.single() else {
        return Err(table.place.error(RulesProblem::Missing {
            example: "one of uniform, normal, exponential, pareto or histogram",
        }));
    };
    match name {
        "uniform" => parse_uniform(&field),
        "histogram" => parse_histogram(&field, context),
        "normal" => {
            let table = field.table("{ mean = \"5ms\", stddev = \"1ms\" }")?;
            table.only(&["mean", "stddev"])?;
            Ok(Delay::Normal {
                mean_ns: duration(&table, "mean")?,
                stddev_ns: duration(&table, "stddev")?,
            })
        }
        "exponential" => {
            let table = field.table("{ mean = \"2ms\" }")?;
            table.only(&["mean"])?;
            Ok(Delay::Exponential { mean_ns: duration(&table, "mean")? })
        }
        _ => {
            let table = field.table("{ scale = \"1ms\", shape = 1.5 }")?;
            table.only(&["scale", "shape"])?;
            let expected = "a number above 0";
            let field = table.require("shape", "shape = 1.5")?;
            let shape = field.f64(expected)?;
            if !(shape.is_finite() && shape > 0.0) {
                let found = shape.to_string();
                return Err(field.error(RulesProblem::OutOfRange { found, expected }));
            }
            Ok(Delay::Pareto { scale_ns: duration(&table, "scale")?, shape })
        }
    }
}

fn duration(table: &Table<'_>, name: &'static str) -> Result<f64, RulesError> {
    table.require(name, "a duration such as \"5ms\"")?.duration().map(|ns| ns as f64)
}

fn parse_uniform(field: &Field<'_>) -> Result<Delay, RulesError> {
    let expected = "two durations, [\"1ms\", \"20ms\"]";
    let bounds = field.list(expected)?;
    let [from, to] = bounds.as_slice() else {
        let found = format!("a list of {}", bounds.len());
        return Err(field.error(RulesProblem::Type { found, expected }));
    };
    let (from_ns, to_ns) = (from.duration_from(0)?, to.duration()?);
    if from_ns > to_ns {
        return Err(field.error(RulesProblem::NeverHappens(
            "the first duration is longer than the second; swap them".to_owned(),
        )));
    }
    Ok(Delay::Uniform { from_ns, to_ns })
}

fn parse_histogram(field: &Field<'_>, context: &mut Context<'_, '_>) -> Result<Delay, RulesError> {
    let mut steps = Vec::new();
    if field.is_str() {
        let name = field.str("")?;
        let text = (context.read)(name)
            .map_err(|reason| field.error(RulesProblem::File { name: name.to_owned(), reason }))?;
        histogram_file(name, &text, &mut steps)
            .map_err(|why| field.error(RulesProblem::Histogram(why)))?;
        context.files.insert(name.to_owned(), text);
    } else {
        let expected = "a list of [\"1ms\", weight], or the name of a file";
        for member in field.list(expected)? {
            let pair = member.list("a pair [\"1ms\", weight]")?;
            let [value, weight] = pair.as_slice() else {
                let found = format!("a list of {}", pair.len());
                let expected = "a pair [\"1ms\", weight]";
                return Err(member.error(RulesProblem::Type { found, expected }));
            };
            let weight = weight.u64("a whole number as weight")?;
            push_step(&mut steps, value.duration_from(0)?, weight);
        }
    }
    if steps.is_empty() {
        let why = "no value has a weight above 0; give a value and a weight";
        return Err(field.error(RulesProblem::Histogram(why.to_owned())));
    }
    Ok(Delay::Histogram { steps: steps.into() })
}

/// A duration and a weight a line; `#` begins a comment.
fn histogram_file(name: &str, text: &str, steps: &mut Vec<(u64, u64)>) -> Result<(), String> {
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or(line).trim();
        if line.is_empty() {
            continue;
        }
        let at = format!("{name}:{}", index + 1);
        let (value, weight) = line
            .rsplit_once(char::is_whitespace)
            .ok_or_else(|| format!("{at}: write a duration and a weight, for example `1ms 90`"))?;
        let ns = parse_duration(value, 0).map_err(|problem| format!("{at}: {problem}"))?;
        let weight = weight.parse().map_err(|_| {
            format!("{at}: `{weight}` is not a whole number; write a weight, for example `1ms 90`")
        })?;
        push_step(steps, ns, weight);
    }
    Ok(())
}

fn push_step(steps: &mut Vec<(u64, u64)>, ns: u64, weight: u64) {
    let sum = steps.last().map_or(0, |step| step.1);
    // A sum that no longer grows at the end of u64 loses only the weights beyond it.
    let grown = sum.saturating_add(weight);
    if grown > sum {
        steps.push((ns, grown));
    }
}
