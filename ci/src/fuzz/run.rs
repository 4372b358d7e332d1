//! One target under libFuzzer.
//!
//! In: the fuzzer, a target, a limit. Out: how it ended; a line that says how much was tried.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::folder;
use crate::command::top;

/// An input that takes longer is a hang; by the clock, on a machine that may be busy.
const HANG_SECONDS: u64 = 60;
/// The whole process may not take more memory.
const MEMORY_MIB: u64 = 1024;
/// Nor one allocation.
const ALLOCATION_MIB: u64 = 256;

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limit {
    Time(Duration),
    Inputs(u64),
}

/// How it ended.
pub(super) enum Outcome {
    Clean,
    /// What the fuzzer said last.
    Failed(String),
}

/// A target with its folders.
pub(super) struct Run<'a> {
    program: &'a Path,
    target: &'a str,
    corpus: PathBuf,
    seeds: PathBuf,
    found: PathBuf,
}

impl<'a> Run<'a> {
    pub(super) fn new(program: &'a Path, target: &'a str, top: &Path) -> Result<Run<'a>> {
        let of = |kind: &str| folder(top.join(kind).join(target));
        Ok(Run { program, target, corpus: of("corpus")?, seeds: of("seeds")?, found: of("found")? })
    }

    /// Forgets what earlier runs have learned.
    pub(super) fn forget(&self) -> Result<()> {
        for path in [&self.corpus, &self.found] {
            fs::remove_dir_all(path).with_context(|| path.display().to_string())?;
            folder(path.clone())?;
        }
        Ok(())
    }

    /// Tries inputs until the limit or a failure; says how many, if it `reports`.
    pub(super) fn fuzz(&self, limit: Limit, reports: bool) -> Result<Outcome> {
        let started = Instant::now();
        let mut command = self.command();
        command.args(["-print_final_stats=1", "-reload=0"]);
        match limit {
            Limit::Time(time) => command.arg(format!("-max_total_time={}", time.as_secs())),
            Limit::Inputs(inputs) => command.arg(format!("-runs={inputs}")),
        };
        command.args([&self.corpus, &self.seeds]);
        let kept = top().join("backend/fuzz/regressions").join(self.target);
        if kept.is_dir() {
            command.arg(kept);
        }
        let output = finish(&mut command)?;
        let text = text(&output);
        if reports {
            let seconds = started.elapsed().as_secs();
            println!("ci: {}", summary(self.target, &text, seconds));
        }
        if output.status.success() {
            return Ok(Outcome::Clean);
        }
        if reports {
            eprintln!("{}", last(&text, 60));
            self.tell_how_to_repeat(&text);
        }
        Ok(Outcome::Failed(last(&text, 60)))
    }

    /// Runs one input.
    pub(super) fn replay(&self, file: &Path) -> Result<Outcome> {
        let output = finish(self.command().arg(file))?;
        let text = text(&output);
        if output.status.success() {
            return Ok(Outcome::Clean);
        }
        eprintln!("{}", last(&text, 60));
        Ok(Outcome::Failed(text))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        let hang = if self.target == "canary-hang" { 2 } else { HANG_SECONDS };
        let longest = if self.target == "event-log" { 32 << 10 } else { 8 << 10 };
        command
            .env("RACEGATE_FUZZ_TARGET", self.target)
            .env("RACEGATE_FUZZ_SEEDS", &self.seeds)
            .env("RUST_BACKTRACE", "1")
            .arg(format!("-timeout={hang}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .arg(format!("-malloc_limit_mb={ALLOCATION_MIB}"))
            .arg(format!("-max_len={longest}"))
            .arg("-use_value_profile=0")
            .arg(format!("-artifact_prefix={}/", self.found.display()))
            .stdin(Stdio::null());
        command
    }

    fn tell_how_to_repeat(&self, text: &str) {
        let written = text.lines().find_map(|line| line.split_once("Test unit written to "));
        if let Some((_, path)) = written {
            let path = path.trim();
            eprintln!("ci: repeat with: cargo ci fuzz --target {} --replay {path}", self.target);
        }
    }
}

fn finish(command: &mut Command) -> Result<Output> {
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command.output().context("cannot start the fuzzer")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The last lines of a text.
fn last(text: &str, most: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(most)..].join("\n")
}

/// One line from what libFuzzer says at its end.
fn summary(target: &str, text: &str, seconds: u64) -> String {
    let stat = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("stat::{name}:")));
        line.map_or("?", str::trim).to_owned()
    };
    let edges = text.lines().rev().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "cov:");
        words.nth(1)
    });
    format!(
        "fuzz {target}: {} inputs in {seconds} s, {} a second, {} edges, {} MiB at most",
        stat("number_of_executed_units"),
        stat("average_exec_per_sec"),
        edges.unwrap_or("?"),
        stat("peak_rss_mb"),
    )
}

#[cfg(test)]
mod tests {
    use super::{last, summary};

    #[test]
    fn the_end_of_a_run_in_one_line() {
        let text = "#8\tINITED cov: 12 ft: 13 corp: 1/1b\n#99\tDONE   cov: 45 ft: 50\n\
                    stat::number_of_executed_units: 99\nstat::average_exec_per_sec:     33\n\
                    stat::peak_rss_mb:              41\n";
        let line = "fuzz rules: 99 inputs in 3 s, 33 a second, 45 edges, 41 MiB at most";
        assert_eq!(summary("rules", text, 3), line);
        assert_eq!(summary("rules", "", 3).matches('?').count(), 4);
    }

    #[test]
    fn the_last_lines() {
        assert_eq!(last("a\nb\nc", 2), "b\nc");
        assert_eq!(last("a", 2), "a");
    }
}
