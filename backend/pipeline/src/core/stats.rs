//! Counts and latencies of the core.
//!
//! In: histograms. Out: values that serialise. Must not know: who asks for them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Counts and latencies of a core.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Requests that arrived at the core, since the start.
    pub requests: u64,
    /// Requests parked now.
    pub parked: u64,
    /// Each rule, in their order.
    pub rules: Vec<RuleStats>,
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
    /// How many values lie above the bound before and up to this bound (nanoseconds); bounds
    /// double.
    pub buckets: Vec<(u64, u64)>,
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
