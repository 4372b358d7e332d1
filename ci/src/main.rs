//! The tasks behind `cargo ci`.
//!
//! In: the name of a task; none means all of them, in order of cost. Out: the exit status, and a
//! closing line that says how many guest tests ran.
//! Must not know: anything that a task of `cargo` or `racegate` already does.

mod bench;
mod check;
mod command;
mod docs;
mod fuzz;
mod guest;
mod test;
mod tidy;

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo ci", about = "The checks of racegate; without a task: all of them")]
struct Args {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand, Clone)]
enum Task {
    /// Rules of the tree: sizes, headers, purity, direction of dependencies
    Tidy,
    /// Make the reference and the cookbook from the code; tidy says when they are not current
    Docs,
    /// Formatting and lints
    Check,
    /// Unit, property and in-process tests
    Test,
    /// Every fuzz target for a while; crashes, hangs, leaks and balloons
    Fuzz(fuzz::Options),
    /// End-to-end tests on real kernels
    Guest,
    /// Benchmarks, as ratios
    Bench,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let tasks = match args.task {
        Some(task) => vec![task],
        None => {
            vec![
                Task::Tidy,
                Task::Check,
                Task::Test,
                Task::Fuzz(fuzz::Options::default()),
                Task::Guest,
            ]
        }
    };
    for task in tasks {
        let started = Instant::now();
        let (name, result) = match task {
            Task::Tidy => ("tidy", tidy::run().and_then(|()| docs::check())),
            Task::Docs => ("docs", docs::write()),
            Task::Check => ("check", check::run()),
            Task::Test => ("test", test::run()),
            Task::Fuzz(options) => ("fuzz", fuzz::run(&options)),
            Task::Guest => ("guest", guest::run()),
            Task::Bench => ("bench", bench::run()),
        };
        let seconds = started.elapsed().as_secs();
        match result {
            Ok(()) => println!("ci: {name} ok, {seconds} s"),
            Err(error) => {
                eprintln!("ci: {name} failed after {seconds} s: {error:#}");
                eprintln!("ci: repeat with: cargo ci {name}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
