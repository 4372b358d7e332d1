//! `racegate check`: a recorded event log through the on-disk shadow again.
//!
//! In: an event log that a disk has written with `--shadow --event-log`. Out: the findings, and
//! whether they are those of then; status 1 if there are any.
//! Must not know: what the shadow looks for.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;
use pipeline::shadow::{Checker, Options};

/// Checks an event log.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Event log of a disk with --shadow (its --event-log), from its first line
    log: PathBuf,

    /// What the guest's data mode promised: `writeback` leaves the order of data out
    #[arg(long, value_enum, value_name = "MODE", default_value_t = DataMode::Ordered)]
    data: DataMode,
}

/// The guest's mount option `data=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DataMode {
    /// `data=ordered` or `data=journal`
    Ordered,
    /// `data=writeback`
    Writeback,
}

impl DataMode {
    /// What the shadow may expect of it.
    pub(crate) fn options(self) -> Options {
        Options { ordered: self == DataMode::Ordered }
    }
}

/// Checks a log and prints what it finds.
///
/// # Errors
/// A log that cannot be read, or has no bytes of metadata.
pub fn run(args: &Args) -> Result<ExitCode> {
    let name = || args.log.display().to_string();
    let file = File::open(&args.log).with_context(|| format!("cannot read {}", name()))?;
    let mut checker = Checker::new(args.data.options());
    for line in BufReader::new(file).lines() {
        let line = line.with_context(|| format!("cannot read {}", name()))?;
        checker.line(&line).with_context(name)?;
    }
    let found = checker.finish().with_context(name)?;
    for (line, finding) in &found.findings {
        println!("line {line}: {finding}");
    }
    let stats = &found.stats;
    println!(
        "{}: {} requests, {} commits, {} things checked, {} unknown; {} findings",
        name(),
        stats.requests,
        stats.commits,
        stats.checked,
        stats.unknown,
        stats.findings
    );
    let of = |findings: &[(usize, pipeline::shadow::Finding)]| -> Vec<(String, String)> {
        findings.iter().map(|(_, of)| (of.rule.clone(), of.seen.clone())).collect()
    };
    if of(&found.findings) != of(&found.recorded) {
        println!("{} were found when the log was written", found.recorded.len());
    }
    let clean = found.findings.is_empty();
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
