//! `racegate explore`: every interleaving of a small scenario on the engine.
//!
//! In: a scenario, a kernel version, perhaps a mutant, a strategy; or a schedule to follow. Out:
//! counterexamples as timelines, figures of the search, or JSON: `{"schema":1, "scenario",
//! "variant", "mutant", "strategy", "complete", "states", "transitions", "interleavings",
//! "seconds", "violations":[{"invariant", "steps":[...], "schedule"}]}`.
//! Must not know: what a step of the engine does.
//!
//! Exit status: 0 no violation, 1 a violation, 2 the question could not be answered (an unknown
//! name, a schedule of another version, a file that cannot be read).

mod json;
mod list;
mod pick;
mod plan;
mod progress;
mod show;
mod steer;
mod timeline;
mod workers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use delalloc::DelallocModel;
use explorer::{Options, Outcome, Schedule, Strategy, replay};

use pick::Picked;

/// Schedules of a random search if none are asked for.
const SCHEDULES: u64 = 100_000;
/// Depth of a PCT search: most bugs need at most three ordering constraints (Lu et al., ASPLOS
/// 2008: 96 % of the non-deadlock bugs examined).
const PCT_DEPTH: u32 = 3;

/// Arguments of `racegate explore`.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Exit status: 0 no violation, 1 a violation, 2 usage or error"
)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Scenario: one of `explore list`, or a TOML file; a mutant's own if left out
    scenario: Option<String>,
    /// Kernel version to model; the one that the mutant belongs to, else the newest, if left out
    #[arg(long, value_name = "V")]
    variant: Option<String>,
    /// Historical bug to turn back on
    #[arg(long, value_name = "M")]
    mutant: Option<String>,
    /// How to search
    #[arg(long, value_enum, default_value_t = Method::Dfs)]
    strategy: Method,
    /// Most preemptions in a schedule
    #[arg(long, value_name = "N")]
    preemptions: Option<u32>,
    /// Most steps in a schedule
    #[arg(long, value_name = "N")]
    steps: Option<u32>,
    /// Most distinct states; the search is reported as truncated above it
    #[arg(long, value_name = "N")]
    states: Option<u64>,
    /// Seed of a random search [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Schedules of a random search [default: 100000]
    #[arg(long, value_name = "N")]
    schedules: Option<u64>,
    /// Ordering constraints that a PCT search aims at [default: 3]
    #[arg(long, value_name = "N")]
    depth: Option<u32>,
    /// Threads of this machine to search on [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Go on after the first violation and find the other invariants that break
    #[arg(long)]
    all: bool,
    /// Follow a schedule in place of a search: the schedule, or a file that holds one
    #[arg(long, value_name = "FILE|SCHEDULE")]
    replay: Option<String>,
    /// Search only the orders that a disk and a workload can bring about, and write the violation
    /// as a plan for `racegate campaign run`; with --replay, the violation of that schedule
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Write JSON to this file, or to standard output for `-`, in place of the text
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List scenarios, kernel versions and mutants
    List,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Method {
    /// Every reachable state
    Dfs,
    /// Every end and any violation, leaving out orders of independent steps
    Por,
    /// Random schedules
    Random,
    /// Random priorities with a few points of change
    Pct,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::Dfs => "dfs",
            Method::Por => "por",
            Method::Random => "random",
            Method::Pct => "pct",
        }
    }
}

/// Explores, replays or lists.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match (&args.what, &args.replay) {
        (Some(What::List), _) => {
            list::list(&mut std::io::stdout().lock()).context("Cannot write the list")?;
            Ok(ExitCode::SUCCESS)
        }
        (None, Some(text)) => follow(args, &read_schedule(text)?),
        (None, None) => search(args),
    }
}

fn search(args: &Args) -> anyhow::Result<ExitCode> {
    let picked =
        Picked::new(args.scenario.as_deref(), args.variant.as_deref(), args.mutant.as_deref())?;
    let options = options(args)?;
    let workers = workers::Threads::new(args.threads);
    let mut meter = progress::Meter::new();
    let started = Instant::now();
    let report = if args.plan.is_some() {
        let steered = steer::Steered(&picked.model);
        explorer::explore(&steered, &options, &workers, &mut |now| meter.update(now))?
    } else {
        explorer::explore(&picked.model, &options, &workers, &mut |now| meter.update(now))?
    };
    let seconds = started.elapsed().as_secs_f64();
    meter.finish();
    let strategy = args.strategy.name();
    if let Some(path) = &args.json {
        json::write(path, &json::Search { picked: &picked, strategy, report: &report, seconds })?;
    } else {
        show::search(&mut std::io::stdout().lock(), &picked, strategy, &report, seconds)?;
    }
    if let Some(path) = &args.plan {
        match report.violations.first() {
            Some(found) => {
                write_plan(path, &picked, &found.schedule, &found.name, &workers)?;
            }
            None if report.coverage.truncated.is_empty() => bail!(
                "no plan is written: no order that a disk can bring about breaks a rule. Where \
                 `racegate explore {}` finds a violation, a thread must stop where it waits for \
                 nothing, or memory or space run out: there is no I/O to hold",
                picked.scenario
            ),
            None => bail!("no plan is written: the search was cut short; give it more --states"),
        }
    }
    Ok(status(!report.violations.is_empty()))
}

fn follow(args: &Args, schedule: &Schedule) -> anyhow::Result<ExitCode> {
    // What the command line leaves open, the schedule names.
    let named = pick::Named::parse(&schedule.model);
    let picked = Picked::new(
        args.scenario.as_deref().or(named.scenario),
        args.variant.as_deref().or(named.variant),
        args.mutant.as_deref().or(named.mutant),
    )?;
    let started = Instant::now();
    let trace = replay(&picked.model, schedule).context("Cannot replay")?;
    let seconds = started.elapsed().as_secs_f64();
    if let Some(path) = &args.json {
        json::write(path, &json::Replay { picked: &picked, schedule, trace: &trace, seconds })?;
    } else {
        show::replayed(&mut std::io::stdout().lock(), &picked, schedule, &trace)?;
    }
    if let Some(path) = &args.plan {
        let Outcome::Violation { name, .. } = &trace.outcome else {
            bail!("no plan is written: the schedule breaks no rule");
        };
        write_plan(path, &picked, schedule, name, &workers::Threads::new(args.threads))?;
    }
    Ok(status(matches!(trace.outcome, Outcome::Violation { .. })))
}

fn write_plan(
    path: &Path,
    picked: &Picked,
    schedule: &Schedule,
    invariant: &str,
    workers: &workers::Threads,
) -> anyhow::Result<()> {
    plan::write(path, picked, schedule, invariant, workers)?;
    let path = path.display();
    eprintln!("the plan is in {path}; run it with: racegate campaign run {path}");
    Ok(())
}

fn status(violated: bool) -> ExitCode {
    if violated { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn options(args: &Args) -> anyhow::Result<Options> {
    let random = matches!(args.strategy, Method::Random | Method::Pct);
    let given = [
        ("--seed", args.seed.is_some(), random, "random or pct"),
        ("--schedules", args.schedules.is_some(), random, "random or pct"),
        ("--depth", args.depth.is_some(), args.strategy == Method::Pct, "pct"),
        ("--states", args.states.is_some(), !random, "dfs or por"),
    ];
    for (flag, is_given, fits, strategies) in given {
        if is_given && !fits {
            bail!("{flag} goes with --strategy {strategies}, not with {}", args.strategy.name());
        }
    }
    let seed = args.seed.unwrap_or(0);
    let schedules = args.schedules.unwrap_or(SCHEDULES);
    Ok(Options {
        strategy: match args.strategy {
            Method::Dfs => Strategy::Exhaustive,
            Method::Por => Strategy::PartialOrder,
            Method::Random => Strategy::Random { seed, schedules },
            Method::Pct => {
                Strategy::Pct { seed, schedules, depth: args.depth.unwrap_or(PCT_DEPTH) }
            }
        },
        steps_max: args.steps,
        preemptions_max: args.preemptions,
        states_max: args.states,
        stop_at_first: !args.all,
        ..Options::default()
    })
}

/// A schedule given as text, in a file of its own, or in a JSON report: there, that of the first
/// violation.
fn read_schedule(text: &str) -> anyhow::Result<Schedule> {
    if text.starts_with("rgs") {
        return text.parse().context("Cannot replay");
    }
    let in_file = || format!("Cannot replay {text}");
    let content = std::fs::read_to_string(text).with_context(in_file)?;
    let line = if content.trim_start().starts_with('{') {
        let report: serde_json::Value = serde_json::from_str(&content).with_context(in_file)?;
        let schedule = report["violations"][0]["schedule"].as_str();
        schedule.with_context(|| format!("{text} reports no violation to replay"))?.to_owned()
    } else {
        content
    };
    line.trim().parse().with_context(in_file)
}

/// The model under a name that the other parts use.
type Model = DelallocModel;
