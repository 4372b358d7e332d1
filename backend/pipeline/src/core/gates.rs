//! What ends holds and arms rules: time, marks of the agent, firings, counts, the operator.
//!
//! In: one occurrence. Out: requests let go, rules armed or disarmed, and their events.
//! Must not know: how a request matched.

use std::sync::Arc;

use super::Core;
use super::parked::Entry;
use crate::event::{Cause, What};
use crate::request::{Nanos, RequestId};
use crate::rules::{Trigger, Until, Wait};
use crate::step::{Action, Outbox};

impl Core {
    /// Lets go what is due.
    pub(super) fn tick(&mut self, now: Nanos, out: &mut Outbox) {
        let mut due = self.parked.first_due(now);
        if self.logging && due.is_some() {
            self.note(now, What::Tick, out);
        }
        while let Some(id) = due {
            self.let_go(now, id, None, out);
            due = self.parked.first_due(now);
        }
    }

    /// The agent passed a mark.
    pub(super) fn agent_mark(&mut self, now: Nanos, name: &str, out: &mut Outbox) {
        let waits = |until: &Until| matches!(until, Until::Agent(mark) if **mark == *name);
        let arms = |trigger: &Trigger| matches!(trigger, Trigger::Agent(mark) if **mark == *name);
        let known = |core: &Core| {
            core.rules.rules.iter().any(|rule| {
                rule.arm_on.as_ref().is_some_and(arms)
                    || rule.disarm_on.as_ref().is_some_and(arms)
                    || matches!(&rule.action.wait, Wait::Hold { until, .. } if waits(until))
            })
        };
        // Most marks only matter to the log.
        if known(self) {
            let cause = Cause::Agent(Arc::from(name));
            self.arm_by(now, &cause, arms, out);
            self.end_holds(now, &cause, waits, u64::MAX, out);
        }
    }

    /// A rule fired, on the latest request.
    pub(super) fn fired_gates(&mut self, now: Nanos, index: usize, out: &mut Outbox) {
        let (arms, ends_holds) = (self.states[index].arms, self.states[index].ends_holds);
        if !arms && !ends_holds {
            return;
        }
        let cause = Cause::Rule(Arc::clone(&self.rules.rules[index].name));
        if arms {
            self.arm_by(now, &cause, |trigger| *trigger == Trigger::Rule(index), out);
        }
        if ends_holds {
            // The request that it fired on does not let itself go.
            let latest = self.requests;
            self.end_holds(now, &cause, |until| *until == Until::Rule(index), latest, out);
        }
    }

    /// A request arrived: that may have been the one that something waits for.
    pub(super) fn count_gates(&mut self, now: Nanos, out: &mut Outbox) {
        let arrivals = self.arrivals;
        if arrivals == self.next_count {
            let cause = Cause::Requests(arrivals);
            self.arm_by(now, &cause, |trigger| *trigger == Trigger::Count(arrivals), out);
            self.next_count = self.find_next_count();
        }
        if self.parked.next_requests().is_some_and(|awaited| awaited <= arrivals) {
            let mut leaving = std::mem::take(&mut self.leaving);
            self.parked.find(&mut leaving, |entry| entry.requests <= arrivals);
            for id in leaving.drain(..) {
                self.let_go(now, id, Some(&Cause::Requests(arrivals)), out);
            }
            self.leaving = leaving;
        }
    }

    /// The operator lets go what a rule has parked, or what every rule has.
    pub(super) fn release(&mut self, now: Nanos, rule: Option<&str>, out: &mut Outbox) {
        match rule.map(|name| self.index_of(name)) {
            None => self.let_go_all(now, &Cause::Control, |_| true, out),
            Some(Some(index)) => {
                self.let_go_all(now, &Cause::Control, |entry| entry.rule == index, out);
            }
            Some(None) => {}
        }
    }

    /// Arms a rule, which starts its counts anew, or disarms it.
    pub(super) fn set_armed(
        &mut self,
        now: Nanos,
        index: usize,
        armed: bool,
        cause: &Cause,
        out: &mut Outbox,
    ) {
        let state = &mut self.states[index];
        self.filter_stale |= state.armed != armed;
        state.armed = armed;
        if armed {
            state.matched_armed = 0;
            state.fired_armed = 0;
        }
        if self.logging {
            let rule = Arc::clone(&self.rules.rules[index].name);
            self.note(now, What::Armed { rule, armed, cause: cause.clone() }, out);
        }
    }

    fn arm_by(
        &mut self,
        now: Nanos,
        cause: &Cause,
        wanted: impl Fn(&Trigger) -> bool,
        out: &mut Outbox,
    ) {
        for index in 0..self.states.len() {
            let rule = &self.rules.rules[index];
            let disarms = rule.disarm_on.as_ref().is_some_and(&wanted);
            if rule.arm_on.as_ref().is_some_and(&wanted) {
                self.set_armed(now, index, true, cause, out);
            } else if disarms {
                self.set_armed(now, index, false, cause, out);
            }
        }
    }

    /// Ends the holds that wait for this, of requests that arrived before the one with that
    /// number.
    fn end_holds(
        &mut self,
        now: Nanos,
        cause: &Cause,
        wanted: impl Fn(&Until) -> bool,
        before: u64,
        out: &mut Outbox,
    ) {
        let mut leaving = std::mem::take(&mut self.leaving);
        let rules = &self.rules.rules;
        self.parked.find(&mut leaving, |entry| {
            let waits = match &rules[entry.rule].action.wait {
                Wait::Hold { until, .. } => wanted(until),
                Wait::None | Wait::Delay(_) => false,
            };
            waits && entry.order < before
        });
        self.let_go_found(now, leaving, cause, out);
    }

    /// Lets go every waiting request that is wanted.
    pub(super) fn let_go_all(
        &mut self,
        now: Nanos,
        cause: &Cause,
        wanted: impl Fn(&Entry) -> bool,
        out: &mut Outbox,
    ) {
        let mut leaving = std::mem::take(&mut self.leaving);
        self.parked.find(&mut leaving, wanted);
        self.let_go_found(now, leaving, cause, out);
    }

    /// Lets requests go and takes the list's memory back.
    fn let_go_found(
        &mut self,
        now: Nanos,
        mut leaving: Vec<RequestId>,
        cause: &Cause,
        out: &mut Outbox,
    ) {
        for id in leaving.drain(..) {
            self.let_go(now, id, Some(cause), out);
        }
        self.leaving = leaving;
    }

    /// Lets a waiting request go; without a cause, because its time is over.
    fn let_go(&mut self, now: Nanos, id: RequestId, cause: Option<&Cause>, out: &mut Outbox) {
        let Some(entry) = self.parked.release(id, now, cause.is_none()) else {
            return;
        };
        let rule = &self.rules.rules[entry.rule];
        let state = &mut self.states[entry.rule];
        state.parked -= 1;
        out.actions.push(match entry.fail {
            Some(errno) => {
                state.achieved(&entry, None);
                Action::Fail { id, errno }
            }
            None => Action::Submit(id),
        });
        let signal = rule.tell_agent.then(|| format!("released:{}", rule.name));
        if self.logging {
            let cause = cause.cloned().unwrap_or(match rule.action.wait {
                Wait::Hold { .. } => Cause::Limit,
                Wait::Delay(_) | Wait::None => Cause::Due,
            });
            let rule = Arc::clone(&rule.name);
            let waited_ns = now.since(entry.arrived);
            self.note(now, What::Released { id, rule, cause, waited_ns, fail: entry.fail }, out);
        }
        self.tell_agent(now, signal, out);
    }

    /// The next number of arrivals that a trigger waits for; `u64::MAX` if none does.
    pub(super) fn find_next_count(&self) -> u64 {
        let rules = self.rules.rules.iter();
        let counts = rules.flat_map(|rule| [&rule.arm_on, &rule.disarm_on]).filter_map(|trigger| {
            match trigger {
                Some(Trigger::Count(count)) if *count > self.arrivals => Some(*count),
                _ => None,
            }
        });
        counts.min().unwrap_or(u64::MAX)
    }

    /// Whether every request must be seen because something counts them.
    pub(super) fn counts_all(&self) -> bool {
        self.next_count != u64::MAX
            || self.parked.next_requests().is_some()
            || self.rules.rules.iter().zip(&self.states).any(|(rule, state)| {
                let until = match &rule.action.wait {
                    Wait::Hold { until, .. } => until,
                    Wait::None | Wait::Delay(_) => return false,
                };
                state.armed && matches!(until, Until::Requests(_))
            })
    }
}
