//! What the two sides say to each other.
//!
//! Times of the guest are CLOCK_MONOTONIC in nanoseconds.
//! Must not know: how a message is carried out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::lists::{ListResult, Lists};
use super::trace::{TraceLines, TraceOrder, TraceStarted};
use super::workload::Workload;

/// A message from the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ToHost {
    /// The first message after boot: the guest is ready. Also the answer to [`ToGuest::Greet`].
    Hello {
        /// [`super::VERSION`] of the agent.
        protocol: u16,
        /// Release of the kernel (`uname -r`).
        kernel: String,
        /// Processors online.
        cpus: u32,
        /// Page size in bytes.
        page_bytes: u64,
        /// Kernel name of the main disk (`vda`).
        disk: String,
    },
    /// One step of clock synchronisation. The host notes when it arrived; the next message says
    /// between which guest times that was.
    Clock {
        /// Counts from 0 within one synchronisation.
        round: u32,
        /// The transfer of the round before; `None` in round 0.
        previous: Option<ClockSpan>,
    },
    /// The guest passed a named mark; rules know it as `agent:NAME`.
    Mark {
        /// Name of the mark.
        name: String,
        /// When, in the guest.
        guest_ns: u64,
        /// Thread of the workload that passed it.
        thread: String,
        /// Trial in which it passed.
        trial: u64,
    },
    /// The answer to [`ToGuest::Ping`].
    Pong {
        /// That of the ping.
        id: u64,
        /// When it was answered, in the guest.
        guest_ns: u64,
    },
    /// A trial is over.
    Trial(TrialResult),
    /// One list of [`ToGuest::Lists`] is over.
    List(ListResult),
    /// A program started with [`ToGuest::Exec`] wrote something.
    Output {
        /// That of the command.
        id: u64,
        /// Where it wrote.
        stream: Stream,
        /// What it wrote; bytes that are not UTF-8 are replaced.
        text: String,
    },
    /// A program started with [`ToGuest::Exec`] has ended; all its output was sent before.
    Exited {
        /// That of the command.
        id: u64,
        /// Exit status; 128 + number for a signal, as shells do.
        status: i32,
        /// When it ended, in the guest.
        guest_ns: u64,
    },
    /// The answer to [`ToGuest::Trace`].
    TraceStarted(TraceStarted),
    /// What the kernel's probes wrote.
    Trace(TraceLines),
    /// The agent could not do what it was told, or did not understand it.
    Refused {
        /// The command or trial; `None` when the frame could not be read.
        id: Option<u64>,
        /// Why.
        reason: String,
    },
    /// The agent panicked. It powers the guest off next.
    Panic {
        /// Message and place.
        text: String,
    },
    /// The last message before power-off.
    Bye,
}

/// A message to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ToGuest {
    /// Something happened at the host: `held:RULE`, `released:RULE`.
    Signal {
        /// Its name.
        name: String,
    },
    /// Run one trial; answered by [`ToHost::Trial`], or [`ToHost::Refused`] with its number.
    Run(Trial),
    /// Carry out lists of calls; answered by a [`ToHost::List`] for each, in order.
    Lists(Lists),
    /// Run a program to its end; answered by [`ToHost::Output`] and [`ToHost::Exited`].
    Exec {
        /// Chosen by the host.
        id: u64,
        /// Absolute path in the guest.
        program: String,
        /// Arguments after the program's name. `{disk}` becomes the kernel name of the main disk.
        args: Vec<String>,
    },
    /// Watch the kernel from now on; answered by [`ToHost::TraceStarted`], then
    /// [`ToHost::Trace`] as lines come, or [`ToHost::Refused`] with its id.
    Trace(TraceOrder),
    /// Synchronise clocks: answered by that many [`ToHost::Clock`] rounds.
    Sync {
        /// Rounds, at least 2 to learn anything.
        rounds: u32,
    },
    /// Say [`ToHost::Hello`]: the other end of the link is a new one, which knows nothing of the guest.
    Greet,
    /// Say [`ToHost::Pong`].
    Ping {
        /// Chosen by the host.
        id: u64,
    },
    /// Sync, say [`ToHost::Bye`], power off.
    Shutdown,
}

/// One trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Number, unique within the boot.
    pub trial: u64,
    /// Decides every random draw of the trial.
    pub seed: u64,
    /// What to do.
    pub workload: Workload,
}

/// The guest times between which one transfer to the host took place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockSpan {
    /// Just before the write was given to the kernel.
    pub before_ns: u64,
    /// Just after the kernel reported it done.
    pub after_ns: u64,
}

/// What happened in a trial, as the guest saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialResult {
    /// That of the order.
    pub trial: u64,
    /// When the setup began.
    pub began_ns: u64,
    /// When the clean-up was done.
    pub ended_ns: u64,
    /// Every operation carried out, in the order of their ends.
    pub steps: Vec<Step>,
    /// What was read by `read_value` operations, by name.
    pub values: BTreeMap<String, String>,
    /// New lines of the kernel log, oldest first.
    pub kernel: Vec<KernelLine>,
    /// Why the workload could not be carried out as written; `None` if it was.
    pub error: Option<String>,
}

/// One operation that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Thread of the workload; `setup`, `finish` and `cleanup` for those parts.
    pub thread: String,
    /// The operation, as [`super::Op::label`] gives it.
    pub op: String,
    /// Just before the system call.
    pub begin_ns: u64,
    /// Just after it.
    pub end_ns: u64,
    /// `errno` of its failure.
    pub errno: Option<i32>,
}

/// One line of the kernel log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelLine {
    /// Time stamp of the line, in microseconds of the kernel's log clock.
    pub at_us: u64,
    /// Syslog level, 0 (emergency) to 7 (debug).
    pub level: u8,
    /// The line.
    pub text: String,
}

/// An output stream of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}
