//! Statistics in Prometheus' text format (version 0.0.4).
//!
//! In: [`Stats`]. Out: text. Times are in seconds, as is the custom there.
//! Must not know: who asks, over what.

use std::fmt::Write;

use crate::core::{Latency, RuleStats, Stats};

mod traffic;

/// One number of a rule.
type Value = fn(&RuleStats) -> u64;
/// One histogram of a rule.
type Times = fn(&RuleStats) -> Option<&Latency>;

/// Everything that [`Stats`] has.
pub fn render(stats: &Stats) -> String {
    let mut out = String::new();
    one(
        &mut out,
        "racegate_requests_total",
        "counter",
        "Requests that rules were asked about.",
        stats.requests,
    );
    one(&mut out, "racegate_parked", "gauge", "Requests that are parked now.", stats.parked);
    one(
        &mut out,
        "racegate_crowded_total",
        "counter",
        "Requests that did not wait because too many did.",
        stats.crowded,
    );
    if let Some(traffic) = &stats.traffic {
        traffic::render(&mut out, traffic);
    }
    of_rules(&mut out, &stats.rules);
    if let Some(shadow) = &stats.shadow {
        one(
            &mut out,
            "racegate_shadow_findings_total",
            "counter",
            "What must not be on the disk.",
            shadow.findings,
        );
        one(
            &mut out,
            "racegate_shadow_commits_total",
            "counter",
            "Transactions that were checked.",
            shadow.commits,
        );
        one(
            &mut out,
            "racegate_shadow_heap_bytes",
            "gauge",
            "Memory of the shadow.",
            shadow.heap_bytes,
        );
    }
    out
}

fn of_rules(out: &mut String, rules: &[RuleStats]) {
    let values: [(&str, &str, &str, Value); 4] = [
        ("racegate_rule_armed", "gauge", "Whether the rule is armed.", |of| of.armed.into()),
        ("racegate_rule_matched_total", "counter", "Requests that matched.", |of| of.matched),
        ("racegate_rule_fired_total", "counter", "How often the rule fired.", |of| of.fired),
        ("racegate_rule_parked", "gauge", "Requests that the rule has parked.", |of| of.parked),
    ];
    if rules.is_empty() {
        return;
    }
    for (name, kind, help, value) in values {
        head(out, name, kind, help);
        for rule in rules {
            // Writing to a String does not fail; so below.
            let _ = writeln!(out, "{name}{{rule=\"{}\"}} {}", label(&rule.name), value(rule));
        }
    }
    let times: [(&str, &str, Times); 3] = [
        ("racegate_rule_requested_seconds", "Delays that the rule asked for.", |of| {
            of.requested.as_ref()
        }),
        ("racegate_rule_achieved_seconds", "From arrival to submission or failure.", |of| {
            of.achieved.as_ref()
        }),
        ("racegate_rule_late_seconds", "How much later than due.", |of| of.late.as_ref()),
    ];
    for (name, help, time) in times {
        if rules.iter().all(|rule| time(rule).is_none()) {
            continue;
        }
        head(out, name, "histogram", help);
        for rule in rules {
            if let Some(latency) = time(rule) {
                let bounds = latency.buckets.iter().map(|(bound_ns, _)| *bound_ns);
                histogram(out, name, &format!("rule=\"{}\"", label(&rule.name)), latency, bounds);
            }
        }
    }
}

/// `bounds_ns` rise, and are among those of the latency's buckets or between them.
fn histogram(
    out: &mut String,
    name: &str,
    labels: &str,
    latency: &Latency,
    bounds_ns: impl Iterator<Item = u64>,
) {
    let mut buckets = latency.buckets.iter().peekable();
    let mut below = 0;
    for bound_ns in bounds_ns {
        while let Some((_, count)) = buckets.next_if(|(end_ns, _)| *end_ns <= bound_ns) {
            below += count;
        }
        let bound = seconds(bound_ns);
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
    }
    let count = latency.count;
    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
    let sum = seconds(latency.mean_ns.saturating_mul(count));
    let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}");
    let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
}

fn one(out: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    head(out, name, kind, help);
    let _ = writeln!(out, "{name} {value}");
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// A label's value, escaped as the format asks for.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_parse::{Scrape, Value};

    use super::render;
    use crate::core::{Latency, RuleStats, Stats};

    fn parsed(stats: &Stats) -> Scrape {
        let lines = render(stats).lines().map(|line| Ok(line.to_owned())).collect::<Vec<_>>();
        Scrape::parse(lines.into_iter()).expect("Prometheus' format")
    }

    /// Goal: a parser that is not ours reads every value back.
    #[test]
    fn a_parser_reads_it_back() {
        let latency = Latency {
            count: 5,
            min_ns: 1_000,
            mean_ns: 2_000_000,
            p50_ns: 1_500,
            p90_ns: 1_500,
            p99_ns: 1_500,
            p999_ns: 1_500,
            max_ns: 9_000_000,
            buckets: vec![(1_000, 2), (2_000_000, 1), (16_000_000, 2)],
        };
        let rule = RuleStats {
            name: Arc::from("slow \"log\" \\ copies"),
            armed: true,
            matched: 7,
            fired: 5,
            parked: 1,
            requested: None,
            achieved: Some(latency),
            late: None,
        };
        let stats = Stats { requests: 70, parked: 1, rules: vec![rule], ..Stats::default() };
        let scrape = parsed(&stats);
        let value = |name: &str| {
            let sample = scrape.samples.iter().find(|sample| sample.metric == name);
            sample.unwrap_or_else(|| panic!("{name} is missing")).value.clone()
        };
        assert_eq!(value("racegate_requests_total"), Value::Counter(70.0));
        assert_eq!(value("racegate_parked"), Value::Gauge(1.0));
        assert_eq!(value("racegate_rule_fired_total"), Value::Counter(5.0));
        assert_eq!(value("racegate_rule_armed"), Value::Gauge(1.0));
        let Value::Histogram(buckets) = value("racegate_rule_achieved_seconds") else {
            panic!("no histogram");
        };
        let counts: Vec<(f64, f64)> = buckets.iter().map(|of| (of.less_than, of.count)).collect();
        let wanted = [(1e-6, 2.0), (2e-3, 3.0), (16e-3, 5.0), (f64::INFINITY, 5.0)];
        assert_eq!(counts, wanted);
    }

    #[test]
    fn nothing_to_tell() {
        assert_eq!(parsed(&Stats::default()).samples.len(), 3);
    }
}
