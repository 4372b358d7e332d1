//! The core: decides what becomes of each request.
//!
//! In: [`Input`]s with the time of each, in one order. Out: actions and events in an
//! [`Outbox`]. Must not know: threads, sockets, clocks, guest memory, how a class was found.
//!
//! The same seed, rules and inputs give the same outbox, always.

mod stats;

use std::sync::Arc;

pub use stats::{Latency, RuleStats, Stats, UnknownRule};

use crate::control::RuleInfo;
use crate::event::{Event, SCHEMA, What};
use crate::filter::Filter;
use crate::request::Nanos;
use crate::rules::RuleSet;
use crate::step::{Action, Input, Outbox};

/// Rules, what they have parked, and when it is due.
#[derive(Debug)]
pub struct Core {
    seed: u64,
    seq: u64,
    logging: bool,
    rules: RuleSet,
    filter: Arc<Filter>,
}

impl Core {
    /// A core without rules. Every random draw depends on `seed`.
    pub fn new(seed: u64) -> Core {
        Core {
            seed,
            seq: 0,
            logging: false,
            rules: RuleSet::default(),
            filter: Arc::new(Filter::nothing()),
        }
    }

    /// Replaces the rules. Whatever the old ones have parked is let go.
    pub fn load(&mut self, now: Nanos, rules: RuleSet, out: &mut Outbox) {
        self.rules = rules;
        out.filter_changed = true;
        let what = What::Rules {
            rules: self.rules.text().clone(),
        };
        self.note(now, what, out);
    }

    /// What the rules in force, and the log, can want; a new one after each step that sets
    /// [`Outbox::filter_changed`].
    pub fn filter(&self) -> Arc<Filter> {
        Arc::clone(&self.filter)
    }

    /// Takes in what happened.
    pub fn step(&mut self, now: Nanos, input: Input<'_>, out: &mut Outbox) {
        let _ = now;
        if let Input::Arrive(request) = input {
            out.actions.push(Action::Submit(request.id));
        }
    }

    /// When [`Input::Tick`] is to come next; `None`: nothing waits for the time.
    pub fn next_due(&self) -> Option<Nanos> {
        None
    }

    /// Turns events on or off. While they are on the filter wants every request, so that the
    /// log is complete; look at [`Core::filter`] anew. Write [`Core::header`] to each sink first.
    pub fn set_logging(&mut self, on: bool) {
        self.logging = on;
    }

    /// The first line for a sink that begins now.
    pub fn header(&self, now: Nanos) -> Event {
        let rules = self.rules.text().clone();
        let what = What::Log {
            schema: SCHEMA,
            seed: self.seed,
            from_start: self.seq == 0,
            rules,
        };
        Event {
            seq: self.seq,
            at: now,
            what,
        }
    }

    /// Puts an event of the device layer ([`What::Agent`], [`What::Layout`]) into the one order
    /// of events, if logging is on.
    pub fn note(&mut self, now: Nanos, what: What, out: &mut Outbox) {
        if self.logging {
            self.seq += 1;
            out.events.push(Event {
                seq: self.seq,
                at: now,
                what,
            });
        }
    }

    /// Counts and latencies.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// The rules in force, in words and with their counts.
    pub fn list(&self) -> Vec<RuleInfo> {
        Vec::new()
    }

    /// The rules in force.
    pub fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// Whether a rule has that name; the inputs that name a rule pass over unknown ones.
    ///
    /// # Errors
    /// No rule has it; the error names the nearest that there is.
    pub fn find_rule(&self, name: &str) -> Result<(), UnknownRule> {
        if self.rules.names().any(|known| known == name) {
            return Ok(());
        }
        Err(UnknownRule {
            name: name.to_owned(),
            nearest: None,
        })
    }
}
