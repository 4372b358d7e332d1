//! One part of the visited set, with the part of the next layer that belongs to it.
//!
//! In: arrivals, in any order. Out: the next layer. States are numbered in order of their first
//! arrival, so a number at or above the first of the layer being filled means "new in this layer".

use std::collections::BTreeMap;

use super::{Lineage, Node, Part};
use crate::model::Step;
use crate::table::Table;

/// A transition into a state, as seen by the state.
#[derive(Clone, Copy)]
pub(super) struct Arrival {
    pub(super) key: u64,
    pub(super) parent: u64,
    pub(super) step: Step,
    pub(super) paths: u128,
    pub(super) sleep: u32,
    pub(super) last: Option<u8>,
    pub(super) preemptions: u32,
    /// Where the state lies in the list that comes with the arrivals.
    pub(super) state: u32,
}

/// What the table keeps with a state, in words of 64 bits.
struct Record<'a>(&'a mut [u64; 4]);

impl Record<'_> {
    /// The parent of the state and the step from there.
    fn origin(words: &[u64; 4]) -> (u64, Step) {
        let [thread, choice] = ((words[2] >> 32) as u16).to_be_bytes();
        (words[1], Step { thread, choice })
    }

    fn number(words: &[u64; 4]) -> u32 {
        words[2] as u32
    }

    /// Threads asleep at every visit so far.
    fn sleep(&self) -> u32 {
        self.0[3] as u32
    }

    fn set_sleep(&mut self, sleep: u32) {
        self.0[3] = u64::from(sleep);
    }

    fn set_origin(&mut self, number: u32, (parent, step): (u64, Step)) {
        let step = u16::from_be_bytes([step.thread, step.choice]);
        self.0[1] = parent;
        self.0[2] = u64::from(step) << 32 | u64::from(number);
    }
}

pub(super) struct Shard<S> {
    table: Table<4>,
    states: u32,
    /// Number of the first state of the layer being filled.
    first: u32,
    next: Part<S>,
    /// States of earlier layers that have to be visited again, because a thread that was asleep at
    /// all earlier visits is awake at this one.
    again: BTreeMap<u32, (Node<S>, Lineage)>,
    /// Whether a state was reached at two depths: then paths are not countable layer by layer.
    uneven: bool,
}

impl<S: Clone> Shard<S> {
    pub(super) fn new() -> Shard<S> {
        Shard {
            table: Table::new(),
            states: 0,
            first: 0,
            next: Part { nodes: Vec::new(), lineages: Vec::new() },
            again: BTreeMap::new(),
            uneven: false,
        }
    }

    pub(super) fn states(&self) -> u64 {
        u64::from(self.states)
    }

    pub(super) fn uneven(&self) -> bool {
        self.uneven
    }

    /// Whether the state was reached in an earlier layer than the one being filled.
    pub(super) fn known_before(&self, key: u64) -> bool {
        self.table.get(key).is_some_and(|words| Record::number(words) < self.first)
    }

    /// The parent of a state and the step that led from there.
    pub(super) fn origin(&self, key: u64) -> Option<(u64, Step)> {
        self.table.get(key).map(Record::origin)
    }

    /// Takes arrivals with their states; the number of those whose state was known.
    pub(super) fn arrive_all(&mut self, arrivals: &[Arrival], states: &[S]) -> u64 {
        for arrival in arrivals {
            self.table.prefetch(arrival.key);
        }
        arrivals.iter().map(|arrival| u64::from(self.arrive(arrival, states))).sum()
    }

    /// Takes one arrival; true if its state was known.
    pub(super) fn arrive(&mut self, arrival: &Arrival, states: &[S]) -> bool {
        let &Arrival { key, parent, step, paths, sleep, last, preemptions, state } = arrival;
        let node = || Node { state: states[state as usize].clone(), key, last, preemptions };
        let (words, new) = self.table.insert(key);
        let mut record = Record(words);
        if new {
            record.set_origin(self.states, (parent, step));
            record.set_sleep(sleep);
            self.states += 1;
            self.next.nodes.push(node());
            self.next.lineages.push(Lineage { paths, sleep, slept: u32::MAX });
            return false;
        }
        let number = Record::number(record.0);
        if number >= self.first {
            let lineage = &mut self.next.lineages[(number - self.first) as usize];
            lineage.paths = lineage.paths.saturating_add(paths);
            lineage.sleep &= sleep;
            record.set_sleep(lineage.sleep);
            let origin = Record::origin(record.0).min((parent, step));
            record.set_origin(number, origin);
            return true;
        }
        self.uneven = true;
        let slept = record.sleep();
        if slept & !sleep != 0 {
            let again = self.again.entry(number);
            let (_, lineage) =
                again.or_insert_with(|| (node(), Lineage { paths, sleep: slept, slept }));
            lineage.sleep &= sleep;
            record.set_sleep(lineage.sleep);
        }
        true
    }

    /// Ends the layer being filled and returns it.
    pub(super) fn close_layer(&mut self) -> Part<S> {
        self.first = self.states;
        let fresh = Part { nodes: Vec::new(), lineages: Vec::new() };
        let mut layer = std::mem::replace(&mut self.next, fresh);
        for (node, lineage) in std::mem::take(&mut self.again).into_values() {
            layer.nodes.push(node);
            layer.lineages.push(lineage);
        }
        layer
    }
}
