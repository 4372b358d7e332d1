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

use clap::Parser;
use tracing_subscriber::EnvFilter;

use args::Args;

/// Exit status for a command line that cannot be understood.
const USAGE: u8 = 2;

/// Runs the daemon with a command line, program name included, and gives its exit status:
/// 0 after a clean end, 1 if it could not start or go on, 2 if the command line is wrong.
pub fn main(command_line: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command_line: Vec<OsString> = command_line.into_iter().collect();
    // "All other command line arguments are ignored" (vhost-user.rst), wrong ones included.
    if command_line.iter().any(|arg| arg == "--print-capabilities") {
        println!("{}", capabilities::json());
        return ExitCode::SUCCESS;
    }
    let args = match Args::try_parse_from(command_line) {
        Ok(args) => args,
        Err(error) if error.use_stderr() => {
            eprintln!("racegate-blk: {}; see --help", args::one_line(&error));
            return ExitCode::from(USAGE);
        }
        Err(help) => {
            // --help or --version, to standard output; a closed pipe is the reader's choice.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match serve::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("racegate-blk: {error:#}");
            ExitCode::FAILURE
        }
    }
}
