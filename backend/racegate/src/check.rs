//! `racegate check`: a recorded event log through the on-disk shadow again.
//!
//! In: an event log that a disk has written with `--shadow --event-log`. Out: the findings, and
//! whether they are those of then; status 1 if there are any.
//! Must not know: what the shadow looks for.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use campaign::progress;
use clap::ValueEnum;
use indicatif::ProgressBar;
use pipeline::shadow::{Checked, Checker, Finding, Options};
use serde_json::json;

use crate::kernels::write_json;

/// Checks an event log.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Event log of a disk with --shadow (its --event-log), from its first line
    log: PathBuf,

    /// What the guest's data mode promised: `writeback` leaves the order of data out
    #[arg(long, value_enum, value_name = "MODE", default_value_t = DataMode::Ordered)]
    data: DataMode,

    /// Write findings and counts as JSON (`-`: standard output)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
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

/// Bytes of a line at most: the largest `bytes` event, in base64.
const LINE_MAX: u64 = 96 << 20;

/// Checks a log and prints what it finds.
///
/// # Errors
/// A log that cannot be read, or has no bytes of metadata.
pub fn run(args: &Args) -> Result<ExitCode> {
    let name = || args.log.display().to_string();
    let file = File::open(&args.log).with_context(|| format!("cannot read {}", name()))?;
    let bar = progress::bar("check");
    bar.set_length(file.metadata().map_or(0, |of| of.len()));
    let found = read(BufReader::new(file), args.data.options(), &bar).with_context(name)?;
    bar.finish_and_clear();

    let of = |findings: &[(usize, Finding)]| -> Vec<(String, String)> {
        findings.iter().map(|(_, of)| (of.rule.clone(), of.seen.clone())).collect()
    };
    let same = of(&found.findings) == of(&found.recorded);
    let Checked { findings, recorded, stats, kernel } = &found;
    if args.json.as_deref() != Some(Path::new("-")) {
        for (line, finding) in findings {
            println!("line {line}: {finding}");
        }
        println!(
            "{}: {} requests, {} commits, {} things checked, {} unknown; {} findings",
            name(),
            stats.requests,
            stats.commits,
            stats.checked,
            stats.unknown,
            findings.len()
        );
        if let Some(kernel) = kernel {
            println!(
                "the guest's kernel: {} events, {} lost; checked: {}",
                kernel.events,
                kernel.lost,
                kernel.rules.join(" ")
            );
        }
        if !same {
            println!("{} were found when the log was written", recorded.len());
        }
    }
    if let Some(destination) = &args.json {
        let findings: Vec<_> = findings
            .iter()
            .map(|(line, finding)| json!({ "line": line, "finding": finding }))
            .collect();
        let json = json!({
            "schema": 1,
            "log": name(),
            "stats": stats,
            "kernel": kernel,
            "findings": findings,
            "recorded": recorded.len(),
            "same_as_recorded": same,
        });
        write_json(destination, &json)?;
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads a log to its end, a line at a time.
fn read(mut log: impl BufRead, options: Options, bar: &ProgressBar) -> Result<Checked> {
    let mut checker = Checker::new(options);
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let read = (&mut log).take(LINE_MAX).read_until(b'\n', &mut line);
        match read.with_context(|| format!("cannot read line {number}"))? as u64 {
            0 => break,
            LINE_MAX => bail!("line {number} is longer than any line of an event log"),
            bytes => bar.inc(bytes),
        }
        // Bytes that are no text are no event either, and the checker says so.
        checker.line(String::from_utf8_lossy(&line).trim_end())?;
    }
    Ok(checker.finish()?)
}
