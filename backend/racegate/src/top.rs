//! `racegate top`: what a running disk does, now.
//!
//! In: a control socket. Out: rates and latencies of each interval, on the screen, as tables or
//! as JSON.
//! Must not know: how the backend counts.

mod rates;
mod screen;
mod table;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use campaign::interrupt;
use pipeline::Stats;
use pipeline::control::{Request, Response};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::ctl::client::Client;
use rates::Rates;
use screen::Screen;

/// Shorter intervals would show noise, and the cost of looking.
const SHORTEST: Duration = Duration::from_millis(10);

/// Arguments of `racegate top`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Control socket of the backend (its --control-socket)
    socket: PathBuf,
    /// Time between two looks
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Watch one interval, print what happened in it, and end
    #[arg(long)]
    once: bool,
    /// Print one line of JSON for each interval
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if interval < SHORTEST {
        return Err(format!("the shortest interval is {}", humantime::format_duration(SHORTEST)));
    }
    Ok(interval)
}

/// Watches until interrupted, which is the usual end and a good one.
///
/// # Errors
/// The backend cannot be reached, or goes away; `--once` is interrupted.
pub fn run(args: &Args) -> Result<ExitCode> {
    interrupt::install().context("cannot take over the interrupt signals")?;
    let mut client = Client::connect(&args.socket)?;
    let mut before = (look(&mut client, &args.socket)?, Instant::now());
    let live = !args.once && !args.json && io::stdout().is_terminal();
    let mut screen = live.then(Screen::open).transpose()?;
    loop {
        if !wait(args.interval) {
            if args.once {
                bail!("interrupted");
            }
            return Ok(ExitCode::SUCCESS);
        }
        let now = (look(&mut client, &args.socket)?, Instant::now());
        let rates = Rates::between(&before.0, &now.0, now.1 - before.1);
        before = now;
        let written = match &mut screen {
            Some(screen) => screen.show(&table::lines(&rates, &args.socket, screen.columns())),
            None => print(&rates, args),
        };
        match written {
            // Whoever reads may close it when they have seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(ExitCode::SUCCESS);
            }
            written => written.context("cannot write to standard output")?,
        }
        if args.once {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn print(rates: &Rates, args: &Args) -> io::Result<()> {
    let out = &mut io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut *out, rates)?;
        writeln!(out)?;
    } else {
        for line in table::lines(rates, &args.socket, usize::MAX) {
            writeln!(out, "{line}")?;
        }
        if !args.once {
            writeln!(out)?;
        }
    }
    out.flush()
}

fn look(client: &mut Client, socket: &Path) -> Result<Stats> {
    let line = client.ask(&Request::Stats)?;
    match serde_json::from_str(&line) {
        Ok(Response::Stats(stats)) => Ok(stats),
        Ok(Response::Error { message }) => bail!("{}: {message}", socket.display()),
        Ok(_) => bail!("{}: not an answer to the question for statistics", socket.display()),
        Err(error) => {
            Err(error).with_context(|| format!("{}: not an answer of a backend", socket.display()))
        }
    }
}

/// False: interrupted before the time was over.
fn wait(interval: Duration) -> bool {
    let until = Instant::now() + interval;
    loop {
        if interrupt::requested() {
            return false;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        // An interval that does not fit is longer than anybody waits.
        let limit = Timespec::try_from(left).ok();
        let mut fds: Vec<PollFd<'_>> = interrupt::fd()
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .into_iter()
            .collect();
        // An error (a signal) leads to another look, as a timeout does.
        let _ = poll(&mut fds, limit.as_ref());
    }
}
