//! `racegate rules check`: rules files, checked without a backend and told in words.
//!
//! In: rules files. Out: what each rule means, or the mistake with its line, field and mend.
//! Must not know: backends.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;
use pipeline::RuleSet;

/// Checks rules files.
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
}

/// Checks every file, so that one run shows the mistakes of all of them.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: Args) -> Result<ExitCode> {
    let Command::Check { files } = args.command;
    let mut status = ExitCode::SUCCESS;
    let mut text = String::new();
    for file in &files {
        match read(file) {
            Ok(rules) => describe(&mut text, file, &rules),
            Err(error) => {
                eprintln!("{error:#}");
                status = ExitCode::FAILURE;
            }
        }
    }
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(status),
    }
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
    Ok(RuleSet::parse_with(
        &text,
        &file.display().to_string(),
        &mut read,
    )?)
}
