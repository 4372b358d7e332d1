//! The metrics of queues and classes.
//!
//! In: [`Traffic`]. Out: text. Must not know: what else there is to tell.

use std::fmt::Write;

use super::{head, histogram};
use crate::traffic::{OpTraffic, QueueTraffic, Traffic};

/// One number of an operation.
type Value = fn(&OpTraffic) -> u64;
/// One number of a queue.
type OfQueue = fn(&QueueTraffic) -> u64;

/// Bounds of the histograms, powers of four from 2^10 ns (a microsecond) to 2^36 ns (a minute):
/// the same at any time, so that rates can be made of them.
fn bounds_ns() -> impl Iterator<Item = u64> {
    (10..=36).step_by(2).map(|exp| 1 << exp)
}

/// Everything that there is.
pub(super) fn render(out: &mut String, traffic: &Traffic) {
    let values: [(&str, &str, &str, OfQueue); 4] = [
        ("racegate_queue_in_flight", "gauge", "Requests in flight.", |of| of.in_flight),
        ("racegate_queue_parked", "gauge", "Operations that are parked.", |of| of.parked),
        ("racegate_queue_refused_total", "counter", "Requests that were no good.", |of| of.refused),
        ("racegate_queue_batches_total", "counter", "Returns to the driver.", |of| of.batches),
    ];
    for (name, kind, help, value) in values {
        head(out, name, kind, help);
        for of in &traffic.queues {
            // Writing to a String does not fail; so below.
            let _ = writeln!(out, "{name}{{queue=\"{}\"}} {}", of.queue, value(of));
        }
    }
    let queues: Vec<(String, &OpTraffic)> = traffic
        .queues
        .iter()
        .flat_map(|queue| queue.ops.iter().map(|of| (format!("queue=\"{}\"", queue.queue), of)))
        .collect();
    ops(out, "racegate_queue", "each queue", &queues);
    let classes: Vec<(String, &OpTraffic)> = traffic
        .classes
        .iter()
        .map(|class| (format!("class=\"{}\"", class.class.name()), &class.of))
        .collect();
    ops(out, "racegate_class", "each class that was looked at", &classes);
}

fn ops(out: &mut String, prefix: &str, of_what: &str, series: &[(String, &OpTraffic)]) {
    if series.is_empty() {
        return;
    }
    let values: [(&str, &str, Value); 3] = [
        ("requests_total", "Requests that ended", |of| of.requests),
        ("bytes_total", "Bytes of requests that ended well", |of| of.bytes),
        ("failed_total", "Requests that ended with an error", |of| of.failed),
    ];
    for (name, help, value) in values {
        let name = format!("{prefix}_{name}");
        head(out, &name, "counter", &format!("{help}, of {of_what}."));
        for (labels, of) in series {
            let _ = writeln!(out, "{name}{{{labels},op=\"{}\"}} {}", of.op.name(), value(of));
        }
    }
    let name = format!("{prefix}_latency_seconds");
    head(out, &name, "histogram", &format!("From ring to ring, of {of_what}."));
    for (labels, of) in series {
        if let Some(latency) = &of.latency {
            let labels = format!("{labels},op=\"{}\"", of.op.name());
            histogram(out, &name, &labels, latency, bounds_ns());
        }
    }
}

#[cfg(test)]
mod tests {
    use ext4_layout::Kind;
    use prometheus_parse::{Scrape, Value};

    use crate::prometheus::render;
    use crate::request::Op;
    use crate::traffic::{
        BUCKETS, ClassTraffic, OpTraffic, QueueTraffic, Traffic, bucket_of, latency,
    };
    use crate::{Stats, prometheus};

    /// Goal: a parser that is not ours reads queues and classes back, each with its labels.
    #[test]
    fn a_parser_reads_it_back() {
        let mut counts = [0; BUCKETS];
        counts[bucket_of(900)] = 2;
        counts[bucket_of(5_000)] = 3;
        let of = OpTraffic {
            op: Op::Read,
            requests: 5,
            bytes: 20_480,
            failed: 1,
            latency: latency(&counts, 16_800),
        };
        let queue = QueueTraffic {
            queue: 3,
            in_flight: 7,
            parked: 2,
            refused: 1,
            batches: 4,
            ops: vec![of.clone()],
        };
        let class = ClassTraffic { class: Kind::BlockBitmap, of };
        let traffic = Some(Traffic { queues: vec![queue], classes: vec![class] });
        let text = render(&Stats { traffic, ..Stats::default() });
        let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).expect("metrics");
        let find = |name: &str, label: (&str, &str)| {
            let mut found = scrape.samples.iter().filter(|sample| {
                sample.metric == name && sample.labels.get(label.0) == Some(label.1)
            });
            found.next().unwrap_or_else(|| panic!("no {name}: {text}")).value.clone()
        };
        assert_eq!(find("racegate_queue_parked", ("queue", "3")), Value::Gauge(2.0));
        assert_eq!(find("racegate_queue_requests_total", ("op", "read")), Value::Counter(5.0));
        let class = ("class", "block_bitmap");
        assert_eq!(find("racegate_class_bytes_total", class), Value::Counter(20_480.0));
        let Value::Histogram(buckets) = find("racegate_class_latency_seconds", class) else {
            panic!("no histogram: {text}");
        };
        let counts: Vec<f64> = buckets.iter().map(|bucket| bucket.count).collect();
        assert_eq!(counts.len(), 15, "the same bounds whatever occurred");
        assert_eq!(counts[..4], [2.0, 2.0, 5.0, 5.0]);
        assert!(!prometheus::render(&Stats::default()).contains("queue"));
    }
}
