//! Answers and events for people.
//!
//! In: what the backend said. Out: lines of text. Must not know: sockets.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use ext4_layout::Written;
use pipeline::control::{Response, RuleInfo};
use pipeline::event::{Cause, ClassRecord, HomeRecord, Protection, SpanRecord, Verdict};
use pipeline::shadow::{ShadowStats, Survivors};
use pipeline::traffic::{OpTraffic, QueueTraffic, Traffic};
use pipeline::{Event, Latency, Stats, What};

/// Writes an answer.
pub(super) fn response(out: &mut impl Write, response: &Response) -> io::Result<()> {
    match response {
        Response::Done => writeln!(out, "done"),
        Response::Rules { rules, .. } if rules.is_empty() => writeln!(out, "no rules"),
        Response::Rules { file, rules } => {
            writeln!(out, "rules of {file}")?;
            rules.iter().try_for_each(|info| rule(out, info))
        }
        Response::Released { requests } => writeln!(out, "requests let go: {requests}"),
        Response::Stats(of) => stats(out, of),
        Response::Layout { ranges } => ranges.iter().try_for_each(|span| {
            let last = span.sector + span.sectors.saturating_sub(1);
            writeln!(out, "{:>12} {last:>12}  {}", span.sector, class(&span.class))
        }),
        Response::LayoutSummary { sectors } => sectors
            .iter()
            .try_for_each(|(kind, sectors)| writeln!(out, "{sectors:>12}  {}", kind.name())),
        Response::Error { message } => writeln!(out, "{message}"),
    }
}

fn rule(out: &mut impl Write, info: &RuleInfo) -> io::Result<()> {
    let RuleInfo { name, meaning, armed, matched, fired, parked } = info;
    let armed = if *armed { "armed" } else { "disarmed" };
    writeln!(out, "{name}: {armed}; matched {matched}, fired {fired}, parked {parked}")?;
    writeln!(out, "    {meaning}")
}

fn stats(out: &mut impl Write, stats: &Stats) -> io::Result<()> {
    writeln!(out, "requests seen {}, parked {}", stats.requests, stats.parked)?;
    if stats.crowded > 0 {
        writeln!(out, "not parked because too many were: {}", stats.crowded)?;
    }
    if let Some(shadow) = &stats.shadow {
        let ShadowStats { requests, commits, checked, unknown, findings, .. } = shadow;
        writeln!(
            out,
            "shadow: {findings} findings; {requests} requests, {commits} commits, {checked} things \
             checked, {unknown} unknown, {} KiB",
            shadow.heap_bytes / 1024
        )?;
        for (rule, count) in &shadow.rules {
            writeln!(out, "    {rule}: {count}")?;
        }
        let Survivors { certain, possible, replayed } = shadow.survivors;
        let tid = |tid: Option<u32>| tid.map_or_else(|| "none".to_owned(), |tid| tid.to_string());
        writeln!(
            out,
            "    after a power cut now: transaction {} for certain, {} at most, {replayed} blocks \
             replayed",
            tid(certain),
            tid(possible)
        )?;
    }
    if let Some(of) = &stats.traffic {
        traffic(out, of)?;
    }
    for rule in &stats.rules {
        let armed = if rule.armed { "armed" } else { "disarmed" };
        writeln!(
            out,
            "{}: {armed}; matched {}, fired {}, parked {}",
            rule.name, rule.matched, rule.fired, rule.parked
        )?;
        let latencies =
            [("requested", &rule.requested), ("achieved", &rule.achieved), ("late by", &rule.late)];
        for (name, latency) in latencies {
            if let Some(latency) = latency {
                writeln!(out, "    {name:<9}  {}", quantiles(latency))?;
            }
        }
    }
    Ok(())
}

fn traffic(out: &mut impl Write, traffic: &Traffic) -> io::Result<()> {
    for queue in &traffic.queues {
        let QueueTraffic { queue: number, in_flight, parked, refused, ops, .. } = queue;
        if *in_flight > 0 || *refused > 0 || !ops.is_empty() {
            writeln!(
                out,
                "queue {number}: in flight {in_flight}, parked {parked}, refused {refused}"
            )?;
        }
        ops.iter().try_for_each(|of| moved(out, of.op.name(), of))?;
    }
    for class in &traffic.classes {
        moved(out, &format!("{} {}", class.of.op.name(), class.class.name()), &class.of)?;
    }
    Ok(())
}

fn moved(out: &mut impl Write, name: &str, of: &OpTraffic) -> io::Result<()> {
    let OpTraffic { requests, bytes, failed, .. } = of;
    writeln!(out, "    {name}: {requests} requests, {} KiB, {failed} failed", bytes / 1024)?;
    of.latency.as_ref().map_or(Ok(()), |latency| writeln!(out, "      {}", quantiles(latency)))
}

fn quantiles(of: &Latency) -> String {
    format!(
        "min {:>9}  p50 {:>9}  p90 {:>9}  p99 {:>9}  max {:>9}  ({} values)",
        time(of.min_ns),
        time(of.p50_ns),
        time(of.p90_ns),
        time(of.p99_ns),
        time(of.max_ns),
        of.count
    )
}

/// Three or more significant digits, with the unit that suits.
pub(crate) fn time(ns: u64) -> String {
    format!("{:.2?}", Duration::from_nanos(ns))
}

fn class(class: &ClassRecord) -> String {
    let mut words = home(&class.home);
    if let Some(of) = &class.of {
        let _ = write!(words, " of {}", home(of));
    }
    if let Some(tid) = class.tid {
        let _ = write!(words, ", transaction {tid}");
    }
    words
}

fn home(home: &HomeRecord) -> String {
    let mut words = home.class.name().to_owned();
    let numbers = [
        ("group", home.group, None),
        ("inode", home.inode, None),
        ("inodes", home.first_inode, home.last_inode),
        ("depth", home.depth.map(u32::from), None),
        ("lblk", home.first_lblk, home.last_lblk.filter(|last| Some(*last) != home.first_lblk)),
    ];
    for (name, first, last) in numbers {
        let _ = match (first, last) {
            (Some(first), Some(last)) => write!(words, ", {name} {first} to {last}"),
            (Some(first), None) => write!(words, ", {name} {first}"),
            (None, _) => Ok(()),
        };
    }
    if home.backup == Some(true) {
        words += ", backup";
    }
    if let Some(state) = home.state {
        let state = match state {
            Written::Written => ", written",
            Written::Unwritten => ", unwritten",
        };
        words += state;
    }
    words
}

/// Writes an event.
pub(crate) fn event(out: &mut impl Write, event: &Event) -> io::Result<()> {
    let at = event.at.0 as f64 / 1e9;
    writeln!(out, "{at:>14.6} {:>7}  {}", event.seq, what(&event.what))
}

fn what(what: &What) -> String {
    match what {
        What::Log { seed, rules, .. } => {
            format!("events from here on; seed {seed}, rules of {:?}", rules.file)
        }
        What::Rules { rules } => format!("rules of {:?} loaded", rules.file),
        What::Request { id, queue, op, sector, sectors, classes, .. } => {
            let classes: Vec<String> =
                classes.iter().map(|span: &SpanRecord| class(&span.class)).collect();
            let (id, op) = (id.0, op.name());
            format!("#{id} queue {queue}: {op} {sector}+{sectors}  {}", classes.join("; "))
        }
        What::Decision { id, rule, matched, verdict } => {
            let verdict = match verdict {
                Verdict::Pass => "passes".to_owned(),
                Verdict::Delay { ns } => format!("delayed by {}", time(*ns)),
                Verdict::Hold { until, at_most_ns } => {
                    format!("held until {until}, at most {}", time(*at_most_ns))
                }
                Verdict::Fail { errno } => format!("fails with errno {errno}"),
            };
            format!("#{} {verdict} by {rule} (its match {matched})", id.0)
        }
        What::Released { id, rule, cause, waited_ns, fail } => {
            let end = if fail.is_some() { "failed" } else { "submitted" };
            let (waited, why) = (time(*waited_ns), because(cause));
            format!("#{} {end} after {waited} by {rule}: {why}", id.0)
        }
        What::Complete { id, outcome, .. } => format!("#{} complete: {outcome:?}", id.0),
        What::AgentMark { name, guest_ns } => {
            format!("agent passed {name} at {} (guest)", time(*guest_ns))
        }
        What::Release { rule } => {
            format!("operator lets go {}", rule.as_deref().unwrap_or("everything"))
        }
        What::Arm { rule, armed } => {
            format!("operator {} {rule}", if *armed { "arms" } else { "disarms" })
        }
        What::Tick => "timer".to_owned(),
        What::Disconnect => "front-end gone".to_owned(),
        What::Armed { rule, armed, cause } => {
            let armed = if *armed { "armed" } else { "disarmed" };
            format!("{rule} {armed}: {}", because(cause))
        }
        What::ToldAgent { signal } => format!("agent told {signal}"),
        What::Agent { message } => format!("agent: {message}"),
        What::Layout { change, detail, .. } => {
            format!("layout {change:?} {}", detail.as_deref().unwrap_or("")).to_lowercase()
        }
        What::Finding(finding) => format!("finding {finding}"),
        What::Bytes { id: Some(id), len, .. } => format!("#{} brings {len} bytes", id.0),
        What::Bytes { id: None, offset, len, .. } => {
            format!("{len} bytes read at byte {offset}")
        }
        What::FirstStore { offset, thread, name, vcpu, touches } => {
            let who = match (vcpu, name) {
                (Some(vcpu), _) => format!("CPU {vcpu}"),
                (None, Some(name)) => format!("{name} ({thread})"),
                (None, None) => format!("thread {thread}"),
            };
            let page = offset / 4096;
            format!("{who}: first store to page {page}, at byte {offset:#x}  {}", class(touches))
        }
        What::Protected { cause, stores } => {
            let cause = match cause {
                Protection::Mapped => "mapped",
                Protection::Flush => "flush",
                Protection::Interval => "interval",
                Protection::Control => "the operator said so",
            };
            format!("{cause}: all pages protected; {stores} first stores before")
        }
        What::Lost { events } => format!("{events} events lost: this reader was too slow"),
    }
}

fn because(cause: &Cause) -> String {
    match cause {
        Cause::Due => "its time is over".to_owned(),
        Cause::Limit => "its limit is reached".to_owned(),
        Cause::Agent(mark) => format!("agent passed {mark}"),
        Cause::Rule(rule) => format!("{rule} fired"),
        Cause::Requests(count) => format!("request {count} arrived"),
        Cause::Control => "the operator said so".to_owned(),
        Cause::Reload => "other rules were loaded".to_owned(),
        Cause::Disconnect => "the front-end is gone".to_owned(),
    }
}
