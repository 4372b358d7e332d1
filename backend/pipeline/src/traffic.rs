//! Traffic: how much went through the queues of a disk, and how long it took.
//!
//! In: counts of whoever serves the queues. Out: values that serialise.
//! Must not know: how they are counted, who asks for them.

use ext4_layout::Kind;
use serde::{Deserialize, Serialize};

use crate::core::Latency;
use crate::request::Op;

/// Steps between one power of two and the next.
const STEPS: u64 = 4;
/// Times below 2^8 ns are not told apart.
const FIRST_EXP: u32 = 8;
/// Nor are those above 2^36 ns, about a minute.
const LAST_EXP: u32 = 36;

/// How many ranges of times there are.
pub const BUCKETS: usize = ((LAST_EXP - FIRST_EXP) as u64 * STEPS) as usize + 2;

/// The range that a time belongs to, less than [`BUCKETS`]. A range is a quarter of its lower
/// bound wide, or less.
#[inline]
pub const fn bucket_of(ns: u64) -> usize {
    if ns < 1 << FIRST_EXP {
        return 0;
    }
    let exp = ns.ilog2();
    if exp >= LAST_EXP {
        return BUCKETS - 1;
    }
    let step = (ns >> (exp - STEPS.ilog2())) - STEPS;
    ((exp - FIRST_EXP) as u64 * STEPS + step) as usize + 1
}

/// Where a range begins, in nanoseconds; it ends where the next begins.
pub const fn bucket_start(bucket: usize) -> u64 {
    match bucket.checked_sub(1) {
        None => 0,
        Some(index) => {
            let (exp, step) = (index as u64 / STEPS, index as u64 % STEPS);
            (STEPS + step) << (exp + (FIRST_EXP - STEPS.ilog2()) as u64)
        }
    }
}

/// Sums up times of which it is known how many lie in each range; `None` if there are none.
/// Percentiles are straight lines within a range.
pub fn latency(counts: &[u64; BUCKETS], sum_ns: u64) -> Option<Latency> {
    let count: u64 = counts.iter().sum();
    let first = counts.iter().position(|count| *count > 0)?;
    let last = counts.iter().rposition(|count| *count > 0)?;
    let at = |quantile: f64| {
        let wanted = quantile * count as f64;
        let mut below = 0.0;
        for (bucket, inside) in counts.iter().enumerate() {
            let inside = *inside as f64;
            if inside > 0.0 && below + inside >= wanted {
                let (from, to) = (bucket_start(bucket), bucket_start(bucket + 1));
                return from + ((to - from) as f64 * (wanted - below) / inside) as u64;
            }
            below += inside;
        }
        bucket_start(last + 1)
    };
    let buckets = counts.iter().enumerate().filter(|(_, count)| **count > 0);
    Some(Latency {
        count,
        min_ns: bucket_start(first),
        mean_ns: sum_ns / count,
        p50_ns: at(0.5),
        p90_ns: at(0.9),
        p99_ns: at(0.99),
        p999_ns: at(0.999),
        max_ns: bucket_start(last + 1),
        buckets: buckets.map(|(bucket, count)| (bucket_start(bucket + 1), *count)).collect(),
    })
}

/// The times that went into a [`latency`] since an `earlier` one of the same counts.
pub fn latency_since(now: &Latency, earlier: &Latency) -> Option<Latency> {
    let mut counts = [0; BUCKETS];
    let mut add = |of: &Latency, change: fn(u64, u64) -> u64| {
        for (end, count) in &of.buckets {
            // A bound is the first time of the next range.
            if let Some(at) = counts.get_mut(bucket_of(*end).wrapping_sub(1)) {
                *at = change(*at, *count);
            }
        }
    };
    add(now, u64::saturating_add);
    add(earlier, u64::saturating_sub);
    let sum = |of: &Latency| of.mean_ns.saturating_mul(of.count);
    latency(&counts, sum(now).saturating_sub(sum(earlier)))
}

/// What a disk's queues did since the program started, whoever was connected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Each queue, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<QueueTraffic>,
    /// What went to each class, all queues together: of requests whose classes were looked at,
    /// because a rule goes by them, or a log or shadow wants them. A request that touches several
    /// counts for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassTraffic>,
}

/// What one queue did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueTraffic {
    /// Virtqueue index.
    pub queue: u16,
    /// Requests that were taken from the ring and not returned yet, the parked ones included.
    pub in_flight: u64,
    /// Operations that are parked (a discard of several ranges is several).
    pub parked: u64,
    /// Requests that were answered without being carried out, because they were no good.
    pub refused: u64,
    /// How often requests were returned to the driver; several at a time where there were more.
    pub batches: u64,
    /// Each operation that occurred.
    pub ops: Vec<OpTraffic>,
}

/// What requests of one kind did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpTraffic {
    /// The operation.
    pub op: Op,
    /// Requests that ended, well or not.
    pub requests: u64,
    /// Bytes of those that ended well.
    pub bytes: u64,
    /// Requests that ended with an error.
    pub failed: u64,
    /// From being taken from the ring to being returned to the driver, waits included; the clock
    /// is read once a batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
}

/// What went to one class with one operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassTraffic {
    /// The class.
    pub class: Kind,
    /// What was done to it.
    #[serde(flatten)]
    pub of: OpTraffic,
}

impl Traffic {
    /// Requests that ended, on all queues.
    pub fn requests(&self) -> u64 {
        self.ops().map(|of| of.requests).sum()
    }

    /// The operations of all queues.
    pub fn ops(&self) -> impl Iterator<Item = &OpTraffic> {
        self.queues.iter().flat_map(|queue| &queue.ops)
    }
}

impl OpTraffic {
    /// What was done since an `earlier` look; all of it if there was none.
    #[must_use]
    pub fn since(&self, earlier: Option<&OpTraffic>) -> OpTraffic {
        let Some(earlier) = earlier else { return self.clone() };
        OpTraffic {
            op: self.op,
            requests: self.requests.saturating_sub(earlier.requests),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            failed: self.failed.saturating_sub(earlier.failed),
            latency: match (&self.latency, &earlier.latency) {
                (Some(now), Some(earlier)) => latency_since(now, earlier),
                (now, _) => now.clone(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BUCKETS, bucket_of, bucket_start, latency, latency_since};

    fn counts(times: &[u64]) -> [u64; BUCKETS] {
        let mut counts = [0; BUCKETS];
        for ns in times {
            counts[bucket_of(*ns)] += 1;
        }
        counts
    }

    /// Goal: each time is in the range that holds it, ranges follow each other and are narrow.
    #[test]
    fn ranges_tile_the_times() {
        for bucket in 1..BUCKETS - 1 {
            let (from, to) = (bucket_start(bucket), bucket_start(bucket + 1));
            assert!(from < to && to - from <= from / 4, "{bucket}: {from} to {to}");
            assert_eq!(bucket_of(from - 1), bucket - 1, "{bucket}");
            for ns in [from, from.midpoint(to), to - 1] {
                assert_eq!(bucket_of(ns), bucket, "{ns} ns");
            }
        }
        assert_eq!((bucket_of(0), bucket_of(u64::MAX)), (0, BUCKETS - 1));
        assert!(bucket_start(BUCKETS) > bucket_start(BUCKETS - 1));
    }

    #[test]
    fn percentiles_are_near_what_was_counted() {
        let times: Vec<u64> = (1..=1000).map(|n| n * 1_000).collect();
        let sum = times.iter().sum();
        let of = latency(&counts(&times), sum).expect("times");
        assert_eq!((of.count, of.mean_ns), (1000, 500_500));
        for (told, true_ns) in
            [(of.p50_ns, 500_000), (of.p90_ns, 900_000), (of.p99_ns, 990_000), (of.max_ns, 1 << 20)]
        {
            assert!(told.abs_diff(true_ns) <= true_ns / 20, "{told} for {true_ns}");
        }
        assert_eq!(of.buckets.iter().map(|(_, count)| count).sum::<u64>(), 1000);
        assert_eq!(latency(&[0; BUCKETS], 0), None);
    }

    #[test]
    fn what_came_since() {
        let before = latency(&counts(&[1_000, 1_000, 1_000]), 3_000).expect("times");
        let now =
            latency(&counts(&[1_000, 1_000, 1_000, 50_000, u64::MAX]), 53_000).expect("times");
        let since = latency_since(&now, &before).expect("times");
        assert_eq!((since.count, since.mean_ns), (2, 25_000));
        assert!(since.min_ns > 40_000);
        assert_eq!(latency_since(&now, &now), None);
    }
}
