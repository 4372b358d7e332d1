//! Words of the control socket.
//!
//! In: nothing. Out: [`Request`] and [`Response`], one line of JSON each way per request.
//! Must not know: sockets, who carries a request out.
//!
//! A client connects to the Unix socket, writes one request a line and reads one response a
//! line, in order, as often as it likes. After `events` is answered with `done`, the server
//! sends events (see [`crate::event`]), one a line, until the client closes the connection.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::core::{RuleStats, Stats};
use crate::event::{RulesText, SpanRecord};
use ext4_layout::Kind;

/// What an operator may ask of a running backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Request {
    /// The rules in force. Answer: [`Response::Rules`].
    List,
    /// Replace the rules; what the old ones had parked is let go. Answer: [`Response::Rules`].
    Load(RulesText),
    /// Arm a rule and start its counts anew. Answer: [`Response::Done`].
    Arm {
        /// The rule.
        rule: String,
    },
    /// Disarm a rule; what it has parked stays parked. Answer: [`Response::Done`].
    Disarm {
        /// The rule.
        rule: String,
    },
    /// Let go what a rule has parked, or what every rule has. Answer: [`Response::Released`].
    Release {
        /// The rule; every rule if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rule: Option<String>,
    },
    /// Counts and latencies. Answer: [`Response::Stats`].
    Stats,
    /// What the disk holds. Answer: [`Response::Layout`] for a range of sectors,
    /// [`Response::LayoutSummary`] without one.
    Layout {
        /// First 512-byte sector.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sector: Option<u64>,
        /// Length in 512-byte sectors; 1 if only `sector` is given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sectors: Option<u64>,
    },
    /// Make this connection a stream of events. Answer: [`Response::Done`], then the events.
    Events,
    /// Send a message to the agent in the guest. Answer: [`Response::Done`].
    Send {
        /// The message, as the agent's wire format has it.
        message: serde_json::Value,
    },
    /// Drop the overlay: the disk is as it was at start. Answer: [`Response::Done`].
    Reset,
    /// Persistent memory: make every page that a rule may want slow again now, rather than some
    /// milliseconds after it was touched. Answer: [`Response::Done`].
    Rearm,
    /// Change the size of the disk and tell the guest. Answer: [`Response::Done`].
    Resize {
        /// New size.
        bytes: u64,
    },
    /// Allow the disk a write cache, or make every write durable before it completes, whatever
    /// the guest says. Answer: [`Response::Done`].
    WriteCache {
        /// Allowed.
        on: bool,
    },
    /// Refuse writes, or take them again, from the next front-end on; refused while one is
    /// connected that has it otherwise. Answer: [`Response::Done`].
    ReadOnly {
        /// Refuse.
        on: bool,
    },
    /// Let everything go, flush and end. Answer: [`Response::Done`], then the connection closes.
    Shutdown,
}

/// What the backend answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Response {
    /// It is done.
    Done,
    /// The rules in force.
    Rules {
        /// Name of the rules file; empty if none is loaded.
        file: String,
        /// In the order in which they are asked.
        rules: Vec<RuleInfo>,
    },
    /// Requests were let go.
    Released {
        /// How many.
        requests: u64,
    },
    /// Counts and latencies.
    Stats(Stats),
    /// The classes of a range.
    Layout {
        /// In disk order, adjacent equal classes merged.
        ranges: Vec<SpanRecord>,
    },
    /// The classes of the whole disk, added up.
    LayoutSummary {
        /// 512-byte sectors of each class that occurs.
        sectors: BTreeMap<Kind, u64>,
    },
    /// It is not done.
    Error {
        /// Why, and what to do.
        message: String,
    },
}

/// One rule in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleInfo {
    /// Its name.
    pub name: String,
    /// What it does, in words.
    pub meaning: String,
    /// Whether it is armed now.
    pub armed: bool,
    /// How many requests it has matched while armed.
    pub matched: u64,
    /// How often it fired.
    pub fired: u64,
    /// How many requests it has parked now.
    pub parked: u64,
}

impl RuleInfo {
    /// From its counts and its description.
    pub fn new(stats: &RuleStats, meaning: String) -> RuleInfo {
        RuleInfo {
            name: stats.name.to_string(),
            meaning,
            armed: stats.armed,
            matched: stats.matched,
            fired: stats.fired,
            parked: stats.parked,
        }
    }
}
