//! Events: what happened, as one line of JSON each.
//!
//! In: what the core and the device layer saw. Out: [`Event`], schema version [`SCHEMA`].
//! Must not know: files, subscribers, how a line is written.
//!
//! A log is a sequence of lines with rising `seq` (one counter per backend: the order of the
//! log is the order of what happened). The first line is a `log` event with the seed and the
//! text of the rules in force; [`replay`](crate::replay()) needs nothing else to reach the same
//! decisions.
//!
//! Inputs (what the core was told) are `request`, `complete`, `agent_mark`, `rules`, `release`,
//! `arm`, `tick` and `disconnect`. What the core made of them follows each: `decision`,
//! `released`, `armed`, `told_agent`. A `request` that no `decision` follows matched no rule
//! that fired, and was submitted at once. Notes, which replay passes over, are `agent`,
//! `layout`, `finding`, `bytes`, `first_store`, `protected` and `lost`. Times (`at`) are
//! nanoseconds since the backend started; names ending in `_ns` are durations in nanoseconds;
//! sectors have 512 bytes.

mod bytes;
mod class;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use bytes::{BadBytes, bytes_event, bytes_of};
pub use class::{ClassRecord, HomeRecord, SpanRecord};

use crate::request::{Nanos, Op, Outcome, RequestId};
use crate::shadow::Finding;

/// Version of the event log; raised when a line of an older version would be misread.
pub const SCHEMA: u32 = 1;

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Place in the order of everything that happened; rises by 1 with each event.
    pub seq: u64,
    /// When.
    pub at: Nanos,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// The text of a rules file and of the files it names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesText {
    /// Name of the rules file, for messages.
    pub file: String,
    /// Its text, TOML.
    pub text: String,
    /// Text of each histogram file that it names, by the name used in the rules.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// Seed of the random draws of these rules; the backend's if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// A log begins here. Always the first line.
    Log {
        /// [`SCHEMA`] of the writer.
        schema: u32,
        /// Seed of every random draw.
        seed: u64,
        /// Whether nothing had happened yet; only such a log can be replayed.
        from_start: bool,
        /// Rules in force.
        rules: RulesText,
    },
    /// Input: rules were loaded; whatever the old ones had parked is let go.
    Rules {
        /// The new rules.
        rules: RulesText,
    },
    /// Input: a request arrived.
    Request {
        /// Identity, unique in the log.
        id: RequestId,
        /// Virtqueue index.
        queue: u16,
        /// Head descriptor index in the avail ring.
        head: u16,
        /// What it does.
        op: Op,
        /// First 512-byte sector.
        sector: u64,
        /// Length in 512-byte sectors.
        sectors: u64,
        /// What it touches.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        classes: Vec<SpanRecord>,
    },
    /// A rule fired on a request: the rule hit and what it does.
    Decision {
        /// Which request.
        id: RequestId,
        /// The rule.
        rule: Arc<str>,
        /// How many requests the rule has matched, this one included.
        matched: u64,
        /// What becomes of the request.
        verdict: Verdict,
    },
    /// A parked request was let go: handed to storage, or failed if `fail` is there.
    Released {
        /// Which request.
        id: RequestId,
        /// The rule that had parked it.
        rule: Arc<str>,
        /// Why now.
        cause: Cause,
        /// Time since it arrived.
        waited_ns: u64,
        /// The errno it is failed with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fail: Option<i32>,
    },
    /// Input: storage finished a request.
    Complete {
        /// Which request.
        id: RequestId,
        /// How it ended.
        outcome: Outcome,
        /// When storage was given the request, if known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        submitted: Option<Nanos>,
    },
    /// Input: the agent in the guest passed a named mark.
    AgentMark {
        /// Name of the mark.
        name: String,
        /// CLOCK_MONOTONIC in the guest.
        guest_ns: u64,
    },
    /// Input: the operator lets go what a rule has parked, or what every rule has.
    Release {
        /// The rule; every rule if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rule: Option<String>,
    },
    /// Input: the operator arms or disarms a rule.
    Arm {
        /// The rule.
        rule: String,
        /// Armed or not.
        armed: bool,
    },
    /// Input: the timer expired and something was due.
    Tick,
    /// Input: the front-end went away, or the backend shuts down.
    Disconnect,
    /// A rule was armed or disarmed.
    Armed {
        /// The rule.
        rule: Arc<str>,
        /// Armed or not.
        armed: bool,
        /// Why.
        cause: Cause,
    },
    /// The agent is told that a rule holds, has let go or has fired.
    ToldAgent {
        /// `held:RULE`, `released:RULE` or `fired:RULE`.
        signal: String,
    },
    /// Note: a message of the agent, as it came.
    Agent {
        /// The message.
        message: serde_json::Value,
    },
    /// Note: the map from sectors to ext4 objects changed.
    Layout {
        /// How.
        change: LayoutChange,
        /// For the reader.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
        /// Size of the device, when it was read for a log with `bytes`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device_bytes: Option<u64>,
    },
    /// Note: the shadow found something that must not be.
    Finding(Finding),
    /// Note: bytes that the shadow was told of, so that `racegate check` can look at the log again.
    /// Those of a write stand before its `request`; those that the layout was read from, before
    /// its `layout` event.
    Bytes {
        /// The write; absent for bytes read from the storage.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        /// First byte of the device.
        offset: u64,
        /// How many bytes; what `data` does not have of them is zero.
        len: u64,
        /// Base64 without padding, zeroes at the end left out.
        data: String,
    },
    /// Note of `racegate stores`: a store to a page of mapped memory, the first since the pages were
    /// protected last. It waits until it is entered here.
    FirstStore {
        /// First byte of the file that is stored to.
        offset: u64,
        /// The thread that stores, as gettid() gives it.
        thread: u32,
        /// Name of that thread, if it is still there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<Arc<str>>,
        /// Which virtual processor that thread is, if it is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vcpu: Option<u32>,
        /// What the sector was when the layout was read last.
        touches: ClassRecord,
    },
    /// Note of `racegate stores`: the next store to each page is a first one.
    Protected {
        /// Why.
        cause: Protection,
        /// First stores since the protection before this one.
        stores: u64,
    },
    /// Note, to one subscriber only: it was too slow, and this many events before the next one
    /// were dropped. Never in a log.
    Lost {
        /// How many.
        events: u64,
    },
}

/// What becomes of a request on which a rule fired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Submitted at once; later rules are not asked.
    Pass,
    /// Submitted (or failed, if the rule fails it) after a time.
    Delay {
        /// Requested latency.
        ns: u64,
    },
    /// Parked until something happens.
    Hold {
        /// What is waited for, as rules spell it.
        until: Arc<str>,
        /// Time limit.
        at_most_ns: u64,
    },
    /// Failed at once.
    Fail {
        /// The errno.
        errno: i32,
    },
}

/// Why something was let go, armed or disarmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The delay is over.
    Due,
    /// A hold reached its time limit.
    Limit,
    /// The agent passed this mark.
    Agent(Arc<str>),
    /// This rule fired.
    Rule(Arc<str>),
    /// That many requests have arrived: since the hold began, or since the rules were loaded.
    Requests(u64),
    /// The operator said so.
    Control,
    /// Other rules were loaded.
    Reload,
    /// The front-end went away, or the backend shuts down.
    Disconnect,
}

/// Why the pages of mapped memory are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// They were mapped.
    Mapped,
    /// The process that maps them flushes the file: for the guest, or for itself.
    Flush,
    /// The time between two protections is over.
    Interval,
    /// The operator said so.
    Control,
}

/// How the map from sectors to ext4 objects changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayoutChange {
    /// Read from the image.
    Opened,
    /// A write that passed through changed it.
    Changed,
    /// The geometry changed (mkfs, resize): read from the image again.
    Reopened,
    /// No ext4 could be read; everything is `unknown`.
    Lost,
}

impl What {
    /// Whether the event says what the core was told (and not what it made of it, nor a note).
    pub const fn is_input(&self) -> bool {
        matches!(
            self,
            What::Rules { .. }
                | What::Request { .. }
                | What::Complete { .. }
                | What::AgentMark { .. }
                | What::Release { .. }
                | What::Arm { .. }
                | What::Tick
                | What::Disconnect
        )
    }

    /// Whether the event is a note of the device layer that decides nothing.
    pub const fn is_note(&self) -> bool {
        matches!(
            self,
            What::Agent { .. }
                | What::Layout { .. }
                | What::Finding(_)
                | What::Bytes { .. }
                | What::FirstStore { .. }
                | What::Protected { .. }
                | What::Lost { .. }
        )
    }
}

#[cfg(test)]
pub(crate) mod tests;
