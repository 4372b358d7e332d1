//! A simulator of the rules that is too simple to be wrong in the way the core may be.
//!
//! In: rules as data (not parsed), inputs. Out: what happens to each request, step by step.
//! Lists and linear searches only: no filter, no heap, no hash map, no shared matching code.
//! Shared with the core: the random draws, which have tests of their own.

use ext4_layout::{Class, Home, Span};

use crate::draw::{self, Draw};
use crate::request::Op;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touched {
    Bitmap,
    Data,
    BitmapCopy,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Until {
    Control,
    Agent(u8),
    Rule(usize),
    Requests(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    Agent(u8),
    Rule(usize),
    Count(u64),
}

#[derive(Clone, Debug)]
pub(super) enum Wait {
    None,
    Fixed(u64),
    Uniform(u64, u64),
    Hold(Until, u64),
}

#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) op: Option<Op>,
    pub(super) touched: Option<Touched>,
    /// Group of a bitmap or of the bitmap that a copy is of, inode of data.
    pub(super) number: Option<u32>,
    pub(super) sectors: Option<(u64, u64)>,
    pub(super) nth: Option<u64>,
    pub(super) after: u64,
    pub(super) every: u64,
    pub(super) times: Option<u64>,
    /// In eighths.
    pub(super) probability: u8,
    pub(super) wait: Wait,
    pub(super) fail: bool,
    pub(super) tell: bool,
    pub(super) armed: bool,
    pub(super) arm_on: Option<Trigger>,
    pub(super) disarm_on: Option<Trigger>,
}

/// What the device is told to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Done {
    Submit(u64),
    Park(u64),
    Fail(u64),
    Tell(String),
}

struct Waiting {
    id: u64,
    rule: usize,
    due: u64,
    arrival: u64,
    fail: bool,
}

#[derive(Default, Clone)]
struct State {
    armed: bool,
    matched: u64,
    matched_armed: u64,
    fired_armed: u64,
}

pub(super) struct Oracle {
    seed: u64,
    rules: Vec<Rule>,
    states: Vec<State>,
    /// In the order of arrival.
    waiting: Vec<Waiting>,
    arrivals: u64,
    done: Vec<Done>,
}

pub(super) fn name(index: usize) -> String {
    format!("rule-{index}")
}

impl Rule {
    pub(super) fn takes(&self, op: Op, sector: u64, sectors: u64, spans: &[Span]) -> bool {
        let wanted_sectors = |first: u64, count: u64| match self.sectors {
            None => true,
            Some((from, to)) => (first..first + count).any(|s| from <= s && s <= to),
        };
        if self.op.is_some_and(|wanted| wanted != op) {
            return false;
        }
        if self.touched.is_none() {
            return wanted_sectors(sector, sectors);
        }
        spans.iter().any(|span| {
            let (touched, number) = match span.class {
                Class::Home(Home::BlockBitmap { group }) => (Touched::Bitmap, group),
                Class::Home(Home::FileData { inode, .. }) => (Touched::Data, inode),
                Class::JournalCopy { of: Home::BlockBitmap { group }, .. } => {
                    (Touched::BitmapCopy, group)
                }
                _ => return false,
            };
            self.touched == Some(touched)
                && self.number.is_none_or(|wanted| wanted == number)
                && wanted_sectors(span.first_sector, span.sectors)
        })
    }
}

impl Oracle {
    pub(super) fn new(seed: u64, rules: Vec<Rule>) -> Oracle {
        let states =
            rules.iter().map(|rule| State { armed: rule.armed, ..State::default() }).collect();
        Oracle { seed, rules, states, waiting: Vec::new(), arrivals: 0, done: Vec::new() }
    }

    /// What was done since the last call.
    pub(super) fn take(&mut self) -> Vec<Done> {
        std::mem::take(&mut self.done)
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        self.waiting.iter().map(|waiting| waiting.due).min()
    }

    pub(super) fn any_armed_takes(
        &self,
        op: Op,
        sector: u64,
        sectors: u64,
        spans: &[Span],
    ) -> bool {
        self.rules
            .iter()
            .zip(&self.states)
            .any(|(rule, state)| state.armed && rule.takes(op, sector, sectors, spans))
    }

    fn let_go(&mut self, wanted: impl Fn(&Waiting, &Rule) -> bool) {
        let mut rest = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            let rule = &self.rules[waiting.rule];
            if !wanted(&waiting, rule) {
                rest.push(waiting);
                continue;
            }
            let end = if waiting.fail { Done::Fail } else { Done::Submit };
            self.done.push(end(waiting.id));
            if rule.tell {
                self.done.push(Done::Tell(format!("released:{}", name(waiting.rule))));
            }
        }
        self.waiting = rest;
    }

    pub(super) fn arm(&mut self, index: usize, armed: bool) {
        self.states[index].armed = armed;
        if armed {
            self.states[index].matched_armed = 0;
            self.states[index].fired_armed = 0;
        }
    }

    fn trigger(&mut self, trigger: &Trigger) {
        for index in 0..self.rules.len() {
            if self.rules[index].arm_on.as_ref() == Some(trigger) {
                self.arm(index, true);
            } else if self.rules[index].disarm_on.as_ref() == Some(trigger) {
                self.arm(index, false);
            }
        }
    }

    pub(super) fn arrive(&mut self, now: u64, id: u64, op: Op, place: (u64, u64), spans: &[Span]) {
        self.arrivals += 1;
        let arrivals = self.arrivals;
        self.trigger(&Trigger::Count(arrivals));
        self.let_go(|waiting, rule| match rule.wait {
            Wait::Hold(Until::Requests(count), _) => waiting.arrival + count <= arrivals,
            _ => false,
        });

        let mut fires = None;
        for (index, rule) in self.rules.iter().enumerate() {
            let state = &mut self.states[index];
            if !state.armed || !rule.takes(op, place.0, place.1, spans) {
                continue;
            }
            state.matched += 1;
            state.matched_armed += 1;
            let number = state.matched_armed;
            let mut draw = Draw::new(draw::stream(self.seed, &name(index)), state.matched);
            let selected = rule.nth.is_none_or(|nth| nth == number)
                && number > rule.after
                && (number - rule.after) % rule.every == 1 % rule.every
                && rule.times.is_none_or(|times| state.fired_armed < times);
            let lucky = rule.probability == 8 || draw.unit() < f64::from(rule.probability) / 8.0;
            if fires.is_none() && selected && lucky {
                state.fired_armed += 1;
                fires = Some((index, draw));
            }
        }
        let Some((index, mut draw)) = fires else {
            self.done.push(Done::Submit(id));
            return;
        };
        let rule = self.rules[index].clone();
        let wait = match rule.wait {
            Wait::None => 0,
            Wait::Fixed(ns) | Wait::Hold(_, ns) => ns,
            Wait::Uniform(from, to) => from + draw.below(to - from + 1),
        };
        self.done.push(match (wait, rule.fail) {
            (0, true) => Done::Fail(id),
            (0, false) => Done::Submit(id),
            _ => Done::Park(id),
        });
        if rule.tell {
            let verb = if wait == 0 { "fired" } else { "held" };
            self.done.push(Done::Tell(format!("{verb}:{}", name(index))));
        }
        self.trigger(&Trigger::Rule(index));
        self.let_go(|_, rule| matches!(rule.wait, Wait::Hold(Until::Rule(of), _) if of == index));
        if wait > 0 {
            let (due, fail) = (now + wait, rule.fail);
            self.waiting.push(Waiting { id, rule: index, due, arrival: arrivals, fail });
        }
    }

    pub(super) fn tick(&mut self, now: u64) {
        while let Some(due) = self.next_due().filter(|due| *due <= now) {
            self.let_go(|waiting, _| waiting.due == due);
        }
    }

    pub(super) fn mark(&mut self, mark: u8) {
        self.trigger(&Trigger::Agent(mark));
        self.let_go(|_, rule| matches!(rule.wait, Wait::Hold(Until::Agent(m), _) if m == mark));
    }

    pub(super) fn release(&mut self, rule: Option<usize>) {
        self.let_go(|waiting, _| rule.is_none_or(|rule| rule == waiting.rule));
    }
}
