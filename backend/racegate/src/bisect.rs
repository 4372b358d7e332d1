//! `racegate bisect`: which kernel of a series was the first one fixed, or affected; and one step
//! of `git bisect run`.
//!
//! In: arguments. Out: what each kernel is, the answer with its error probability, JSON, an exit
//! status. Must not know: how a search decides, how a trial runs.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use campaign::bisect::{self, Bisection, Calibration, Change, Settings, Step, Tested};
use campaign::kernels::{Kernels, Spec};
use campaign::plan::{Plan, RULES_ARM};
use campaign::runner::{Outcome, TrialRecord};
use campaign::verdict::Verdict;
use campaign::{interrupt, progress};
use clap::ValueEnum;
use indicatif::ProgressBar;

use crate::campaign::{Options, attach, finish, how_to_resume, prepare, probability, write_json};

/// What `git bisect run` takes for "this revision cannot be tested".
const GIT_SKIP: u8 = 125;

/// Arguments of `racegate bisect`. Exit status: 0 the kernel was found, 2 it was not. With
/// `--kernel` that of a step of `git bisect run`: 0 good, 1 bad, 125 cannot tell.
#[derive(clap::Args)]
pub struct Args {
    /// Plan: a name that `racegate campaign list` shows, or a TOML file
    plan: String,
    /// Search the packaged kernels of this series ("5.10"), in the order of their versions
    #[arg(
        long,
        value_name = "SERIES",
        conflicts_with = "kernels",
        required_unless_present = "kernels"
    )]
    series: Option<String>,
    /// Which state is bad for `git bisect run`: with `fixed`, a kernel without the bug is, and the
    /// first bad commit is the fix
    #[arg(long, value_enum, default_value_t = Wanted::Affected)]
    first: Wanted,
    /// Run this shell command before the trial of `--kernel`, for example "make -j2 bzImage"; if it
    /// fails, the kernel cannot be told
    #[arg(long, value_name = "COMMAND", requires = "kernels")]
    build: Option<String>,
    /// The largest probability that the answer is wrong
    #[arg(long, default_value = "0.05", value_name = "ERROR", value_parser = probability)]
    error: f64,
    /// Trials that measure how often an affected kernel is hit here and now; 0 relies on the plan
    #[arg(long, value_name = "N")]
    calibrate: Option<u32>,
    #[command(flatten)]
    options: Options,
}

/// What the first bad commit of `git bisect` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wanted {
    /// The first affected one
    Affected,
    /// The first fixed one
    Fixed,
}

/// Carries out `racegate bisect`.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.options.arms.len() > 1 {
        bail!("bisect looks at one arm; give --arm once");
    }
    if args.options.shard.is_some() || args.options.formats.any() {
        bail!("--shard, --html, --markdown, --junit and --ktap are for racegate campaign run");
    }
    match &args.series {
        Some(series) => search(args, series),
        None => Ok(ExitCode::from(step(args).unwrap_or_else(|error| {
            eprintln!("racegate: {error:#}");
            // git ends the whole bisection on 128 and above.
            if interrupt::requested() { 130 } else { GIT_SKIP }
        }))),
    }
}

/// Names of the packaged kernels of a series, from old to new.
fn of_series(series: &str) -> anyhow::Result<Vec<String>> {
    let all = campaign::kernels::series();
    let names = all.into_iter().find(|(name, _)| name == series).map(|(_, names)| names);
    let names = names.unwrap_or_default();
    if names.len() < 2 {
        bail!(
            "series {series} has {} packaged kernels, and a search needs two; see racegate kernels \
             list",
            names.len()
        );
    }
    Ok(names)
}

fn search(args: &Args, series: &str) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let (options, plan) = (&args.options, Plan::find(&args.plan)?);
    let names = of_series(series)?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (mut order, cache) = prepare(plan, options)?;
    attach(&mut order, options, &format!("bisect {series}"))?;
    order.limits.deadline = Some(started + options.budget.unwrap_or(Duration::from_secs(600)));
    let settings = settings(args, &order.plan, 20);
    eprintln!(
        "plan {}, arm {}: {} kernels from {} to {}, seed {}",
        order.plan.name,
        settings.arm,
        names.len(),
        names[0],
        names[names.len() - 1],
        order.seed
    );
    let store = Kernels::new(&cache);
    let mut fetch = |name: &str| {
        let spec = Spec::parse(name, None).map_err(|error| error.to_string())?;
        store.fetch(&spec).map_err(|error| format!("{:#}", anyhow::Error::new(error)))
    };
    let bar = progress::bar("bisect");
    let result = bisect::run(&order, &names, &settings, &mut fetch, &|step| tell(&bar, step));
    bar.finish_and_clear();
    let found = result.inspect_err(|_| how_to_resume(&order, options))?;
    finish(&order)?;
    if let Some(path) = &options.json {
        let mut value = serde_json::to_value(&found)?;
        value["schema"] = 1.into();
        value["plan"] = order.plan.name.clone().into();
        value["series"] = series.into();
        value["arm"] = settings.arm.clone().into();
        value["seed"] = order.seed.into();
        let answer = if found.change.is_some() { "found" } else { "inconclusive" };
        value["answer"] = answer.into();
        value["seconds"] = started.elapsed().as_secs_f64().into();
        write_json(&value, path)?;
    }
    if options.json.as_deref() != Some(std::path::Path::new("-")) {
        print!("{}", text(&found, started.elapsed()));
    }
    Ok(ExitCode::from(if found.change.is_some() { 0 } else { 2 }))
}

fn settings(args: &Args, plan: &Plan, calibrate: u32) -> Settings {
    let arm = args.options.arms.first().cloned().unwrap_or_else(|| RULES_ARM.to_owned());
    Settings {
        arm,
        error: args.error,
        calibrate: args.calibrate.unwrap_or(calibrate),
        most_trials: args.options.trials.unwrap_or(4 * plan.trials),
    }
}

/// One step of `git bisect run`.
fn step(args: &Args) -> anyhow::Result<u8> {
    let options = &args.options;
    let [name] = options.kernels.as_slice() else {
        bail!("a step of git bisect is about one kernel; give --kernel once");
    };
    if let Some(build) = &args.build {
        let status = Command::new("sh").arg("-c").arg(build).status().context("cannot start sh")?;
        if !status.success() {
            bail!("the build ended with {status}");
        }
    }
    let (mut order, cache) = prepare(Plan::find(&args.plan)?, options)?;
    order.limits.deadline = options.budget.map(|budget| Instant::now() + budget);
    let settings = settings(args, &order.plan, 0);
    let store = Kernels::new(&cache);
    let mut fetch = |name: &str| {
        let modules = options.modules.as_deref().filter(|_| name.contains('/'));
        let spec = Spec::parse(name, modules).map_err(|error| error.to_string())?;
        let fetched = store.fetch(&spec).map_err(|e| format!("{:#}", anyhow::Error::new(e)));
        let mut kernel = fetched?;
        // Under the name that was given: that of a path is shortened in tables.
        name.clone_into(&mut kernel.name);
        Ok(kernel)
    };
    let bar = progress::bar("bisect");
    let found =
        bisect::run(&order, &[name.as_str()], &settings, &mut fetch, &|step| tell(&bar, step));
    bar.finish_and_clear();
    let found = found?;
    let tested = found.tested.iter().find(|tested| tested.kernel == *name);
    let verdict = tested.map_or(Verdict::Inconclusive, |tested| tested.verdict);
    let status = match (verdict, args.first) {
        (Verdict::Inconclusive, _) => GIT_SKIP,
        (Verdict::Affected, Wanted::Affected) | (Verdict::NotAffected, Wanted::Fixed) => 1,
        _ => 0,
    };
    if let Some(path) = &options.json {
        let value = serde_json::json!({
            "schema": 1, "plan": order.plan.name, "arm": settings.arm, "status": status,
            "tested": found.tested, "calibration": found.calibration,
        });
        write_json(&value, path)?;
    }
    if tested.is_none_or(|tested| tested.reason.is_none())
        && let Some(reason) = found.reason.filter(|_| status == GIT_SKIP)
    {
        eprintln!("{name}: cannot tell: {reason}");
    }
    Ok(status)
}

fn tell(bar: &ProgressBar, step: &Step<'_>) {
    let line = match step {
        Step::Trial(TrialRecord { kernel, trial, outcome, .. }) => {
            let what = match outcome {
                Outcome::Hit { .. } => "hit",
                Outcome::Miss { .. } => "miss",
                Outcome::Invalid { .. } => "invalid",
            };
            bar.set_message(format!("{kernel}, trial {trial}: {what}"));
            return;
        }
        Step::Judged(tested) => line(tested),
        Step::Calibrated(Calibration { kernel, hits, trials, rate_at_least }) => format!(
            "calibrated on {kernel}: {hits} of {trials}, so an affected kernel is hit in at least \
             {:.0} % of the trials",
            100.0 * rate_at_least
        ),
    };
    bar.suspend(|| eprintln!("{line}"));
}

fn line(tested: &Tested) -> String {
    let Tested { kernel, verdict, error, hits, trials, reason } = tested;
    let reason = reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    let error = if *verdict == Verdict::Inconclusive {
        String::new()
    } else {
        format!(", error at most {error:.0e}")
    };
    format!("{kernel:<20} {verdict:<13} {hits} of {trials} hit{error}{reason}")
}

fn text(found: &Bisection, took: Duration) -> String {
    let mut text = String::new();
    for tested in &found.tested {
        text += &(line(tested) + "\n");
    }
    let took = format!("{} kernels, {:.0} s", found.tested.len(), took.as_secs_f64());
    if let Some(Change { last, first, verdict }) = &found.change {
        let what = if *verdict == Verdict::NotAffected { "fixed" } else { "affected" };
        let error = found.error;
        text + &format!(
            "\n{first} is the first {what} kernel; {last} is the last one before it (error \
             probability at most {error:.3}; {took})\n"
        )
    } else {
        let reason = found.reason.as_deref().unwrap_or("no reason is known");
        text + &format!("\ninconclusive: {reason} ({took})\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_of_a_series_go_from_old_to_new() {
        let names = of_series("5.10").unwrap();
        assert!(names.len() >= 6, "{names:?}");
        assert_eq!(names[0], "debian-5.10.218");
        let six = of_series("6.1").unwrap();
        assert!(six.iter().all(|name| name.starts_with("debian-6.1.")), "{six:?}");
        assert!(of_series("9.9").is_err());
    }
}
