//! The answer for people.

use std::io::{self, Write};

use explorer::{Bound, Outcome, Report, Schedule, Trace, replay};

use super::pick::Picked;
use super::timeline;

/// Prints the violations, each as a timeline, and the figures of a search.
pub(super) fn search(
    out: &mut impl Write,
    picked: &Picked,
    strategy: &str,
    report: &Report,
    seconds: f64,
) -> io::Result<()> {
    title(out, picked)?;
    for violation in &report.violations {
        let length = violation.schedule.steps.len();
        let switches = violation.schedule.switches();
        let minimal = if violation.minimal { "" } else { "; not proved minimal" };
        writeln!(
            out,
            "\n{} is broken in {length} steps with {switches} switches{minimal}:\n",
            violation.name
        )?;
        match replay(&picked.model, &violation.schedule) {
            Ok(trace) => end(out, picked, &trace, &violation.schedule)?,
            // The report came from this model: only one that is not deterministic gets here.
            Err(error) => writeln!(out, "cannot be drawn: {error}")?,
        }
    }
    writeln!(out)?;
    figures(out, strategy, report, seconds)
}

/// Prints a schedule that was followed.
pub(super) fn replayed(
    out: &mut impl Write,
    picked: &Picked,
    schedule: &Schedule,
    trace: &Trace,
) -> io::Result<()> {
    title(out, picked)?;
    writeln!(out)?;
    end(out, picked, trace, schedule)
}

fn title(out: &mut impl Write, picked: &Picked) -> io::Result<()> {
    writeln!(out, "{}: {}", picked.title(), picked.about)?;
    match picked.mutant {
        Some(mutant) => writeln!(out, "{} takes out \"{}\"", mutant.id, mutant.subject),
        None => Ok(()),
    }
}

fn end(
    out: &mut impl Write,
    picked: &Picked,
    trace: &Trace,
    schedule: &Schedule,
) -> io::Result<()> {
    writeln!(out, "{}", timeline::draw(trace))?;
    match &trace.outcome {
        Outcome::Violation { detail, .. } => writeln!(out, "{}", detail.trim_end())?,
        Outcome::End => writeln!(out, "The end: nothing is broken.")?,
        Outcome::Open => writeln!(out, "Nothing is broken so far; more steps can follow.")?,
    }
    writeln!(out, "\nTo see it again:\n  {}", picked.replay_command(schedule))
}

fn figures(out: &mut impl Write, strategy: &str, report: &Report, seconds: f64) -> io::Result<()> {
    let coverage = &report.coverage;
    let found = match report.violations.len() {
        0 => "No violation".to_owned(),
        1 => "1 violation".to_owned(),
        n => format!("{n} violations"),
    };
    let extent = match &coverage.truncated[..] {
        [] => "search complete".to_owned(),
        [Bound::FirstViolation] => "the search stopped there (--all goes on)".to_owned(),
        bounds => {
            let names: Vec<&str> = bounds.iter().map(|&bound| bound_name(bound)).collect();
            format!("not complete: cut by {}", names.join(", "))
        }
    };
    writeln!(out, "{found}; {extent}.")?;
    let states = coverage.states.map(|states| format!("{states} states, ")).unwrap_or_default();
    writeln!(
        out,
        "{strategy}: {states}{} transitions in {seconds:.3} s; longest path {} steps; {} ends",
        coverage.transitions, coverage.depth_max, coverage.ends
    )?;
    if let Some(all) = coverage.interleavings {
        let more = if all == u128::MAX { "at least " } else { "" };
        let violating = coverage.interleavings_violating.unwrap_or(0);
        writeln!(out, "{more}{all} interleavings, {violating} of them end in a violation")?;
    }
    writeln!(
        out,
        "not taken again: {} by visited state, {} by order, {} by bound",
        coverage.pruned_by_hash, coverage.pruned_by_order, coverage.pruned_by_bound
    )?;
    if coverage.states.is_some() {
        let probability = coverage.omission_probability();
        writeln!(out, "chance that a state was missed by a shared fingerprint: {probability:.1e}")?;
    }
    Ok(())
}

/// The name of a bound in text and JSON.
pub(super) fn bound_name(bound: Bound) -> &'static str {
    match bound {
        Bound::Steps => "steps",
        Bound::Preemptions => "preemptions",
        Bound::States => "states",
        Bound::Schedules => "schedules",
        Bound::FirstViolation => "first-violation",
        Bound::Cancelled => "cancelled",
    }
}
