//! `racegate rules`: rules without a backend.
//!
//! In: rules files, or the event log of a backend. Out: what each rule means, or the mistake with
//! its line, field and mend; whether the rules decide again what the log says they decided.
//! Must not know: backends.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;
use pipeline::{Difference, RuleSet, What};

/// The most differences that are shown.
const DIFFERENCES: usize = 10;

/// Checks rules files, replays event logs.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check rules files and say in words what each rule does; status 1 if one has a mistake
    Check {
        /// Rules files (TOML)
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Feed an event log to the rules anew; status 1 if they decide otherwise than it says
    Replay {
        /// Event log of a backend (its --event-log), from its first line
        log: PathBuf,
    },
}

/// Checks rules, or replays their decisions.
///
/// # Errors
/// A log that cannot be read or is no log; standard output cannot be written.
pub fn run(args: Args) -> Result<ExitCode> {
    let mut text = String::new();
    let status = match args.command {
        Command::Check { files } => check(&mut text, &files),
        Command::Replay { log } => replay(&mut text, &log)?,
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(status),
    }
}

/// Checks every file, so that one run shows the mistakes of all of them.
fn check(text: &mut String, files: &[PathBuf]) -> ExitCode {
    let mut status = ExitCode::SUCCESS;
    for file in files {
        match read(file) {
            Ok(rules) => describe(text, file, &rules),
            Err(error) => {
                eprintln!("{error:#}");
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}

fn replay(text: &mut String, log: &Path) -> Result<ExitCode> {
    let lines = std::fs::read_to_string(log)
        .with_context(|| format!("cannot read the event log {}", log.display()))?;
    let found = pipeline::replay(lines.lines()).with_context(|| log.display().to_string())?;
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{}: {} inputs replayed, {} events as recorded, {} not",
        log.display(),
        found.inputs,
        found.agreed,
        found.differences.len()
    );
    // What follows the first differences mostly follows from them.
    for Difference { line, recorded, replayed } in found.differences.iter().take(DIFFERENCES) {
        let json = |what: &Option<What>| match what {
            Some(what) => serde_json::to_string(what),
            None => Ok("nothing".to_owned()),
        };
        let _ = writeln!(text, "line {line}: recorded {}", json(recorded)?);
        let _ = writeln!(text, "    now {}", json(replayed)?);
    }
    let same = found.differences.is_empty();
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe(text: &mut String, file: &Path, rules: &RuleSet) {
    let plural = if rules.len() == 1 { "" } else { "s" };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}: {} rule{plural}", file.display(), rules.len());
    for (name, meaning) in rules.names().zip(rules.meanings()) {
        let _ = writeln!(text, "  {name}: {meaning}");
    }
}

/// Reads and checks a rules file; histogram files that it names lie next to it.
///
/// # Errors
/// The file cannot be read, or has a mistake.
pub fn read(file: &Path) -> Result<RuleSet> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the rules file {}", file.display()))?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut read =
        |name: &str| std::fs::read_to_string(folder.join(name)).map_err(|error| error.to_string());
    Ok(RuleSet::parse_with(&text, &file.display().to_string(), &mut read)?)
}
