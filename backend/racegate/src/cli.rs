//! The command line of `racegate`: a table of modes.
//!
//! In: arguments. Out: an exit status; errors are printed once, as a chain, here.
//! Must not know: how any mode works.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
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
    /// Reproduce the founding bug on an affected and a fixed kernel
    Reproduce(crate::reproduce::Args),
    /// Run a plan on any kernel, or show the built-in plans
    Campaign(crate::campaign::Args),
    /// Name the first kernel of a series that is fixed, or affected; a step of `git bisect run`
    Bisect(crate::bisect::Args),
    /// Run a stored result again
    Replay(crate::replay::Args),
    /// Write a report of stored campaigns: HTML, Markdown, JUnit, KTAP
    Report(crate::report::Args),
    /// Put databases of results together: shards become one campaign
    Merge(crate::merge::Args),
    /// Make a plan as small as it can be while it still hits
    Minimise(crate::minimise::Args),
    /// Hunt for bugs that nobody has described: plans from a grammar, judged by the shadows
    Hunt(crate::hunt::Args),
    /// Try every interleaving of a scenario on the engine
    Explore(crate::explore::Args),
    /// Compare the engine with a real kernel on random lists of operations
    Differential(crate::differential::Args),
    /// Show what the blocks of an ext4 image are
    Inspect(crate::inspect::Args),
    /// List and fetch Debian's kernels
    Kernels(crate::kernels::Args),
    /// Measure how exact delays of persistent memory are on this machine, in a guest
    Latency(crate::latency::Args),
    /// Measure a disk daemon, without a guest or in one, against others in the same run
    Bench(crate::bench::Args),
    /// Steer a running disk: rules, statistics, events
    Ctl(crate::ctl::Args),
    /// Watch a running disk: rates and latencies by queue, operation, class and rule
    Top(crate::top::Args),
    /// Check a rules file
    Rules(crate::rules::Args),
    /// Check a recorded event log for what must not be on an ext4 disk
    Check(crate::check::Args),
    /// Show the first store to each page of a guest's persistent memory
    #[command(disable_help_flag = true)]
    Stores {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Check for, and install, what the other modes need
    Setup(crate::setup::Args),
    /// Print a completion script
    Completions {
        /// Shell to complete in
        shell: Shell,
    },
    /// Write man pages, one for each command, into a folder
    Man {
        /// Folder, such as ~/.local/share/man/man1; it is made if it is not there
        dir: PathBuf,
    },
    /// The disk daemon, as the harness starts it: `racegate-blk` by another name
    #[command(hide = true, disable_help_flag = true)]
    Blk {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// The page server, as the harness starts it: `racegate-pmem` by another name
    #[command(hide = true, disable_help_flag = true)]
    Pmem {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// The vhost-user virtio-pmem daemon
    #[command(hide = true, disable_help_flag = true)]
    PmemVhost {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

/// Runs the tool and gives its exit status: 0 the answer is good, 1 it is bad (a verdict that is
/// not the known one, a violation), 2 there is no answer, 130 interrupted.
pub fn main() -> ExitCode {
    let result = match Args::parse().mode {
        Mode::Reproduce(args) => crate::reproduce::run(&args),
        Mode::Campaign(args) => crate::campaign::run(&args),
        Mode::Bisect(args) => crate::bisect::run(&args),
        Mode::Replay(args) => crate::replay::run(&args),
        Mode::Report(args) => crate::report::run(&args),
        Mode::Merge(args) => crate::merge::run(&args),
        Mode::Minimise(args) => crate::minimise::run(&args),
        Mode::Hunt(args) => crate::hunt::run(&args),
        Mode::Explore(args) => crate::explore::run(&args),
        Mode::Differential(args) => crate::differential::run(&args),
        Mode::Inspect(args) => crate::inspect::run(args),
        Mode::Kernels(args) => crate::kernels::run(args),
        Mode::Latency(args) => crate::latency::run(&args),
        Mode::Bench(args) => crate::bench::run(&args),
        Mode::Ctl(args) => crate::ctl::run(args),
        Mode::Top(args) => crate::top::run(&args),
        Mode::Rules(args) => crate::rules::run(args),
        Mode::Check(args) => crate::check::run(&args),
        Mode::Setup(args) => crate::setup::run(args),
        Mode::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Args::command(),
                "racegate",
                &mut std::io::stdout(),
            );
            Ok(ExitCode::SUCCESS)
        }
        Mode::Man { dir } => man(&dir),
        Mode::Pmem { args } => {
            return crate::pmem::main(std::iter::once("racegate-pmem".into()).chain(args));
        }
        Mode::PmemVhost { args } => {
            return crate::pmem_vhost::main(
                std::iter::once("racegate pmem-vhost".into()).chain(args),
            );
        }
        Mode::Stores { args } => {
            return crate::stores::main(std::iter::once("racegate stores".into()).chain(args));
        }
        Mode::Blk { args } => {
            return crate::blk::main(std::iter::once("racegate-blk".into()).chain(args));
        }
    };
    result.unwrap_or_else(|error: anyhow::Error| {
        eprintln!("racegate: {error:#}");
        ExitCode::from(if campaign::interrupt::requested() { 130 } else { 2 })
    })
}

/// Writes the man pages: of this program, of each of its modes, and of the daemons.
fn man(dir: &Path) -> anyhow::Result<ExitCode> {
    fs::create_dir_all(dir).with_context(|| format!("Could not make {}", dir.display()))?;
    // Daemons go by their own names; what is hidden here is one of them.
    let whole = Args::command().mut_subcommand("stores", |_| crate::stores::command());
    for command in [whole, crate::blk::command(), crate::pmem::command()] {
        clap_mangen::generate_to(command, dir)
            .with_context(|| format!("Could not write man pages into {}", dir.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
        crate::stores::command().debug_assert();
        crate::blk::command().debug_assert();
        crate::pmem::command().debug_assert();
    }

    #[test]
    fn every_mode_has_a_man_page() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("man1");
        man(&dir).unwrap();
        let command = Args::command();
        for mode in command.get_subcommands().filter(|mode| !mode.is_hide_set()) {
            let name = mode.get_name();
            let page = fs::read_to_string(dir.join(format!("racegate-{name}.1"))).unwrap();
            assert!(page.contains(".SH SYNOPSIS"), "{name}");
        }
        for name in ["racegate", "racegate-blk", "racegate-pmem", "racegate-campaign-run"] {
            assert!(dir.join(format!("{name}.1")).is_file(), "{name}");
        }
        let page = fs::read_to_string(dir.join("racegate-campaign-run.1")).unwrap();
        assert!(page.contains("shard"), "its options are there");
    }

    #[test]
    fn every_shell_has_completions() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "racegate", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("campaign") && script.contains("until-sure"), "{shell}");
        }
    }
}
