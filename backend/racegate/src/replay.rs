//! `racegate replay`: a stored result again, with its plan, kernel, arm, seed and device.
//!
//! In: the number of a result. Out: the trial's report; whether it came out as it did before.
//! Must not know: how a trial runs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use campaign::runner::{Outcome, TrialRecord};
use campaign::stats::Tally;

use crate::campaign::{of_result, run_again, write_json};

/// The share of repetitions that must come out as recorded.
const SAME_AT_LEAST: f64 = 0.95;

/// Arguments of `racegate replay`. Exit status: 0 the trial came out as recorded, in at least 95 of
/// 100 repetitions if there are many; 1 it did not; 2 it could not be run.
#[derive(clap::Args)]
pub struct Args {
    /// Number of the result: `racegate campaign results` shows the first hit of each campaign
    id: i64,
    /// How often to repeat it
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    times: u32,
    /// Database of results; default: racegate/results.db in $XDG_STATE_HOME or ~/.local/state
    #[arg(long, value_name = "FILE")]
    db: Option<PathBuf>,
    /// Stop after this long ("10m"), with what is known by then
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    budget: Option<Duration>,
    /// Write what came out as JSON to FILE ("-" is standard output, in place of the text)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep consoles, event logs and trials, and say where they are
    #[arg(long)]
    keep: bool,
}

/// Carries out `racegate replay`.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (plan, mut options, stored) = of_result(args.id, args.db.as_deref())?;
    options.trial = Some(stored.record.trial);
    options.arms = vec![stored.record.arm.clone()];
    options.keep = args.keep;
    options.budget = args.budget;
    let recorded = kind(&stored.record.outcome);
    let campaign = run_again(plan, &options, args.times)?;
    let records: Vec<_> = campaign.arms.iter().flat_map(|arm| &arm.trials).collect();
    let same = records.iter().filter(|record| kind(&record.outcome) == recorded).count();
    let tally = Tally { hits: same as u64, trials: records.len() as u64 };
    let (low, high) = tally.interval95();
    let TrialRecord { kernel, arm, trial, .. } = &stored.record;
    if let Some(path) = &args.json {
        let repetitions = records.iter().map(|record| &record.outcome).collect::<Vec<_>>();
        let value = serde_json::json!({
            "schema": 1, "result": args.id, "kernel": kernel, "arm": arm, "trial": trial,
            "seed": stored.seed, "recorded": recorded, "same": same, "times": records.len(),
            "ci95": [low, high], "repetitions": repetitions,
        });
        write_json(&value, path)?;
    }
    if args.json.as_deref() != Some(Path::new("-")) {
        if let Some((_, timeline)) = campaign.timelines.first() {
            println!("{timeline}\n");
        }
        for other in records.iter().filter(|record| kind(&record.outcome) != recorded).take(1) {
            println!("another time it was a {}", told(&other.outcome));
        }
        println!(
            "result {}: {kernel}, arm {arm}, trial {trial}: recorded as a {recorded}, and so again \
             in {same} of {} (95 % interval {low:.3} to {high:.3})",
            args.id,
            records.len()
        );
    }
    let good = !records.is_empty() && tally.rate() >= SAME_AT_LEAST;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn told(outcome: &Outcome) -> String {
    let (Outcome::Hit { evidence } | Outcome::Miss { evidence } | Outcome::Invalid { evidence }) =
        outcome;
    format!("{}: {evidence}", kind(outcome))
}

fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Hit { .. } => "hit",
        Outcome::Miss { .. } => "miss",
        Outcome::Invalid { .. } => "trial that tells nothing",
    }
}
