//! Counts and latencies of the core.
//!
//! In: histograms. Out: values that serialise. Must not know: who asks for them.

use std::sync::Arc;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::delalloc_shadow::FollowerStats;
use crate::rules::LIMIT_NS;
use crate::shadow::ShadowStats;
use crate::traffic::Traffic;

/// Counts and latencies of a core.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Requests that arrived at the core, since the start.
    pub requests: u64,
    /// Requests parked now.
    pub parked: u64,
    /// Requests that a rule would have made wait if fewer had been waiting already.
    pub crowded: u64,
    /// Each rule, in their order.
    pub rules: Vec<RuleStats>,
    /// Counts of the shadow, if the disk has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowStats>,
    /// Counts of the delalloc shadow, if the guest's kernel is watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<FollowerStats>,
    /// What went through the disk's queues, if it has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

/// Counts and latencies of a rule, since it was loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleStats {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it is armed now.
    pub armed: bool,
    /// Requests that matched while it was armed.
    pub matched: u64,
    /// How often it fired.
    pub fired: u64,
    /// Requests that it has parked now.
    pub parked: u64,
    /// Delays that it asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested: Option<Latency>,
    /// From arrival to submission (or failure), for delays and holds that are over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub achieved: Option<Latency>,
    /// How much later than due it was, for what ran to the end of its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<Latency>,
}

/// A latency histogram, summed up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many values.
    pub count: u64,
    /// Smallest, nanoseconds (like all that follow).
    pub min_ns: u64,
    /// Mean.
    pub mean_ns: u64,
    /// Median.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// Largest.
    pub max_ns: u64,
    /// How many values lie above the bound before and up to this bound (nanoseconds). Bounds of a
    /// rule double; those of traffic are ranges of [`crate::traffic`]. Empty ranges are left out.
    pub buckets: Vec<(u64, u64)>,
}

impl Latency {
    /// `None` for a histogram without values.
    pub(super) fn of(histogram: &Histogram<u32>) -> Option<Latency> {
        if histogram.is_empty() {
            return None;
        }
        let buckets = histogram
            .iter_log(1_000, 2.0)
            .map(|step| (step.value_iterated_to(), step.count_since_last_iteration()))
            .filter(|(_, count)| *count > 0)
            .collect();
        Some(Latency {
            count: histogram.len(),
            min_ns: histogram.min(),
            mean_ns: histogram.mean() as u64,
            p50_ns: histogram.value_at_quantile(0.5),
            p90_ns: histogram.value_at_quantile(0.9),
            p99_ns: histogram.value_at_quantile(0.99),
            p999_ns: histogram.value_at_quantile(0.999),
            max_ns: histogram.max(),
            buckets,
        })
    }
}

/// The latencies of a rule, nanoseconds, within one in a thousand; all of their memory is
/// allocated when the rule is loaded (about 80 KiB each).
#[derive(Debug)]
pub(super) struct Histograms {
    /// Delays that the rule asked for.
    pub(super) requested: Histogram<u32>,
    /// From arrival to submission or failure.
    pub(super) achieved: Histogram<u32>,
    /// From due to submission or failure.
    pub(super) late: Histogram<u32>,
}

impl Default for Histograms {
    fn default() -> Histograms {
        // From 1 us (below, steps of about that) to twice the longest wait; OK to unwrap: the
        // bounds are constants that `new_with_bounds` allows, and a test builds one.
        let histogram =
            || Histogram::new_with_bounds(1_000, 2 * LIMIT_NS, 3).expect("constant bounds");
        Histograms { requested: histogram(), achieved: histogram(), late: histogram() }
    }
}

/// No rule has that name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no rule is named `{name}`{}", crate::nearest::hint(.nearest.as_deref()))]
pub struct UnknownRule {
    /// The name.
    pub name: String,
    /// The most similar name that there is.
    pub nearest: Option<String>,
}
