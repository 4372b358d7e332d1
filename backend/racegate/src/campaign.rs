//! `racegate campaign`: plans, and running them.
//!
//! In: arguments. Out: progress on standard error, a report on standard output, JSON, an exit
//! status. Must not know: how a trial runs, how a report looks.

mod jobs;
mod matrix;
mod order;
mod own;
mod results;
mod sweep;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use campaign::plan::{self, Plan};
use campaign::verdict::Verdict;

pub use order::Options;
pub(crate) use order::{Finished, kernels, prepare, run_again, run_plan, write_json};
pub(crate) use results::{
    Settings, attach, existing, finish, how_to_resume, of_result, probability,
};

/// Arguments of `racegate campaign`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Run a plan on kernels and judge each. Exit status: 0 no kernel is affected, 1 one is, 2
    /// some verdict is inconclusive or the campaign could not be run. Of a shard: 0 its trials are over
    Run {
        /// Plan: a name that `list` shows, or a TOML file
        plan: String,
        /// Also run the arm `rules` with these lengths in place of its own delays: a list
        /// ("delay=1ms,5ms,20ms"), or doubling from one to another ("delay=1ms..64ms"). Each is an
        /// arm `delay=LENGTH`; of the plan's own arms only `none` runs beside them, if --arm does
        /// not say
        #[arg(long, value_name = "delay=LENGTHS", value_parser = sweep::parse)]
        sweep: Option<sweep::Sweep>,
        #[command(flatten)]
        options: Box<Options>,
    },
    /// Run several plans on many kernels and print one table: affected, not affected, inconclusive.
    /// Exit status: 0 every cell is decided and, with --expect, as the sources say; 1 one is
    /// otherwise, 2 one is inconclusive
    Matrix(Box<matrix::Args>),
    /// List the built-in plans
    List,
    /// Print a built-in plan, to read or to start an own one from
    Show {
        /// Name of the plan
        plan: String,
    },
    /// Start a plan of your own: NAME.toml in this folder, from a built-in one
    New {
        /// Its name: letters, digits and dashes
        name: String,
        /// The built-in plan to start from
        #[arg(long, default_value = "mkwrite-fallocate", value_name = "PLAN")]
        from: String,
    },
    /// Check plan files and say in words what each does. Exit status: 0 all are sound, 2 one is not
    Check {
        /// Plan files (TOML), or names of built-in plans
        #[arg(required = true, value_name = "PLAN")]
        plans: Vec<String>,
    },
    /// Print a job that runs a campaign in shards: a Slurm array, or a Kubernetes Indexed Job
    Jobs(Box<jobs::Args>),
    /// List the campaigns whose results are kept
    Results {
        /// Database of results; default: racegate/results.db in $XDG_STATE_HOME or ~/.local/state
        #[arg(long, value_name = "FILE")]
        db: Option<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Carries out `racegate campaign`.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Run { plan, sweep, options } => {
            let mut command = format!("racegate campaign run {plan}");
            let mut plan = Plan::find(plan)?;
            let mut options = options.clone();
            if let Some(sweep) = sweep {
                command = format!("{command} --sweep {sweep}");
                plan = sweep.apply(&plan, &mut options.arms)?;
            }
            let options = &options;
            let Finished { campaign, .. } = run_plan(plan, options, &command)?;
            // What a part of the trials says is no answer yet; that they were carried out is.
            if options.shard.is_some() {
                return Ok(ExitCode::SUCCESS);
            }
            let any = |wanted| campaign.verdicts.iter().any(|(_, verdict, _)| *verdict == wanted);
            Ok(ExitCode::from(if any(Verdict::Affected) {
                1
            } else if any(Verdict::Inconclusive) {
                2
            } else {
                0
            }))
        }
        Verb::Matrix(args) => matrix::run(args),
        Verb::List => {
            for name in plan::names() {
                println!("{name:<28} {}", Plan::find(name)?.summary);
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Show { plan } => {
            let unknown =
                || format!("no built-in plan is named \"{plan}\"; see racegate campaign list");
            print!("{}", plan::text(plan).with_context(unknown)?);
            Ok(ExitCode::SUCCESS)
        }
        Verb::New { name, from } => own::new(name, from),
        Verb::Check { plans } => own::check(plans),
        Verb::Jobs(args) => jobs::print(args),
        Verb::Results { db, json } => {
            results::list(db.as_deref(), *json)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
