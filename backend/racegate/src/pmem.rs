//! `racegate-pmem`: the page server, a file that a VMM maps as persistent memory.
//!
//! In: a command line, an image, an empty folder, maybe rules. Out: the file in the folder, until
//! a signal; errors as one line on standard error.
//! Must not know: FUSE, ext4, what the rules mean.

mod args;
mod serve;

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the daemon with a command line, program name included, and gives its exit status:
/// 0 after a clean end, 1 if it could not go on, 2 if it could not start.
pub fn main(command_line: impl IntoIterator<Item = OsString>) -> ExitCode {
    crate::daemon::main("racegate-pmem", command_line.into_iter().collect(), serve::run)
}

/// Its command line, for the man page.
pub(crate) fn command() -> clap::Command {
    <args::Args as clap::CommandFactory>::command()
}
