//! The rates of one interval, for people.
//!
//! In: [`Rates`]. Out: lines of text. Must not know: terminals.

use std::path::Path;

use pipeline::Latency;

use super::rates::{OpRates, Rates, RuleRates};
use crate::ctl::show::time;

/// The table, each line cut at `columns` characters.
pub(super) fn lines(rates: &Rates, socket: &Path, columns: usize) -> Vec<String> {
    let mut lines = vec![
        format!("racegate top {}, {:.2} s", socket.display(), rates.seconds),
        format!(
            "requests/s {}  MiB/s {}  in flight {}  parked {}  failed/s {}  refused/s {}  asked/s {}",
            rate(rates.requests_per_s),
            mib(rates.bytes_per_s),
            rates.in_flight,
            rates.parked,
            rate(rates.failed_per_s),
            rate(rates.refused_per_s),
            rate(rates.asked_per_s),
        ),
    ];
    if !rates.queues.is_empty() {
        lines.push(String::new());
        lines.push(heading("queue", "in flight", "parked"));
    }
    for queue in &rates.queues {
        let (flight, parked) = (queue.in_flight.to_string(), queue.parked.to_string());
        let mut name = queue.queue.to_string();
        for of in &queue.ops {
            lines.push(row(&name, of, &flight, &parked));
            name.clear();
        }
        if queue.ops.is_empty() && queue.in_flight > 0 {
            lines.push(format!("{name:<18} {:<12} {:>63} {parked:>8}", "", flight));
        }
    }
    if !rates.classes.is_empty() {
        lines.push(String::new());
        lines.push(heading("class", "", ""));
    }
    lines.extend(rates.classes.iter().map(|class| row(class.class.name(), &class.of, "", "")));
    if !rates.rules.is_empty() {
        lines.push(String::new());
        lines.push(format!(
            "{:<30} {:>11} {:>9} {:>8} {:>8} {:>10} {:>10} {:>10}",
            "rule", "matched/s", "fired/s", "fired", "parked", "asked p50", "held p50", "late p99"
        ));
    }
    lines.extend(rates.rules.iter().map(rule));
    for line in &mut lines {
        if let Some((end, _)) = line.char_indices().nth(columns) {
            line.truncate(end);
        }
        line.truncate(line.trim_end().len());
    }
    lines
}

fn heading(what: &str, flight: &str, parked: &str) -> String {
    format!(
        "{what:<18} {:<12} {:>11} {:>9} {:>8} {:>9} {:>9} {:>9} {flight:>9} {parked:>8}",
        "op", "requests/s", "MiB/s", "failed/s", "p50", "p99", "max"
    )
}

fn row(name: &str, of: &OpRates, flight: &str, parked: &str) -> String {
    let of_latency = |pick: fn(&Latency) -> u64| quantile(of.latency.as_ref(), pick);
    format!(
        "{name:<18} {:<12} {:>11} {:>9} {:>8} {:>9} {:>9} {:>9} {flight:>9} {parked:>8}",
        of.op.name(),
        rate(of.requests_per_s),
        mib(of.bytes_per_s),
        rate(of.failed_per_s),
        of_latency(|of| of.p50_ns),
        of_latency(|of| of.p99_ns),
        of_latency(|of| of.max_ns),
    )
}

fn rule(of: &RuleRates) -> String {
    let name = if of.armed { of.name.clone() } else { format!("{} (disarmed)", of.name) };
    format!(
        "{name:<30} {:>11} {:>9} {:>8} {:>8} {:>10} {:>10} {:>10}",
        rate(of.matched_per_s),
        rate(of.fired_per_s),
        of.fired,
        of.parked,
        quantile(of.requested.as_ref(), |of| of.p50_ns),
        quantile(of.achieved.as_ref(), |of| of.p50_ns),
        quantile(of.late.as_ref(), |of| of.p99_ns),
    )
}

fn quantile(of: Option<&Latency>, pick: fn(&Latency) -> u64) -> String {
    of.map_or_else(|| "-".to_owned(), |of| time(pick(of)))
}

/// Whole numbers where there are many.
fn rate(per_s: f64) -> String {
    if per_s == 0.0 || per_s >= 100.0 { format!("{per_s:.0}") } else { format!("{per_s:.1}") }
}

fn mib(bytes_per_s: f64) -> String {
    rate(bytes_per_s / f64::from(1 << 20))
}
