//! `racegate-blk`: the vhost-user-blk daemon.
//!
//! In: a command line that follows QEMU's backend program conventions (docs/interop/
//! vhost-user.rst), an image, maybe rules. Out: a disk on a socket, until a signal or the
//! front-end's end; errors as one line on standard error.
//! Must not know: virtqueues, ext4, what the rules mean.

mod args;
mod capabilities;
mod serve;

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the daemon with a command line, program name included, and gives its exit status:
/// 0 after a clean end, 1 if it could not start or go on, 2 if the command line is wrong.
pub fn main(command_line: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command_line: Vec<OsString> = command_line.into_iter().collect();
    // "All other command line arguments are ignored" (vhost-user.rst), wrong ones included.
    if command_line.iter().any(|arg| arg == "--print-capabilities") {
        println!("{}", capabilities::json());
        return ExitCode::SUCCESS;
    }
    crate::daemon::main("racegate-blk", command_line, serve::run)
}

/// Its command line, for the man page.
pub(crate) fn command() -> clap::Command {
    <args::Args as clap::CommandFactory>::command()
}
