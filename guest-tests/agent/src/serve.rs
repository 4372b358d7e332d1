//! Doing what the host says, until it says to stop.
//!
//! In: messages of the link. Out: messages of the link.
//! Signals are handled by the thread that reads them, because a trial waits for them; everything
//! else is done in order by the calling thread.

use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;

use agent::wire::{self, ToGuest, ToHost, Trial};
use anyhow::{Context, bail};

use crate::link::{Aligned, Link, PollError};
use crate::meeting::Meeting;
use crate::trace::Tracer;
use crate::trial::{Stage, run_trial};
use crate::{clock, console, exec, lists};

/// Answers that are no frames, one after the other, before the link is taken for dead.
const MOST_BAD_POLLS: u32 = 16;

/// Serves until `Shutdown`, or until the link is dead.
pub(crate) fn serve(link: &Arc<Link>, disk: &str) -> anyhow::Result<()> {
    let meeting = Arc::new(Meeting::default());
    let (orders, incoming) = mpsc::channel();
    thread::Builder::new()
        .name("link".into())
        .spawn({
            let (link, meeting) = (Arc::clone(link), Arc::clone(&meeting));
            move || listen(&link, &meeting, &orders)
        })
        .context("starting the thread that listens to the host")?;
    let mut stage = Stage::in_guest(Arc::clone(link), meeting, disk)?;
    for order in incoming {
        match order {
            ToGuest::Run(trial) => run(link, &mut stage, &trial)?,
            ToGuest::Lists(order) => {
                for list in &order.lists {
                    let result = lists::run(&mut stage, order.id, order.blocks, list);
                    link.send(&ToHost::List(result))?;
                }
            }
            ToGuest::Exec { id, program, args } => {
                let args: Vec<String> = args.iter().map(|a| a.replace("{disk}", disk)).collect();
                if let Err(error) = exec::run(link, id, &program, &args) {
                    refuse(link, Some(id), &format!("{error:#}"))?;
                }
            }
            ToGuest::Trace(order) => match Tracer::start(link, &order) {
                Ok(tracer) => stage.watch(tracer),
                Err(error) => refuse(link, Some(order.id), &format!("{error:#}"))?,
            },
            ToGuest::Greet => greet(link, disk)?,
            ToGuest::Sync { rounds } => synchronise(link, rounds)?,
            ToGuest::Ping { id } => {
                link.send(&ToHost::Pong { id, guest_ns: clock::now_ns() })?;
            }
            ToGuest::Shutdown => {
                rustix::fs::sync();
                link.send(&ToHost::Bye)?;
                console::say("bye");
                return Ok(());
            }
            // Raised by the listener already.
            ToGuest::Signal { .. } => {}
        }
    }
    bail!("the link disk gave {MOST_BAD_POLLS} bad answers in a row")
}

/// Says what guest this is.
pub(crate) fn greet(link: &Link, disk: &str) -> anyhow::Result<()> {
    link.send(&ToHost::Hello {
        protocol: wire::VERSION,
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        cpus: thread::available_parallelism().map_or(1, |n| n.get() as u32),
        page_bytes: rustix::param::page_size() as u64,
        disk: disk.to_owned(),
    })?;
    Ok(())
}

fn listen(link: &Link, meeting: &Meeting, orders: &Sender<ToGuest>) {
    let mut buffer = Aligned::new();
    let mut bad = 0;
    while bad < MOST_BAD_POLLS {
        match link.poll(&mut buffer) {
            Ok(message) => {
                bad = 0;
                match message {
                    None => {}
                    Some(ToGuest::Signal { name }) => meeting.raise(&name),
                    Some(order) => {
                        // The receiver lives as long as the agent serves.
                        let Ok(()) = orders.send(order) else { return };
                    }
                }
            }
            Err(error) => {
                bad += 1;
                let reason = match error {
                    PollError::Disk(error) => format!("reading the link disk: {error}"),
                    PollError::Frame(error) => format!("{error}"),
                };
                console::say(&reason);
                let _ = refuse(link, None, &reason);
            }
        }
    }
}

fn run(link: &Link, stage: &mut Stage, trial: &Trial) -> anyhow::Result<()> {
    if let Err(error) = trial.workload.check() {
        return refuse(link, Some(trial.trial), &error.to_string());
    }
    let result = run_trial(stage, trial);
    // What the kernel wrote meanwhile belongs to this trial.
    if let Some(tracer) = stage.tracer() {
        tracer.flush();
    }
    let mut message = ToHost::Trial(result);
    if let Err(error) = link.send(&message) {
        // The one thing that can be too long is what the kernel had to say.
        if let ToHost::Trial(result) = &mut message {
            result.kernel.truncate(16);
            result.steps.truncate(64);
            result.error.get_or_insert_with(|| format!("result cut: {error:#}"));
        }
        link.send(&message)?;
    }
    Ok(())
}

fn synchronise(link: &Link, rounds: u32) -> anyhow::Result<()> {
    let mut previous = None;
    for round in 0..rounds {
        previous = Some(link.send(&ToHost::Clock { round, previous })?);
    }
    Ok(())
}

fn refuse(link: &Link, id: Option<u64>, reason: &str) -> anyhow::Result<()> {
    link.send(&ToHost::Refused { id, reason: reason.to_owned() })?;
    Ok(())
}
