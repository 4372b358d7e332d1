//! One trial on one clock: what each guest thread and the device did, in microseconds.
//!
//! In: the steps of the guest, the events of the device, the map between their clocks.
//! Out: a [`Timeline`], which prints itself as columns.
//! Must not know: plans, rules, QEMU.

mod span;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use agent::wire::TrialResult;
use pipeline::event::{Cause, HomeRecord, SpanRecord, Verdict};
use pipeline::{Event, Op, RequestId, What};
use serde::{Deserialize, Serialize};

pub(crate) use span::PROBES;
pub use span::{Kind, Parked, Span};

use crate::link::ClockMap;
use span::Window;

/// A step shorter than this is one line, with its duration.
const SHORT_NS: u64 = 100_000;

/// Operations that only bring threads together; they would hide what matters.
const SCAFFOLD: [&str; 2] = ["barrier ", "signal "];

/// The column of the device.
const DEVICE: &str = "device";

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Microseconds since the first line.
    pub at_us: i64,
    /// A thread of the workload, or `device`.
    pub column: String,
    /// What happened.
    pub text: String,
}

/// What happened in a trial while its threads ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// In the order of time.
    pub entries: Vec<Entry>,
    /// Guest times are at most this far off the device's, in microseconds.
    pub error_us: u64,
    /// The same as bars. Empty in results of an older racegate.
    #[serde(default)]
    pub spans: Vec<Span>,
}

impl Timeline {
    /// Puts together what `threads` did and which requests a rule touched meanwhile.
    pub fn new(
        threads: impl Iterator<Item = String>,
        result: &TrialResult,
        events: &[Event],
        clock: ClockMap,
    ) -> Timeline {
        let mut columns: Vec<String> = threads.collect();
        let mut entries: Vec<(i64, String, String)> = Vec::new();
        let shown = |op: &str| !SCAFFOLD.iter().any(|prefix| op.starts_with(prefix));
        let steps = result.steps.iter();
        for step in steps.filter(|step| columns.contains(&step.thread) && shown(&step.op)) {
            let thread = &step.thread;
            let (begin, end) = (clock.to_device(step.begin_ns), clock.to_device(step.end_ns));
            let failed = step.errno.map_or_else(String::new, |errno| format!(", errno {errno}"));
            let took = step.end_ns.saturating_sub(step.begin_ns);
            if took < SHORT_NS {
                let text = format!("{} ({} us{failed})", step.op, took / 1000);
                entries.push((begin, thread.clone(), text));
            } else {
                entries.push((begin, thread.clone(), format!("{} ...", step.op)));
                let text = format!("... done after {} us{failed}", took / 1000);
                entries.push((end, thread.clone(), text));
            }
        }
        let first = entries.iter().map(|(at, ..)| *at).min();
        let last = entries.iter().map(|(at, ..)| *at).max();
        if let (Some(first), Some(last)) = (first, last) {
            let device = device(events);
            let meanwhile = device.into_iter().filter(|(at, _)| (first..=last).contains(at));
            entries.extend(meanwhile.map(|(at, text)| (at, DEVICE.to_owned(), text)));
        }
        entries.sort_by_key(|(at, ..)| *at);
        let spans = match (first, last) {
            (Some(first_ns), Some(last_ns)) => {
                let window = Window { first_ns, last_ns };
                let steps = result.steps.iter();
                let steps = steps.filter(|step| columns.contains(&step.thread) && shown(&step.op));
                let mut spans = span::operations(steps, clock, window);
                spans.extend(span::kernel(events, &columns, clock, window));
                spans.extend(span::device(events, DEVICE, window));
                spans
            }
            _ => Vec::new(),
        };
        let first = first.unwrap_or_default();
        columns.push(DEVICE.to_owned());
        Timeline {
            columns,
            entries: entries
                .into_iter()
                .map(|(at, column, text)| Entry {
                    at_us: at.saturating_sub(first) / 1000,
                    column,
                    text,
                })
                .collect(),
            error_us: clock.error_ns.div_ceil(1000),
            spans,
        }
    }
}

fn request_text(op: Op, sector: u64, sectors: u64, classes: &[SpanRecord]) -> String {
    format!("{} {} at {sector}+{sectors}", op.name(), touches(classes))
}

/// What the device did with requests that a rule fired on, and what it told the agent.
fn device(events: &[Event]) -> Vec<(i64, String)> {
    let mut seen: BTreeMap<RequestId, String> = BTreeMap::new();
    let mut touched: BTreeMap<RequestId, String> = BTreeMap::new();
    let mut lines = Vec::new();
    for event in events {
        let at = event.at.0.cast_signed();
        match &event.what {
            What::Request { id, op, sector, sectors, classes, .. } => {
                seen.insert(*id, request_text(*op, *sector, *sectors, classes));
            }
            What::Decision { id, rule, verdict, .. } => {
                let request = seen.remove(id).unwrap_or_else(|| format!("request {}", id.0));
                lines.push((at, format!("{request}: {rule}, {}", does(verdict))));
                touched.insert(*id, request);
            }
            What::Released { id, rule, cause, waited_ns, .. } if touched.contains_key(id) => {
                let us = waited_ns / 1000;
                lines.push((at, format!("{rule} lets go after {us} us ({})", why(cause))));
            }
            What::Complete { id, .. } if touched.remove(id).is_some() => {
                lines.push((at, "completed to the guest".to_owned()));
            }
            What::AgentMark { name, .. } => lines.push((at, format!("agent:{name} arrives"))),
            What::ToldAgent { signal } => lines.push((at, format!("tells the agent {signal}"))),
            _ => {}
        }
    }
    lines
}

/// Most classes of one request that are named.
const MOST_CLASSES: usize = 3;

/// What a request touches, in few words.
fn touches(spans: &[SpanRecord]) -> String {
    let mut names: Vec<String> = Vec::new();
    for span in spans {
        let name = match &span.class.of {
            Some(of) => format!("{} of {}", span.class.home.class.name(), home(of)),
            None => home(&span.class.home),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.len() > MOST_CLASSES {
        let more = names.len() - MOST_CLASSES;
        names.truncate(MOST_CLASSES);
        names.push(format!("{more} more"));
    }
    names.join(", ")
}

fn home(home: &HomeRecord) -> String {
    let name = home.class.name();
    match (home.group, home.inode) {
        (Some(group), _) => format!("{name} {group}"),
        (None, Some(inode)) => format!("{name} of inode {inode}"),
        (None, None) => name.to_owned(),
    }
}

fn does(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Pass => "passes".to_owned(),
        Verdict::Delay { ns } => format!("delays by {} us", ns / 1000),
        Verdict::Hold { until, at_most_ns } => {
            format!("holds until {until}, at most {} us", at_most_ns / 1000)
        }
        Verdict::Fail { errno } => format!("fails with errno {errno}"),
    }
}

fn why(cause: &Cause) -> String {
    match cause {
        Cause::Due => "time is up".to_owned(),
        Cause::Limit => "at_most reached".to_owned(),
        Cause::Agent(mark) => format!("agent:{mark}"),
        Cause::Rule(rule) => format!("rule:{rule}"),
        Cause::Requests(n) => format!("request {n}"),
        Cause::Control => "the operator".to_owned(),
        Cause::Reload => "other rules".to_owned(),
        Cause::Disconnect => "disconnect".to_owned(),
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: &String| {
            let texts = self.entries.iter().filter(|entry| entry.column == *column);
            let longest = texts.map(|entry| entry.text.chars().count()).max();
            longest.unwrap_or(0).max(column.chars().count())
        };
        let columns: Vec<(&String, usize)> = self.columns.iter().map(|c| (c, width(c))).collect();
        let mut line = format!("{:>9}", "us");
        for (column, width) in &columns {
            write!(line, "  {column:<width$}")?;
        }
        writeln!(f, "{}", line.trim_end())?;
        for entry in &self.entries {
            let mut line = format!("{:>9}", entry.at_us);
            for (column, width) in &columns {
                let text = if **column == entry.column { entry.text.as_str() } else { "" };
                write!(line, "  {text:<width$}")?;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        write!(f, "Guest times are within {} us of the device's clock.", self.error_us)
    }
}

#[cfg(test)]
mod tests;
