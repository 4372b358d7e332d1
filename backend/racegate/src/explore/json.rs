//! The answer for programs. Keys are stable: more may be added, none renamed.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use explorer::{Outcome, Report, Schedule, Trace, replay};
use serde::Serialize;

use super::pick::Picked;
use super::show::bound_name;

/// Version of the keys below.
const SCHEMA: u32 = 1;

/// A search and its answer.
pub(super) struct Search<'a> {
    pub(super) picked: &'a Picked,
    pub(super) strategy: &'a str,
    pub(super) report: &'a Report,
    pub(super) seconds: f64,
}

/// A schedule that was followed.
pub(super) struct Replay<'a> {
    pub(super) picked: &'a Picked,
    pub(super) schedule: &'a Schedule,
    pub(super) trace: &'a Trace,
    pub(super) seconds: f64,
}

#[derive(Serialize)]
pub(super) struct Document {
    schema: u32,
    scenario: String,
    variant: &'static str,
    mutant: Option<&'static str>,
    /// `dfs`, `por`, `random`, `pct` or `replay`.
    strategy: String,
    /// Whether nothing cut the search.
    complete: bool,
    /// What cut it.
    truncated: Vec<&'static str>,
    /// Distinct states; null for random strategies.
    states: Option<u64>,
    transitions: u64,
    /// Complete schedules, 2^128-1 if more; null if they cannot be counted.
    interleavings: Option<u128>,
    interleavings_violating: Option<u128>,
    pruned_by_hash: u64,
    pruned_by_order: u64,
    pruned_by_bound: u64,
    depth_max: u32,
    ends: u64,
    seconds: f64,
    violations: Vec<Broken>,
}

#[derive(Serialize)]
struct Broken {
    invariant: String,
    detail: String,
    /// Whether no schedule is shorter, and of those none has fewer switches.
    minimal: bool,
    steps: Vec<StepLine>,
    schedule: String,
}

#[derive(Serialize)]
struct StepLine {
    thread: String,
    step: String,
    held: String,
    changed: String,
}

impl From<&Search<'_>> for Document {
    fn from(search: &Search<'_>) -> Document {
        let Search { picked, strategy, report, seconds } = *search;
        let coverage = &report.coverage;
        let violations = report.violations.iter().map(|violation| Broken {
            invariant: violation.name.clone(),
            detail: violation.detail.clone(),
            minimal: violation.minimal,
            steps: replay(&picked.model, &violation.schedule)
                .map(|t| lines(&t))
                .unwrap_or_default(),
            schedule: violation.schedule.to_string(),
        });
        Document {
            schema: SCHEMA,
            scenario: picked.scenario.clone(),
            variant: picked.variant,
            mutant: picked.mutant.map(|mutant| mutant.id),
            strategy: strategy.to_owned(),
            complete: coverage.complete(),
            truncated: coverage.truncated.iter().map(|&bound| bound_name(bound)).collect(),
            states: coverage.states,
            transitions: coverage.transitions,
            interleavings: coverage.interleavings,
            interleavings_violating: coverage.interleavings_violating,
            pruned_by_hash: coverage.pruned_by_hash,
            pruned_by_order: coverage.pruned_by_order,
            pruned_by_bound: coverage.pruned_by_bound,
            depth_max: coverage.depth_max,
            ends: coverage.ends,
            seconds,
            violations: violations.collect(),
        }
    }
}

impl From<&Replay<'_>> for Document {
    fn from(replay: &Replay<'_>) -> Document {
        let Replay { picked, schedule, trace, seconds } = *replay;
        let violation = match &trace.outcome {
            Outcome::Violation { name, detail, .. } => Some(Broken {
                invariant: name.clone(),
                detail: detail.clone(),
                minimal: false,
                steps: lines(trace),
                schedule: schedule.to_string(),
            }),
            Outcome::End | Outcome::Open => None,
        };
        let steps = trace.rows.len();
        Document {
            schema: SCHEMA,
            scenario: picked.scenario.clone(),
            variant: picked.variant,
            mutant: picked.mutant.map(|mutant| mutant.id),
            strategy: "replay".to_owned(),
            complete: false,
            truncated: vec!["schedules"],
            states: None,
            transitions: steps as u64,
            interleavings: Some(1),
            interleavings_violating: Some(u128::from(violation.is_some())),
            pruned_by_hash: 0,
            pruned_by_order: 0,
            pruned_by_bound: 0,
            depth_max: steps as u32,
            ends: u64::from(trace.outcome == Outcome::End),
            seconds,
            violations: violation.into_iter().collect(),
        }
    }
}

fn lines(trace: &Trace) -> Vec<StepLine> {
    let line = |row: &explorer::Row| StepLine {
        thread: trace.threads[usize::from(row.step.thread)].clone(),
        step: row.label.clone(),
        held: row.held.clone(),
        changed: row.changed.clone(),
    };
    trace.rows.iter().map(line).collect()
}

/// Writes a document to a file, or to standard output for `-`.
pub(super) fn write<'a, T>(path: &Path, from: &'a T) -> anyhow::Result<()>
where
    Document: From<&'a T>,
{
    let document = Document::from(from);
    let to = |mut out: Box<dyn Write>| -> io::Result<()> {
        serde_json::to_writer_pretty(&mut out, &document)?;
        writeln!(out)?;
        out.flush()
    };
    if path == Path::new("-") {
        return to(Box::new(io::stdout().lock())).context("Cannot write JSON");
    }
    let failed = || format!("Cannot write {}", path.display());
    let file = File::create(path).with_context(failed)?;
    to(Box::new(BufWriter::new(file))).with_context(failed)
}
