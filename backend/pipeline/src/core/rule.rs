//! The running state of a rule.
//!
//! In: what happens to it. Out: its counts and latencies. Must not know: other rules, events.

use std::sync::Arc;

use super::parked::Entry;
use super::stats::{Histograms, Latency, RuleStats};
use crate::draw;
use crate::request::Nanos;
use crate::rules::{RuleSet, Trigger, Until, Wait};

#[derive(Debug)]
pub(super) struct RuleState {
    /// Of its random draws.
    pub(super) stream: u64,
    pub(super) armed: bool,
    /// Requests matched while armed, since it was loaded.
    pub(super) matched: u64,
    pub(super) fired: u64,
    /// The same since it was last armed: what `nth`, `after`, `every` and `times` go by.
    pub(super) matched_armed: u64,
    pub(super) fired_armed: u64,
    /// Requests it has parked now.
    pub(super) parked: u64,
    /// Its firing arms or disarms a rule.
    pub(super) arms: bool,
    /// Its firing ends holds.
    pub(super) ends_holds: bool,
    /// For rules that make requests wait.
    histograms: Option<Box<Histograms>>,
}

/// The states in which the rules of a set begin.
pub(super) fn states(seed: u64, set: &RuleSet) -> Vec<RuleState> {
    let triggered_by = |index: usize, trigger: &Option<Trigger>| matches!(trigger, Some(Trigger::Rule(other)) if *other == index);
    let state = |(index, rule): (usize, &crate::rules::Rule)| RuleState {
        stream: draw::stream(seed, &rule.name),
        armed: rule.armed,
        matched: 0,
        fired: 0,
        matched_armed: 0,
        fired_armed: 0,
        parked: 0,
        arms: set.rules.iter().any(|other| {
            triggered_by(index, &other.arm_on) || triggered_by(index, &other.disarm_on)
        }),
        ends_holds: set.rules.iter().any(|other| {
            let Wait::Hold { until: Until::Rule(awaited), .. } = other.action.wait else {
                return false;
            };
            awaited == index
        }),
        histograms: match rule.action.wait {
            Wait::None => None,
            Wait::Delay(_) | Wait::Hold { .. } => Some(Box::default()),
        },
    };
    set.rules.iter().enumerate().map(state).collect()
}

impl RuleState {
    /// A delay of that length was asked for.
    pub(super) fn requested(&mut self, ns: u64) {
        if let Some(histograms) = &mut self.histograms {
            histograms.requested.saturating_record(ns);
        }
    }

    /// A request that the rule had parked was submitted (when, if it is known) or failed.
    pub(super) fn achieved(&mut self, entry: &Entry, submitted: Option<Nanos>) {
        let (Some(histograms), Some(released)) = (&mut self.histograms, entry.released) else {
            return;
        };
        // A time before the release is not the submission that the release led to.
        let submitted = submitted.filter(|time| *time >= released).unwrap_or(released);
        histograms.achieved.saturating_record(submitted.since(entry.arrived));
        if entry.ran_out {
            histograms.late.saturating_record(submitted.since(entry.due));
        }
    }

    pub(super) fn stats(&self, name: &Arc<str>) -> RuleStats {
        let latency = |of: fn(&Histograms) -> &hdrhistogram::Histogram<u32>| {
            self.histograms.as_ref().and_then(|histograms| Latency::of(of(histograms)))
        };
        RuleStats {
            name: Arc::clone(name),
            armed: self.armed,
            matched: self.matched,
            fired: self.fired,
            parked: self.parked,
            requested: latency(|h| &h.requested),
            achieved: latency(|h| &h.achieved),
            late: latency(|h| &h.late),
        }
    }
}
