//! What the daemons have in common: from a command line to an exit status.
//!
//! In: a command line, what to do with it. Out: an exit status; errors as one line on standard
//! error.
//! Must not know: what a daemon serves.

mod args;
mod backend;
mod log;

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
pub(crate) use args::{Common, SandboxKind, StorageKind};
pub(crate) use backend::{Backend, Sockets, Sources};
use clap::Parser;
use clap::error::{ContextKind, ContextValue};
use device::socket;
use device::stop::Stop;
pub(crate) use log::Log;

/// Exit status for a command line that cannot be understood, or carried out.
const USAGE: u8 = 2;

/// The command line of a daemon.
pub(crate) trait CommandLine: Parser {
    /// How it logs.
    fn log(&self) -> Log {
        Log::default()
    }
}

/// Why a daemon has ended, other than by request.
pub(crate) enum Failure {
    /// It could not do what the command line asks for.
    Usage(anyhow::Error),
    /// It could not start or go on.
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Other(error)
    }
}

/// Runs the daemon `name` with a command line, program name included: 0 after a clean end, 1 if it
/// could not start or go on, 2 if the command line is wrong.
pub(crate) fn main<A: CommandLine, E: Into<Failure>>(
    name: &str,
    command_line: Vec<OsString>,
    run: impl FnOnce(&A) -> Result<(), E>,
) -> ExitCode {
    let args = match A::try_parse_from(command_line) {
        Ok(args) => args,
        Err(error) if error.use_stderr() => {
            eprintln!("{name}: {}; see --help", one_line(&error));
            return ExitCode::from(USAGE);
        }
        Err(help) => {
            // --help or --version, to standard output; a closed pipe is the reader's choice.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    args.log().start();
    let (error, status) = match run(&args).map_err(E::into) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(error)) => (error, ExitCode::from(USAGE)),
        Err(Failure::Other(error)) => (error, ExitCode::FAILURE),
    };
    eprintln!("{name}: {error:#}");
    status
}

/// What is wrong with a command line, in one line.
fn one_line(error: &clap::Error) -> String {
    if let Some(ContextValue::Strings(missing)) = error.get(ContextKind::InvalidArg)
        && error.kind() == clap::error::ErrorKind::MissingRequiredArgument
    {
        return format!("missing: {}", missing.join(", "));
    }
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    first.trim_start_matches("error: ").trim_end_matches(':').to_owned()
}

/// A flag that SIGTERM and SIGINT set.
pub(crate) fn stop_on_signal() -> anyhow::Result<Arc<Stop>> {
    let stop = Arc::new(Stop::new().context("cannot set up the daemon")?);
    let on_signal = Arc::clone(&stop);
    ctrlc::set_handler(move || on_signal.set()).context("cannot wait for signals")?;
    Ok(stop)
}

/// Who waits until the daemon is ready (`--ready-fd`).
pub(crate) struct Ready(Option<OwnedFd>);

impl Ready {
    /// The descriptor given on the command line. Standard output stays the program's own and is
    /// duplicated; any other descriptor becomes its property. To be called before the program
    /// opens anything of its own.
    pub(crate) fn inherited(fd: Option<i32>) -> anyhow::Result<Ready> {
        let inherit = |fd: i32| -> anyhow::Result<OwnedFd> {
            if fd == std::io::stdout().as_raw_fd() {
                return Ok(std::io::stdout().as_fd().try_clone_to_owned()?);
            }
            Ok(socket::inherited(fd)?)
        };
        Ok(Ready(fd.map(inherit).transpose().context("--ready-fd")?))
    }

    /// Says `line`, once.
    pub(crate) fn tell(self, line: &str) {
        if let Some(fd) = self.0 {
            // Whoever waited may be gone: the daemon serves all the same.
            let _ = writeln!(std::fs::File::from(fd), "{line}");
        }
    }
}
