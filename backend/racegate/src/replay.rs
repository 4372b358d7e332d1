//! `racegate replay`: a stored result again, with its plan, kernel, arm, seed and device.
//!
//! In: the number of a result. Out: the trial's report; whether it came out as it did before.
//! Must not know: how a trial runs.

use std::path::PathBuf;
use std::process::ExitCode;

use campaign::device::Device;
use campaign::plan::Plan;
use campaign::runner::Outcome;

use crate::campaign::{Options, Settings, existing, run_trials};

/// Arguments of `racegate replay`. Exit status: 0 every repetition came out as recorded, 1 one did
/// not, 2 it could not be run.
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
    /// Keep consoles, event logs and trials, and say where they are
    #[arg(long)]
    keep: bool,
}

/// Carries out `racegate replay`.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let stored = existing(args.db.as_deref())?.result(args.id)?;
    let settings = Settings::read(&stored.settings)?;
    let plan = Plan::parse(&settings.plan, "the stored plan")?;
    let mut options = Options::for_replay();
    options.kernels = vec![stored.record.kernel.clone()];
    options.modules.clone_from(&settings.modules);
    options.device = Device::parse(&settings.device).unwrap_or_default();
    options.dax = settings.dax;
    options.vcpus = settings.vcpus;
    options.queues = settings.queues;
    options.arms = vec![stored.record.arm.clone()];
    options.trial = Some(stored.record.trial);
    options.seed = Some(stored.seed);
    options.shadow = settings.shadow;
    options.qemu.clone_from(&settings.qemu);
    options.keep = args.keep;
    let recorded = kind(&stored.record.outcome);
    let records = run_trials(plan, &options, args.times)?;
    let same = records.iter().filter(|record| kind(&record.outcome) == recorded).count();
    println!(
        "result {}: {}, arm {}, trial {}: recorded as a {recorded}, and so again in {same} of {}",
        args.id,
        stored.record.kernel,
        stored.record.arm,
        stored.record.trial,
        records.len()
    );
    let all = same == records.len() && !records.is_empty();
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Hit { .. } => "hit",
        Outcome::Miss { .. } => "miss",
        Outcome::Invalid { .. } => "trial that tells nothing",
    }
}
