//! What happened between two looks at the counters.
//!
//! In: two [`Stats`] and the time between them. Out: rates, which serialise.
//! Must not know: screens, sockets.

use std::time::Duration;

use ext4_layout::Kind;
use pipeline::traffic::{OpTraffic, Traffic};
use pipeline::{Latency, Op, RuleStats, Stats};
use serde::Serialize;

/// One interval. New keys may come; none of these is renamed.
#[derive(Debug, Serialize)]
pub(super) struct Rates {
    schema: u32,
    /// Length of the interval.
    pub(super) seconds: f64,
    /// Of all queues and operations, as all that follow.
    pub(super) requests_per_s: f64,
    pub(super) bytes_per_s: f64,
    pub(super) failed_per_s: f64,
    pub(super) refused_per_s: f64,
    /// Requests that rules, log or shadow were asked about.
    pub(super) asked_per_s: f64,
    /// Now, at the end of the interval.
    pub(super) in_flight: u64,
    pub(super) parked: u64,
    pub(super) queues: Vec<QueueRates>,
    pub(super) classes: Vec<ClassRates>,
    pub(super) rules: Vec<RuleRates>,
}

/// One queue.
#[derive(Debug, Serialize)]
pub(super) struct QueueRates {
    pub(super) queue: u16,
    pub(super) in_flight: u64,
    pub(super) parked: u64,
    pub(super) refused_per_s: f64,
    /// Returns to the driver: fewer than requests where they come together.
    pub(super) batches_per_s: f64,
    pub(super) ops: Vec<OpRates>,
}

/// One operation that has occurred, maybe not in this interval.
#[derive(Debug, Serialize)]
pub(super) struct OpRates {
    pub(super) op: Op,
    pub(super) requests_per_s: f64,
    pub(super) bytes_per_s: f64,
    pub(super) failed_per_s: f64,
    /// Of the requests of this interval, if there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latency: Option<Latency>,
}

/// One operation on one class.
#[derive(Debug, Serialize)]
pub(super) struct ClassRates {
    pub(super) class: Kind,
    #[serde(flatten)]
    pub(super) of: OpRates,
}

/// One rule.
#[derive(Debug, Serialize)]
pub(super) struct RuleRates {
    pub(super) name: String,
    pub(super) armed: bool,
    pub(super) parked: u64,
    /// Since the rule was loaded.
    pub(super) fired: u64,
    pub(super) matched_per_s: f64,
    pub(super) fired_per_s: f64,
    /// Since the rule was loaded, as those that follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) requested: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) achieved: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) late: Option<Latency>,
}

impl Rates {
    /// What happened from `before` to `now`.
    pub(super) fn between(before: &Stats, now: &Stats, time: Duration) -> Rates {
        let per_s = Per(time.as_secs_f64());
        let none = Traffic::default();
        let traffic = now.traffic.as_ref().unwrap_or(&none);
        let earlier = before.traffic.as_ref().unwrap_or(&none);
        let queues: Vec<QueueRates> = traffic
            .queues
            .iter()
            .map(|queue| {
                let old = earlier.queues.iter().find(|old| old.queue == queue.queue);
                QueueRates {
                    queue: queue.queue,
                    in_flight: queue.in_flight,
                    parked: queue.parked,
                    refused_per_s: per_s.of(queue.refused, old.map(|old| old.refused)),
                    batches_per_s: per_s.of(queue.batches, old.map(|old| old.batches)),
                    ops: queue
                        .ops
                        .iter()
                        .map(|of| {
                            let old = old.map_or(&[][..], |old| &old.ops);
                            per_s.op(of, old.iter().find(|old| old.op == of.op))
                        })
                        .collect(),
                }
            })
            .collect();
        let classes = traffic.classes.iter().map(|class| {
            let mut old = earlier.classes.iter();
            let old = old.find(|old| old.class == class.class && old.of.op == class.of.op);
            ClassRates { class: class.class, of: per_s.op(&class.of, old.map(|old| &old.of)) }
        });
        let ops = || queues.iter().flat_map(|queue| &queue.ops);
        Rates {
            schema: 1,
            seconds: time.as_secs_f64(),
            requests_per_s: ops().map(|of| of.requests_per_s).sum(),
            bytes_per_s: ops().map(|of| of.bytes_per_s).sum(),
            failed_per_s: ops().map(|of| of.failed_per_s).sum(),
            refused_per_s: queues.iter().map(|queue| queue.refused_per_s).sum(),
            asked_per_s: per_s.of(now.requests, Some(before.requests)),
            in_flight: queues.iter().map(|queue| queue.in_flight).sum(),
            parked: now.parked,
            classes: classes.collect(),
            rules: now.rules.iter().map(|rule| per_s.rule(rule, &before.rules)).collect(),
            queues,
        }
    }
}

/// Divides by the length of the interval, in seconds.
struct Per(f64);

impl Per {
    /// A counter that went back was started anew.
    fn of(&self, now: u64, before: Option<u64>) -> f64 {
        let before = before.filter(|before| *before <= now).unwrap_or(0);
        if self.0 > 0.0 { (now - before) as f64 / self.0 } else { 0.0 }
    }

    fn op(&self, now: &OpTraffic, before: Option<&OpTraffic>) -> OpRates {
        let since = now.since(before);
        OpRates {
            op: now.op,
            requests_per_s: self.of(since.requests, None),
            bytes_per_s: self.of(since.bytes, None),
            failed_per_s: self.of(since.failed, None),
            latency: since.latency,
        }
    }

    fn rule(&self, now: &RuleStats, before: &[RuleStats]) -> RuleRates {
        let old = before.iter().find(|old| old.name == now.name);
        RuleRates {
            name: now.name.to_string(),
            armed: now.armed,
            parked: now.parked,
            fired: now.fired,
            matched_per_s: self.of(now.matched, old.map(|old| old.matched)),
            fired_per_s: self.of(now.fired, old.map(|old| old.fired)),
            requested: now.requested.clone(),
            achieved: now.achieved.clone(),
            late: now.late.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pipeline::Stats;
    use pipeline::traffic::{BUCKETS, OpTraffic, QueueTraffic, Traffic, bucket_of, latency};

    use super::{Op, Rates};

    fn stats(requests: u64, ns: u64) -> Stats {
        let mut counts = [0; BUCKETS];
        counts[bucket_of(ns)] = requests;
        let latency = latency(&counts, requests * ns);
        let of = OpTraffic { op: Op::Write, requests, bytes: requests * 512, failed: 0, latency };
        let queue = QueueTraffic { queue: 1, in_flight: 3, ops: vec![of], ..Default::default() };
        let traffic = Some(Traffic { queues: vec![queue], classes: Vec::new() });
        Stats { requests, traffic, ..Stats::default() }
    }

    #[test]
    fn rates_are_differences_over_time() {
        let time = Duration::from_millis(500);
        let rates = Rates::between(&stats(100, 5_000), &stats(300, 5_000), time);
        let of = &rates.queues[0].ops[0];
        assert!(
            (of.requests_per_s - 400.0).abs() < 1e-6 && (rates.asked_per_s - 400.0).abs() < 1e-6
        );
        assert!((rates.bytes_per_s - 204_800.0).abs() < 1e-6);
        assert_eq!(of.latency.as_ref().map(|of| of.count), Some(200), "of this interval");
        assert_eq!((rates.in_flight, rates.queues[0].queue), (3, 1));
        // Nothing happened; the backend was started anew; it has no queues.
        let idle = Rates::between(&stats(300, 5_000), &stats(300, 5_000), time);
        assert!(idle.requests_per_s == 0.0 && idle.queues[0].ops[0].latency.is_none());
        assert!(Rates::between(&stats(300, 5_000), &stats(1, 5_000), time).asked_per_s > 0.0);
        let none = Rates::between(&Stats::default(), &Stats::default(), time);
        assert!(none.queues.is_empty() && none.requests_per_s == 0.0);
    }
}
