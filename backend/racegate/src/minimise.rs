//! `racegate minimise`: the smallest plan that still hits.
//!
//! In: a plan, or the number of a stored result. Out: progress on standard error, the smaller plan
//! in a file, JSON, an exit status.
//! Must not know: what is left out, how a trial runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, bail};
use campaign::minimise::{self, Attempt, Minimised, Settings};
use campaign::plan::Plan;
use campaign::progress;
use campaign::runner::{Outcome, TrialRecord};

use crate::campaign::{Options, kernels, of_result, prepare, write_json};

/// Arguments of `racegate minimise`. Exit status: 0 the smaller plan is written, 2 it could not be
/// found.
#[derive(clap::Args)]
pub struct Args {
    /// Plan (a name that `racegate campaign list` shows, or a TOML file), or the number of a result
    /// that `racegate campaign results` shows
    what: String,
    /// Write the smaller plan to this file; default: NAME-minimal.toml in this folder
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The largest probability that a change is kept though the hit is gone
    #[arg(long, default_value = "0.01", value_name = "ERROR", value_parser = crate::campaign::probability)]
    error: f64,
    #[command(flatten)]
    options: Options,
}

/// Trials of the plan that comes out.
const CONFIRM: u32 = 20;
/// The most trials of one attempt, if the operator does not say.
const MOST_TRIALS: u32 = 30;

/// Carries out `racegate minimise`.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (plan, mut options) = match args.what.parse::<i64>() {
        Ok(id) => {
            let (plan, mut options, _) = of_result(id, args.options.db.as_deref())?;
            (options.trials, options.json) = (args.options.trials, args.options.json.clone());
            (options.budget, options.keep) = (args.options.budget, args.options.keep);
            (plan, options)
        }
        Err(_) => (Plan::find(&args.what)?, args.options.clone()),
    };
    if options.kernels.is_empty() {
        let affected = plan.kernels.affected.first();
        let unknown = || format!("plan {} names no affected kernel; give --kernel NAME", plan.name);
        options.kernels = vec![affected.with_context(unknown)?.clone()];
    }
    if options.kernels.len() > 1 {
        bail!("a plan is made smaller on one kernel; give --kernel once");
    }
    let name = plan.name.clone();
    let output = args.output.clone().unwrap_or_else(|| format!("{name}-minimal.toml").into());
    // Told before the work, not after it.
    if output.exists() {
        bail!("{} is there already; give --output FILE", output.display());
    }
    let (mut order, cache) = prepare(plan, &options)?;
    order.kernels = kernels(&order.plan, &options, &cache)?;
    order.limits.deadline = options.budget.map(|budget| Instant::now() + budget);
    let kernel = options.kernels[0].clone();
    eprintln!("plan {name}: made smaller on {kernel}, seed {}", order.seed);
    let settings = Settings {
        error: args.error,
        most_trials: options.trials.unwrap_or(MOST_TRIALS),
        confirm: CONFIRM,
    };
    let bar = progress::bar("minimise");
    let tell = |attempt: &Attempt| bar.suspend(|| eprintln!("{}", line(attempt)));
    let trial = |record: &TrialRecord| {
        let hit = if matches!(record.outcome, Outcome::Hit { .. }) { "hit" } else { "no hit" };
        bar.set_message(format!("trial {}: {hit}", record.trial));
    };
    let found = minimise::run(&order, &settings, &tell, &trial);
    bar.finish_and_clear();
    let Minimised { mut text, attempts, confirmed, stopped } = found?;
    let (low, high) = confirmed.interval95();
    let rate = format!("{} of {} trials", confirmed.hits, confirmed.trials);
    text.rename(&format!("{name}-minimal"));
    text.head(&format!(
        "{name}, made smaller: {rate} hit {kernel}.\nThe comments are those of {name}."
    ));
    let text = text.to_string();
    Plan::parse(&text, &output.display().to_string())?;
    fs::write(&output, &text).with_context(|| format!("Could not write {}", output.display()))?;
    let kept: Vec<&str> =
        attempts.iter().skip(1).filter(|a| a.stays).map(|a| a.change.as_str()).collect();
    if let Some(path) = &options.json {
        let value = serde_json::json!({
            "schema": 1, "plan": name, "kernel": kernel, "seed": order.seed, "output": output,
            "attempts": attempts, "hits": confirmed.hits, "trials": confirmed.trials,
            "ci95": [low, high], "complete": !stopped,
        });
        write_json(&value, path)?;
    }
    if options.json.as_deref() != Some(Path::new("-")) {
        for change in &kept {
            println!("{change}");
        }
        let unfinished = if stopped { "; the time was up before everything was tried" } else { "" };
        println!(
            "{}: {} of {} changes kept; {rate} hit (95 % interval {low:.3} to {high:.3}){unfinished}",
            output.display(),
            kept.len(),
            attempts.len() - 1
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn line(attempt: &Attempt) -> String {
    let Attempt { change, stays, hits, trials, reason } = attempt;
    let stays = if *stays { "hits" } else { "no  " };
    let reason = reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    format!("{stays} {hits}/{trials} {change}{reason}")
}
