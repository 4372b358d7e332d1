//! The seam between the device layer and the core.
//!
//! The device layer turns everything that happens into an [`Input`], calls
//! [`Core::step`](crate::Core::step) under one short lock, and carries out the [`Action`]s.
//! The core owns every queue of time (delays, hold limits): the device layer keeps one timer,
//! armed for [`Core::next_due`](crate::Core::next_due), and reports its expiry as
//! [`Input::Tick`].
//!
//! Must not know: threads, sockets, clocks, guest memory.

use crate::event::Event;
use crate::request::{Nanos, Outcome, Request, RequestId};

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A request was taken from a queue. The core answers with exactly one of
    /// [`Action::Submit`], [`Action::Park`] or [`Action::Fail`] for it.
    Arrive(Request<'a>),
    /// Storage finished a request; it is about to be completed to the guest.
    Complete {
        /// Which.
        id: RequestId,
        /// How.
        outcome: Outcome,
        /// When storage was given the request, if the device layer took the time. Without it a
        /// parked request counts as submitted in the step that let it go, which leaves the
        /// hand-over to the queue thread out of the achieved latency.
        submitted: Option<Nanos>,
    },
    /// The agent in the guest passed a named mark (`agent:NAME` in rules).
    AgentMark {
        /// Name of the mark.
        name: &'a str,
        /// Time in the guest, CLOCK_MONOTONIC in nanoseconds.
        guest_ns: u64,
    },
    /// The operator opened a gate by name (`racegate ctl release`), or all of them.
    Release {
        /// Name of the rule whose held requests are let go; every rule if `None`.
        rule: Option<&'a str>,
    },
    /// The operator armed or disarmed a rule.
    Arm {
        /// Name of the rule.
        rule: &'a str,
        /// Armed or not.
        armed: bool,
    },
    /// The time of `Core::next_due()` has come.
    Tick,
    /// The front-end went away, or the backend shuts down: nothing stays parked.
    Disconnect,
}

/// What the device layer has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Hand the request to storage now. For a parked request: its time has come.
    Submit(RequestId),
    /// Keep the request; a later [`Action::Submit`] or [`Action::Fail`] names it.
    Park(RequestId),
    /// Complete the request with an error, without touching storage.
    Fail {
        /// Which.
        id: RequestId,
        /// The errno of the rule; the device maps it to a virtio status.
        errno: i32,
    },
    /// Tell the agent in the guest that something happened here (rules with `tell_agent`).
    TellAgent {
        /// `held:RULE` or `released:RULE`.
        signal: String,
    },
    /// [`Core::next_due`](crate::Core::next_due) changed: set the timer anew.
    Rearm {
        /// The timer must fire at this time; `None`: nothing is waiting.
        due: Option<Nanos>,
    },
}

/// What a step leaves behind. The caller keeps one, hands it to every step, and clears it once
/// it has carried out the actions; its memory is reused.
#[derive(Debug, Default)]
pub struct Outbox {
    /// What to do, in this order.
    pub actions: Vec<Action>,
    /// What to write to the log and to subscribers; empty unless logging is on.
    pub events: Vec<Event>,
    /// [`Core::filter`](crate::Core::filter) returns another filter than before the step.
    pub filter_changed: bool,
}

impl Outbox {
    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.actions.clear();
        self.events.clear();
        self.filter_changed = false;
    }
}
