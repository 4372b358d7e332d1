//! The core: decides what becomes of each request.
//!
//! In: [`Input`]s with the time of each, in one order. Out: actions and events in an
//! [`Outbox`]. Must not know: threads, sockets, clocks, guest memory, how a class was found.
//!
//! The same seed, rules and inputs give the same outbox, always. A request that arrives is
//! answered at once (submit, fail or park); a parked one is let go exactly once, at the latest
//! when its time is over, at [`Input::Disconnect`], or when other rules are loaded. Within one
//! step requests are let go in the order of their due times for [`Input::Tick`], and in the
//! order of their arrival otherwise.

mod gates;
mod parked;
mod rule;
mod stats;

use std::sync::Arc;

pub use stats::{Latency, RuleStats, Stats, UnknownRule};

use parked::{Entry, Parked};
use rule::RuleState;

use crate::control::RuleInfo;
use crate::draw::Draw;
use crate::event::{Cause, Event, SCHEMA, Verdict, What};
use crate::filter::Filter;
use crate::nearest::nearest;
use crate::request::{Nanos, Request, RequestId};
use crate::rules::{RuleSet, Until, Wait};
use crate::step::{Action, Input, Outbox};

/// The most requests that are parked at a time; on more, rules fire without making them wait.
/// Far above what 16 queues of 1024 descriptors hold, it only bounds memory.
const PARKED_MAX: usize = 65_536;

/// Rules, what they have parked, and when it is due.
#[derive(Debug)]
pub struct Core {
    seed: u64,
    /// Number of the last event.
    seq: u64,
    /// How often something was told to the core.
    steps: u64,
    logging: bool,
    rules: RuleSet,
    /// One for each rule.
    states: Vec<RuleState>,
    parked: Parked,
    /// Requests that arrived since the start.
    requests: u64,
    /// Requests that rules would have made wait, but for [`PARKED_MAX`].
    crowded: u64,
    /// Requests that arrived since the rules were loaded.
    arrivals: u64,
    /// The next of these numbers that a trigger waits for; `u64::MAX` if none does.
    next_count: u64,
    filter: Arc<Filter>,
    /// The filter is out of date.
    filter_stale: bool,
    /// The filter wants every request because something counts them.
    count_all: bool,
    /// The due time that the device layer knows.
    told_due: Option<Nanos>,
    /// Requests to let go in this step; kept for its memory.
    leaving: Vec<RequestId>,
}

impl Core {
    /// A core without rules. Every random draw depends on `seed`.
    pub fn new(seed: u64) -> Core {
        Core {
            seed,
            seq: 0,
            steps: 0,
            logging: false,
            rules: RuleSet::default(),
            states: Vec::new(),
            parked: Parked::new(),
            requests: 0,
            crowded: 0,
            arrivals: 0,
            next_count: u64::MAX,
            filter: Arc::new(Filter::nothing()),
            filter_stale: false,
            count_all: false,
            told_due: None,
            leaving: Vec::new(),
        }
    }

    /// Replaces the rules. Whatever the old ones have parked is let go, and all counts start
    /// anew.
    pub fn load(&mut self, now: Nanos, rules: RuleSet, out: &mut Outbox) {
        if self.logging {
            self.note(now, What::Rules { rules: rules.text().clone() }, out);
        }
        self.let_go_all(now, &Cause::Reload, |_| true, out);
        self.parked.forget_released();
        self.states = rule::states(rules.text().seed.unwrap_or(self.seed), &rules);
        self.rules = rules;
        self.arrivals = 0;
        self.next_count = self.find_next_count();
        self.filter_stale = true;
        self.finish(out);
    }

    /// What the rules in force, and the log, can want; a new one after each step that sets
    /// [`Outbox::filter_changed`].
    pub fn filter(&self) -> Arc<Filter> {
        Arc::clone(&self.filter)
    }

    /// Takes in what happened. `now` must not go back from step to step.
    pub fn step(&mut self, now: Nanos, input: Input<'_>, out: &mut Outbox) {
        self.steps += 1;
        match input {
            Input::Arrive(request) => self.arrive(now, &request, out),
            Input::Complete { id, outcome, submitted } => {
                if self.logging {
                    self.note(now, What::Complete { id, outcome, submitted }, out);
                }
                if let Some(entry) = self.parked.complete(id) {
                    self.states[entry.rule].achieved(&entry, submitted);
                }
            }
            Input::AgentMark { name, guest_ns } => {
                if self.logging {
                    self.note(now, What::AgentMark { name: name.to_owned(), guest_ns }, out);
                }
                self.agent_mark(now, name, out);
            }
            Input::Release { rule } => {
                if self.logging {
                    self.note(now, What::Release { rule: rule.map(str::to_owned) }, out);
                }
                self.release(now, rule, out);
            }
            Input::Arm { rule, armed } => {
                if self.logging {
                    self.note(now, What::Arm { rule: rule.to_owned(), armed }, out);
                }
                if let Some(index) = self.index_of(rule) {
                    self.set_armed(now, index, armed, &Cause::Control, out);
                }
            }
            Input::Tick => self.tick(now, out),
            Input::Disconnect => {
                if self.logging {
                    self.note(now, What::Disconnect, out);
                }
                self.let_go_all(now, &Cause::Disconnect, |_| true, out);
                self.parked.forget_released();
            }
        }
        self.finish(out);
    }

    /// When [`Input::Tick`] is to come next; `None`: nothing waits for the time.
    pub fn next_due(&self) -> Option<Nanos> {
        self.parked.next_due()
    }

    /// Turns events on or off. While they are on the filter wants every request, so that the
    /// log is complete; look at [`Core::filter`] anew. Write [`Core::header`] to each sink first.
    pub fn set_logging(&mut self, on: bool) {
        self.logging = on;
        self.filter_stale = true;
        self.refresh_filter();
    }

    /// The first line for a sink that begins now.
    pub fn header(&self, now: Nanos) -> Event {
        let rules = self.rules.text().clone();
        let what =
            What::Log { schema: SCHEMA, seed: self.seed, from_start: self.steps == 0, rules };
        Event { seq: self.seq, at: now, what }
    }

    /// Puts an event of the device layer ([`What::Agent`], [`What::Layout`]) into the one order
    /// of events, if logging is on.
    pub fn note(&mut self, now: Nanos, what: What, out: &mut Outbox) {
        if self.logging {
            self.seq += 1;
            out.events.push(Event { seq: self.seq, at: now, what });
        }
    }

    /// The same for an event that costs something to make.
    pub fn note_with(&mut self, now: Nanos, what: impl FnOnce() -> What, out: &mut Outbox) {
        if self.logging {
            self.note(now, what(), out);
        }
    }

    /// Counts and latencies.
    pub fn stats(&self) -> Stats {
        Stats {
            requests: self.requests,
            parked: self.parked.waiting() as u64,
            crowded: self.crowded,
            rules: self.rule_stats().collect(),
            shadow: None,
            kernel: None,
            traffic: None,
        }
    }

    /// The rules in force, in words and with their counts.
    pub fn list(&self) -> Vec<RuleInfo> {
        let meanings = self.rules.meanings();
        self.rule_stats().zip(meanings).map(|(s, meaning)| RuleInfo::new(&s, meaning)).collect()
    }

    fn rule_stats(&self) -> impl Iterator<Item = RuleStats> {
        self.rules.rules.iter().zip(&self.states).map(|(rule, state)| state.stats(&rule.name))
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
        if self.index_of(name).is_some() {
            return Ok(());
        }
        let nearest = nearest(name, self.rules.names()).map(str::to_owned);
        Err(UnknownRule { name: name.to_owned(), nearest })
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        self.rules.rules.iter().position(|rule| &*rule.name == name)
    }

    fn arrive(&mut self, now: Nanos, request: &Request<'_>, out: &mut Outbox) {
        self.requests += 1;
        self.arrivals += 1;
        if self.logging {
            let Request { id, queue, head, op, sector, sectors, spans } = *request;
            let classes = spans.iter().map(|span| (*span).into()).collect();
            let what = What::Request { id, queue, head, op, sector, sectors, classes };
            self.note(now, what, out);
        }
        self.count_gates(now, out);
        match self.first_to_fire(request) {
            Some((index, draw)) => self.fire(now, request.id, index, draw, out),
            None => out.actions.push(Action::Submit(request.id)),
        }
    }

    /// Counts the request with every armed rule that matches it; the first that fires, and the
    /// draw that it may go on with.
    fn first_to_fire(&mut self, request: &Request<'_>) -> Option<(usize, Draw)> {
        let mut first = None;
        for (index, rule) in self.rules.rules.iter().enumerate() {
            let state = &mut self.states[index];
            if !state.armed || !rule.matches.takes(request) {
                continue;
            }
            state.matched += 1;
            state.matched_armed += 1;
            let when = &rule.matches.when;
            if first.is_none() && when.selects(state.matched_armed, state.fired_armed) {
                let mut draw = Draw::new(state.stream, state.matched);
                if when.probability >= 1.0 || draw.unit() < when.probability {
                    first = Some((index, draw));
                }
            }
        }
        first
    }

    fn fire(&mut self, now: Nanos, id: RequestId, index: usize, mut draw: Draw, out: &mut Outbox) {
        let rule = &self.rules.rules[index];
        let state = &mut self.states[index];
        state.fired += 1;
        state.fired_armed += 1;

        let fail = rule.action.fail.map(crate::Errno::number);
        let at_once = fail.map_or(Verdict::Pass, |errno| Verdict::Fail { errno });
        let (verdict, wait_ns, requests) = match &rule.action.wait {
            Wait::None => (at_once, 0, u64::MAX),
            _ if self.parked.waiting() >= PARKED_MAX => {
                self.crowded += 1;
                (at_once, 0, u64::MAX)
            }
            Wait::Delay(delay) => {
                let ns = delay.sample(&mut draw);
                state.requested(ns);
                (Verdict::Delay { ns }, ns, u64::MAX)
            }
            Wait::Hold { until, spelling, at_most_ns } => {
                let requests = match until {
                    Until::Requests(count) => self.arrivals.saturating_add(*count),
                    _ => u64::MAX,
                };
                let until = Arc::clone(spelling);
                (Verdict::Hold { until, at_most_ns: *at_most_ns }, *at_most_ns, requests)
            }
        };
        let parks = wait_ns > 0
            && self.parked.park(
                id,
                Entry {
                    rule: index,
                    order: self.requests,
                    arrived: now,
                    due: now.plus(wait_ns),
                    requests,
                    fail,
                    released: None,
                    ran_out: false,
                },
            );
        out.actions.push(match fail {
            _ if parks => Action::Park(id),
            Some(errno) => Action::Fail { id, errno },
            None => Action::Submit(id),
        });
        state.parked += u64::from(parks);
        let signal = rule
            .tell_agent
            .then(|| format!("{}:{}", if parks { "held" } else { "fired" }, rule.name));
        if self.logging {
            let (rule, matched) = (Arc::clone(&rule.name), state.matched);
            self.note(now, What::Decision { id, rule, matched, verdict }, out);
        }
        self.tell_agent(now, signal, out);
        self.fired_gates(now, index, out);
    }

    fn tell_agent(&mut self, now: Nanos, signal: Option<String>, out: &mut Outbox) {
        let Some(signal) = signal else { return };
        if self.logging {
            self.note(now, What::ToldAgent { signal: signal.clone() }, out);
        }
        out.actions.push(Action::TellAgent { signal });
    }

    /// Brings timer and filter up to date at the end of a step.
    fn finish(&mut self, out: &mut Outbox) {
        let due = self.parked.next_due();
        if due != self.told_due {
            self.told_due = due;
            out.actions.push(Action::Rearm { due });
        }
        let count_all = self.counts_all();
        if count_all != self.count_all {
            self.count_all = count_all;
            self.filter_stale = true;
        }
        if self.filter_stale {
            self.refresh_filter();
            out.filter_changed = true;
        }
    }

    fn refresh_filter(&mut self) {
        self.filter_stale = false;
        self.filter = Arc::new(if self.logging {
            Filter::logging()
        } else {
            let rules = || self.rules.rules.iter().zip(&self.states);
            let armed = || rules().filter(|(_, state)| state.armed).map(|(rule, _)| rule);
            Filter::new(armed, self.count_all)
        });
    }
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
