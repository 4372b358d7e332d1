//! `racegate ctl`: an operator's hand on a running backend.
//!
//! In: a control socket and a command. Out: the answer, for people or as JSON.
//! Must not know: how the backend carries a command out.

pub(crate) mod client;
pub(crate) mod show;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Subcommand};
use pipeline::control::{Request, Response};

use client::Client;

/// Controls a running backend through its control socket.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Control socket of the backend (its --control-socket)
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Print the backend's answers as they come: one line of JSON each
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The rules in force, what they mean and how often they fired
    List,
    /// Replace the rules by those of a file; requests that the old ones hold are let go
    Load {
        /// Rules file (TOML); it is checked before the backend is asked
        file: PathBuf,
    },
    /// Arm a rule, and start its counts anew
    Arm {
        /// Name of the rule
        rule: String,
    },
    /// Disarm a rule; requests that it holds stay held
    Disarm {
        /// Name of the rule
        rule: String,
    },
    /// Let go the requests that a rule holds or delays, or that all rules do
    Release {
        /// Name of the rule; every rule if left out
        rule: Option<String>,
    },
    /// Counts of every rule, and requested against achieved latency
    Stats,
    /// What the disk holds: the classes of a range, or the sum of each class
    Layout {
        /// First 512-byte sector of the range
        #[arg(long)]
        sector: Option<u64>,
        /// Length of the range in 512-byte sectors
        #[arg(long, requires = "sector")]
        sectors: Option<u64>,
    },
    /// Follow the events, until interrupted
    Events,
    /// Send a message to the agent in the guest
    Send {
        /// The message, JSON
        message: String,
    },
    /// Drop what the guest has written to an overlay: the disk is as it was at start
    Reset,
    /// Persistent memory: make every page that a rule may want slow again, now
    Rearm,
    /// Change the size of the disk and tell the guest
    Resize {
        /// New size in bytes, a multiple of 512
        bytes: u64,
    },
    /// Let the guest have a write cache, or make each of its writes durable before it completes
    WriteCache {
        /// Whether it may have one
        #[arg(action = ArgAction::Set, value_parser = on_off())]
        mode: bool,
    },
    /// Refuse writes of the machines to come; not while one is connected that has it otherwise
    ReadOnly {
        /// Whether to refuse them
        #[arg(action = ArgAction::Set, value_parser = on_off())]
        mode: bool,
    },
    /// Let everything go, flush and end
    Shutdown,
}

/// Carries out the command.
///
/// # Errors
/// The backend cannot be reached, does not understand, or refuses; the rules file is missing or
/// has a mistake.
pub fn run(args: Args) -> Result<ExitCode> {
    let request = request(args.command)?;
    let follow = request == Request::Events;
    let mut client = Client::connect(&args.socket)?;
    let line = client.ask(&request)?;
    let response: Response = serde_json::from_str(&line)
        .with_context(|| format!("{}: not an answer of a backend", args.socket.display()))?;

    let out = &mut io::stdout().lock();
    let refused = matches!(response, Response::Error { .. });
    if args.json {
        finish(writeln!(out, "{}", line.trim_end()))?;
    } else if let Response::Error { message } = response {
        bail!("{}: {message}", args.socket.display());
    } else if !follow {
        finish(show::response(out, &response))?;
    }
    if refused {
        return Ok(ExitCode::from(2));
    }
    if follow {
        client.follow(|line| {
            // The backend's event and the one of this program are of one version, or the line
            // is shown as it is.
            let event = serde_json::from_str(line).ok().filter(|_| !args.json);
            match event {
                Some(event) => show::event(out, &event),
                None => writeln!(out, "{line}"),
            }
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whoever reads standard output may close it when they have seen enough.
fn finish(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// The words `on` and `off`.
fn on_off() -> impl TypedValueParser<Value = bool> {
    PossibleValuesParser::new(["on", "off"]).map(|word| word == "on")
}

fn request(command: Command) -> Result<Request> {
    Ok(match command {
        Command::List => Request::List,
        Command::Load { file } => Request::Load(crate::rules::read(&file)?.text().clone()),
        Command::Arm { rule } => Request::Arm { rule },
        Command::Disarm { rule } => Request::Disarm { rule },
        Command::Release { rule } => Request::Release { rule },
        Command::Stats => Request::Stats,
        Command::Layout { sector, sectors } => Request::Layout { sector, sectors },
        Command::Events => Request::Events,
        Command::Send { message } => Request::Send {
            message: serde_json::from_str(&message).with_context(|| {
                format!("`{message}` is not JSON; give for example '{{\"go\":1}}'")
            })?,
        },
        Command::Reset => Request::Reset,
        Command::Rearm => Request::Rearm,
        Command::Resize { bytes } => Request::Resize { bytes },
        Command::WriteCache { mode } => Request::WriteCache { on: mode },
        Command::ReadOnly { mode } => Request::ReadOnly { on: mode },
        Command::Shutdown => Request::Shutdown,
    })
}
