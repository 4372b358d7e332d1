//! Delays: what a rule asked for, and what the device gave.
//!
//! In: the events of a trial. Out: one [`Delayed`] for each request that was let go because its time
//! was up, and [`summaries`] of many.
//! Must not know: plans, guests, how a report looks.
//!
//! The time is the device's own: from the arrival of a request until it is handed to storage. What
//! storage takes after that is no part of it.

use std::collections::BTreeMap;

use pipeline::event::{Cause, Verdict};
use pipeline::{Event, RequestId, What};

/// Most requests of one trial that are noted: a rule for every read would fill the database.
const MOST_OF_A_TRIAL: usize = 64;

/// A request that a rule delayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delayed {
    /// The rule.
    pub rule: String,
    /// The delay it asked for, in nanoseconds.
    pub asked_ns: u64,
    /// The delay that was given, in nanoseconds.
    pub waited_ns: u64,
}

impl Delayed {
    /// How much longer than asked for it took, in nanoseconds; never less than 0.
    pub fn late_ns(&self) -> u64 {
        self.waited_ns.saturating_sub(self.asked_ns)
    }
}

/// The delays of one trial, in the order in which they ended.
pub fn of(events: &[Event]) -> Vec<Delayed> {
    let mut asked: BTreeMap<RequestId, u64> = BTreeMap::new();
    let mut delays = Vec::new();
    for event in events {
        match &event.what {
            What::Decision { id, verdict: Verdict::Delay { ns }, .. } => {
                asked.insert(*id, *ns);
            }
            What::Released { id, rule, cause: Cause::Due, waited_ns, .. } => {
                if let Some(asked_ns) = asked.remove(id) {
                    let rule = rule.to_string();
                    delays.push(Delayed { rule, asked_ns, waited_ns: *waited_ns });
                }
            }
            _ => {}
        }
        if delays.len() == MOST_OF_A_TRIAL {
            break;
        }
    }
    delays
}

/// Many delays of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The rule.
    pub rule: String,
    /// How many.
    pub count: usize,
    /// The median of what was asked for, in nanoseconds.
    pub asked_ns: u64,
    /// Median, 99th percentile and largest of how late they were, in nanoseconds.
    pub late_ns: [u64; 3],
}

/// One summary for each rule, by name.
pub fn summaries(delays: &[Delayed]) -> Vec<Summary> {
    let mut rules: BTreeMap<&str, Vec<&Delayed>> = BTreeMap::new();
    for delay in delays {
        rules.entry(&delay.rule).or_default().push(delay);
    }
    let summary = |(rule, of): (&str, Vec<&Delayed>)| {
        let sorted = |pick: fn(&Delayed) -> u64| {
            let mut all: Vec<u64> = of.iter().map(|delay| pick(delay)).collect();
            all.sort_unstable();
            all
        };
        let late = sorted(Delayed::late_ns);
        Summary {
            rule: rule.to_owned(),
            count: of.len(),
            asked_ns: quantile(&sorted(|delay| delay.asked_ns), 0.5),
            late_ns: [0.5, 0.99, 1.0].map(|share| quantile(&late, share)),
        }
    };
    rules.into_iter().map(summary).collect()
}

/// The smallest value that at least this share of all is not above; 0 of nothing.
fn quantile(sorted: &[u64], share: f64) -> u64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use pipeline::Nanos;

    use super::*;

    fn event(what: What) -> Event {
        Event { seq: 0, at: Nanos(0), what }
    }

    fn decision(id: u64, verdict: Verdict) -> Event {
        event(What::Decision { id: RequestId(id), rule: "r".into(), matched: 1, verdict })
    }

    fn released(id: u64, cause: Cause, waited_ns: u64) -> Event {
        let id = RequestId(id);
        event(What::Released { id, rule: "r".into(), cause, waited_ns, fail: None })
    }

    #[test]
    fn only_delays_that_ended_by_themselves_count() {
        let held = Verdict::Hold { until: "control".into(), at_most_ns: 9 };
        let events = [
            decision(1, Verdict::Delay { ns: 80 }),
            decision(2, Verdict::Delay { ns: 50 }),
            decision(3, held),
            released(1, Cause::Due, 83),
            released(2, Cause::Reload, 10),
            released(3, Cause::Due, 9),
            released(4, Cause::Due, 1),
        ];
        assert_eq!(of(&events), [Delayed { rule: "r".into(), asked_ns: 80, waited_ns: 83 }]);
    }

    #[test]
    fn a_trial_without_end_is_cut() {
        let endless = (0..1000)
            .flat_map(|id| [decision(id, Verdict::Delay { ns: 1 }), released(id, Cause::Due, 2)]);
        assert_eq!(of(&endless.collect::<Vec<_>>()).len(), MOST_OF_A_TRIAL);
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let delays: Vec<Delayed> = (1..=200)
            .map(|late| Delayed { rule: "r".into(), asked_ns: 100, waited_ns: 100 + late })
            .collect();
        let summary = &summaries(&delays)[0];
        assert_eq!((summary.count, summary.asked_ns), (200, 100));
        assert_eq!(summary.late_ns, [100, 198, 200]);
        assert_eq!(summaries(&[]), []);
    }
}
