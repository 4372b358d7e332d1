//! `racegate reproduce`: the founding bug on a kernel that has it and on one that does not.
//!
//! In: arguments. Out: what `racegate campaign run` prints, and whether it is what is known.
//! Must not know: how a campaign runs.

use std::process::ExitCode;

use campaign::plan::Plan;
use campaign::verdict::Verdict;

use crate::campaign::{Finished, Options, run_plan};

/// Arguments of `racegate reproduce`. Exit status: 0 every kernel got the verdict that is known
/// of it, 1 one did not, 2 it could not be run.
#[derive(clap::Args)]
pub struct Args {
    /// Plan to run
    #[arg(long, default_value = "mkwrite-fallocate", value_name = "PLAN")]
    plan: String,
    #[command(flatten)]
    options: Options,
}

/// Carries out `racegate reproduce`.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let command = format!("racegate reproduce --plan {}", args.plan);
    let Finished { plan, campaign } = run_plan(Plan::find(&args.plan)?, &args.options, &command)?;
    let known = |kernel: &String| {
        if plan.kernels.affected.contains(kernel) {
            Some(Verdict::Affected)
        } else if plan.kernels.fixed.contains(kernel) {
            Some(Verdict::NotAffected)
        } else {
            None
        }
    };
    let mut as_known = true;
    for (kernel, verdict, _) in &campaign.verdicts {
        if let Some(known) = known(kernel).filter(|known| known != verdict) {
            as_known = false;
            eprintln!("{kernel} is known to be {known}, but this run says {verdict}");
        }
    }
    Ok(if as_known { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
