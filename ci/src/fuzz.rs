//! Fuzzing: every target for a while, after the canaries, which must be caught.
//!
//! In: a target or none, seconds or inputs. Out: a line for each target; for a failure the input
//! that shows it, and the command that runs it again.
//! Must not know: what a target does.
//!
//! The fuzzer is libFuzzer, built with the stable toolchain: rustc's own flags make LLVM count
//! edges and compare operands, as cargo-fuzz has it. Only `--sanitizer` needs flags that are not
//! stable.

mod build;
mod run;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command::top;
use run::{Limit, Outcome, Run};

/// Every target, as `backend/fuzz` names them.
const TARGETS: [&str; 8] =
    ["chains", "messages", "image", "journal", "event-log", "rules", "control", "agent"];

/// Canaries, and what must be said of each.
const CANARIES: [(&str, &str); 4] = [
    ("canary-panic", "the planted bug"),
    ("canary-leak", "the input leaks"),
    ("canary-balloon", "bytes at a time"),
    ("canary-hang", "timeout"),
];

/// Seconds in which a canary must be caught.
const CANARY_SECONDS: u64 = 60;

/// How long and what to fuzz.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Seconds for each target
    #[arg(long, value_name = "N", default_value_t = 6)]
    seconds: u64,

    /// Inputs for each target, instead of seconds
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    runs: Option<u64>,

    /// One target alone
    #[arg(long, value_name = "NAME", value_parser = TARGETS)]
    target: Option<String>,

    /// Run one input again (needs --target)
    #[arg(long, value_name = "FILE", requires = "target")]
    replay: Option<PathBuf>,

    /// Watch every memory access as well; slower, and builds with unstable flags of rustc
    #[arg(long)]
    sanitizer: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { seconds: 6, runs: None, target: None, replay: None, sanitizer: false }
    }
}

/// Builds the fuzzer and runs it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let program = build::fuzzer(options.sanitizer)?;
    let folder = top().join("target/fuzz");
    if let (Some(file), Some(target)) = (&options.replay, &options.target) {
        let run = Run::new(&program, target, &folder)?;
        return match run.replay(file)? {
            Outcome::Clean => {
                println!("ci: {target}: the input runs");
                Ok(())
            }
            Outcome::Failed(_) => bail!("{target} fails on {}", file.display()),
        };
    }
    for (canary, sign) in CANARIES {
        let run = Run::new(&program, canary, &folder)?;
        // What an earlier run found must be found again.
        run.forget()?;
        match run.fuzz(Limit::Time(Duration::from_secs(CANARY_SECONDS)), false)? {
            Outcome::Failed(text) if text.contains(sign) => {
                println!("ci: {canary}: caught");
                run.forget()?;
            }
            Outcome::Failed(text) => bail!("{canary}: caught without \"{sign}\":\n{text}"),
            Outcome::Clean => bail!("{canary}: the planted bug was not noticed"),
        }
    }
    let limit = match options.runs {
        Some(runs) => Limit::Inputs(runs),
        None => Limit::Time(Duration::from_secs(options.seconds)),
    };
    let targets =
        TARGETS.iter().filter(|name| options.target.as_deref().is_none_or(|t| t == **name));
    let mut failed = Vec::new();
    for target in targets {
        let run = Run::new(&program, target, &folder)?;
        if let Outcome::Failed(_) = run.fuzz(limit, true)? {
            failed.push(*target);
        }
    }
    if !failed.is_empty() {
        bail!("{} failed; keep its input under backend/fuzz/regressions/", failed.join(", "));
    }
    Ok(())
}

/// An empty folder, or the one that is there.
fn folder(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}
