//! The command line of `racegate`: a table of modes.
//!
//! In: arguments. Out: an exit status; errors are printed once, as a chain, here.
//! Must not know: how any mode works.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

#[derive(Parser)]
#[command(
    name = "racegate",
    version,
    about = "Widens races inside guest kernels from the disk, and tells which kernels are affected"
)]
struct Args {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// Try every interleaving of a scenario on the engine
    Explore(crate::explore::Args),
    /// Show what the blocks of an ext4 image are
    Inspect(crate::inspect::Args),
    /// Print a completion script
    Completions {
        /// Shell to complete in
        shell: Shell,
    },
}

/// Runs the tool and gives its exit status: 0 success, 1 the answer is bad (an affected kernel,
/// a violation, a failed check), 2 the question could not be answered.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.mode {
        Mode::Explore(args) => crate::explore::run(&args),
        Mode::Inspect(args) => crate::inspect::run(args),
        Mode::Completions { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "racegate", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error: anyhow::Error| {
        eprintln!("racegate: {error:#}");
        ExitCode::from(2)
    })
}
