//! The delalloc shadow on the device's clock, fed by the one stream of events.
//!
//! In: every event of a backend, live or from a log: what the agent says of its kernel, and which
//! requests are parked. Out: [`Finding`]s, each with a timeline of both sides.
//! Must not know: files, sockets, who reads findings.
//!
//! The agent's messages are read here as far as they are about the kernel (`hello`,
//! `trace_started`, `trace`). The guest is hostile: whatever it says costs bounded memory, and at
//! worst gives findings that are not true of its kernel.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::doubt::Doubt;
use super::finding::Actor;
use super::reorder::Reorder;
use super::{DelallocFinding, DelallocShadow};
use crate::event::{Event, SpanRecord, Verdict, What};
use crate::kernel::{KernelEvent, KernelLine, parse_line};
use crate::request::{Nanos, Op, RequestId};
use crate::shadow::{Finding, Moment};

/// Requests that a rule parked, the last ones.
const MOST_PARKED: usize = 64;
/// Parked requests that one finding names.
const MOST_NAMED: usize = 8;
/// A request that was let go that long before the first step of a story has no part in it.
const BEFORE_NS: i64 = 1_000_000;

/// A message of the agent, as far as it is about its kernel.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Message {
    Hello { kernel: String },
    TraceStarted { missing: Vec<String> },
    Trace { batch: u64, lines: Vec<String>, sent_ns: Option<u64> },
}

/// How much was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowerStats {
    /// Events of the probes.
    pub events: u64,
    /// Events that the kernel had no room for.
    pub lost: u64,
    /// How often everything, or an inode, became unknown.
    pub forgotten: u64,
    /// Rules that are checked.
    pub rules: Vec<String>,
}

/// A request that a rule has parked.
#[derive(Debug)]
struct Parked {
    id: RequestId,
    from: Nanos,
    /// When it was let go; `None`: not yet.
    to: Option<Nanos>,
    text: String,
}

/// Follows one guest after the other.
#[derive(Debug, Default)]
pub struct Follower {
    release: String,
    /// `None` while no kernel is watched.
    shadow: Option<DelallocShadow>,
    reorder: Reorder,
    batches: u64,
    lost: u64,
    /// Device time minus guest time, in nanoseconds: the least that was seen, of messages that
    /// take some time to arrive.
    offset_ns: Option<i64>,
    parked: VecDeque<Parked>,
    /// Findings that a loss may still take back.
    doubt: Doubt<Finding>,
    findings: Vec<Finding>,
}

impl Follower {
    /// One that follows nobody yet.
    pub fn new() -> Follower {
        Follower::default()
    }

    /// Takes in events that happened in one step, in their order.
    pub fn observe(&mut self, events: &[Event]) {
        for (place, event) in events.iter().enumerate() {
            match &event.what {
                What::Agent { message } => self.message(event.at, message),
                _ if self.shadow.is_none() => {}
                What::Decision {
                    id,
                    rule,
                    verdict: Verdict::Delay { .. } | Verdict::Hold { .. },
                    ..
                } => {
                    // The request stands before its decision, in the same step.
                    let request =
                        events[..place].iter().rev().find_map(|event| match &event.what {
                            What::Request { id: of, op, sector, sectors, classes, .. }
                                if of == id =>
                            {
                                Some(request_text(*op, *sector, *sectors, classes))
                            }
                            _ => None,
                        });
                    let request = request.unwrap_or_else(|| "a request".to_owned());
                    let text = format!("{request} is parked by {rule}");
                    self.park(Parked { id: *id, from: event.at, to: None, text });
                }
                What::Released { id, .. } => {
                    if let Some(parked) = self.parked.iter_mut().rev().find(|of| of.id == *id) {
                        parked.to = Some(event.at);
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether there are findings to be taken.
    pub fn has_findings(&self) -> bool {
        !self.findings.is_empty()
    }

    /// What was found since it was asked last.
    pub fn take_findings(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.findings)
    }

    /// How much was seen of the kernel that is watched, if one is.
    pub fn stats(&self) -> Option<FollowerStats> {
        let shadow = self.shadow.as_ref()?;
        Some(FollowerStats {
            events: shadow.events(),
            lost: self.lost,
            forgotten: shadow.forgotten(),
            rules: shadow.rules().map(|rule| rule.name().to_owned()).collect(),
        })
    }

    fn park(&mut self, parked: Parked) {
        if self.parked.len() == MOST_PARKED {
            // One that was let go tells least.
            let over = self.parked.iter().position(|of| of.to.is_some()).unwrap_or(0);
            self.parked.remove(over);
        }
        self.parked.push_back(parked);
    }

    fn message(&mut self, at: Nanos, message: &Value) {
        // Most of what an agent says is not about its kernel.
        if !matches!(message["kind"].as_str(), Some("hello" | "trace_started" | "trace")) {
            return;
        }
        match Message::deserialize(message) {
            Ok(Message::Hello { kernel }) => {
                *self = Follower { release: kernel, ..Follower::default() };
            }
            Ok(Message::TraceStarted { missing }) => {
                let mut shadow = DelallocShadow::new(&self.release);
                shadow.without(missing.iter().map(String::as_str));
                self.shadow = Some(shadow);
            }
            Ok(Message::Trace { batch, lines, sent_ns }) => self.batch(at, batch, &lines, sent_ns),
            Err(_) => {}
        }
    }

    fn batch(&mut self, at: Nanos, batch: u64, lines: &[String], sent_ns: Option<u64>) {
        let Some(shadow) = &mut self.shadow else {
            return;
        };
        if let Some(sent_ns) = sent_ns {
            let offset = at.0.cast_signed().wrapping_sub(sent_ns.cast_signed());
            self.offset_ns = Some(self.offset_ns.map_or(offset, |least| least.min(offset)));
        }
        // A batch that is missing may have said that something changed, or was lost.
        if batch != self.batches {
            shadow.lost();
            self.doubt.lost(None);
        }
        self.batches = batch.wrapping_add(1);
        for line in lines {
            match parse_line(line) {
                KernelLine::Event(event) => {
                    let (cpu, at_us) = (event.cpu, event.at_us);
                    if !self.reorder.push(event)
                        && let Some(shadow) = &mut self.shadow
                    {
                        // What came after it was judged without it.
                        shadow.lost();
                        self.doubt.since(at_us);
                    }
                    self.doubt.reached(cpu, at_us);
                    while let Some(event) = self.reorder.pop() {
                        self.step(&event);
                    }
                }
                KernelLine::Lost { cpu, events } => {
                    // What other processors did meanwhile was judged without them.
                    self.settle();
                    self.lost = self.lost.saturating_add(events);
                    self.doubt.lost(cpu);
                    if let Some(shadow) = &mut self.shadow {
                        shadow.lost();
                    }
                }
                KernelLine::Other => {}
            }
        }
        // An empty batch: the kernel's buffers were empty.
        let told = if lines.is_empty() {
            self.settle();
            self.doubt.settle()
        } else {
            self.doubt.certain()
        };
        self.findings.extend(told);
    }

    fn settle(&mut self) {
        while let Some(event) = self.reorder.pop_any() {
            self.step(&event);
        }
    }

    fn step(&mut self, event: &KernelEvent) {
        let Some(shadow) = &mut self.shadow else {
            return;
        };
        for found in shadow.step(event) {
            let finding = self.on_device_clock(&found);
            self.doubt.put(event.at_us, finding);
        }
    }

    fn at(&self, at_us: u64) -> Nanos {
        let guest_ns = at_us.saturating_mul(1000).cast_signed();
        let at = guest_ns.saturating_add(self.offset_ns.unwrap_or(0));
        Nanos(u64::try_from(at).unwrap_or(0))
    }

    fn on_device_clock(&self, found: &DelallocFinding) -> Finding {
        let what = format!("{}: {} is broken", name(&found.by), found.rule.name());
        let own = Moment { at: self.at(found.by.at_us), id: None, what };
        let mut timeline: Vec<Moment> = Vec::new();
        for actor in [found.against.as_ref(), Some(&found.by)].into_iter().flatten() {
            if let Some((operation, since_us)) = actor.operation {
                let what = format!("{} enters {operation}", name(actor));
                timeline.push(Moment { at: self.at(since_us), id: None, what });
            }
        }
        let story = found.story.iter().map(|(actor, what)| Moment {
            at: self.at(actor.at_us),
            id: None,
            what: format!("{}: {what}", name(actor)),
        });
        timeline.extend(story);
        timeline.dedup();
        let since = timeline.iter().map(|moment| moment.at).min().unwrap_or(own.at);
        let since = since.0.cast_signed().saturating_sub(BEFORE_NS);
        let meanwhile = self.parked.iter().filter(|parked| {
            let let_go_before = parked.to.is_some_and(|to| to.0.cast_signed() < since);
            parked.from <= own.at && !let_go_before
        });
        let meanwhile: Vec<&Parked> = meanwhile.collect();
        let named = &meanwhile[meanwhile.len().saturating_sub(MOST_NAMED)..];
        for Parked { id, from, to, text } in named {
            timeline.push(Moment { at: *from, id: Some(*id), what: text.clone() });
            if let Some(to) = to.filter(|to| *to <= own.at) {
                let what = "is let go".to_owned();
                timeline.push(Moment { at: to, id: Some(*id), what });
            }
        }
        timeline.sort_by_key(|moment| moment.at);
        timeline.push(own);
        let lblks = found.blocks.map(|(lblk, len)| (lblk, lblk.saturating_add(len.max(1) - 1)));
        Finding {
            rule: found.rule.name().to_owned(),
            inode: u32::try_from(found.ino).ok().filter(|ino| *ino != 0),
            lblks,
            expected: found.rule.statement().to_owned(),
            seen: match &found.against {
                Some(against) => {
                    format!("{}, by {} against {}", found.seen, name(&found.by), name(against))
                }
                None => format!("{}, by {}", found.seen, name(&found.by)),
            },
            requests: named.iter().map(|parked| parked.id).collect(),
            timeline,
            ..Finding::default()
        }
    }
}

fn name(actor: &Actor) -> String {
    match actor.operation {
        Some((operation, _)) => format!("{}-{} in {operation}", actor.thread, actor.tid),
        None => format!("{}-{}", actor.thread, actor.tid),
    }
}

/// A request in few words.
fn request_text(op: Op, sector: u64, sectors: u64, classes: &[SpanRecord]) -> String {
    let class = classes.first().map_or_else(String::new, |span| {
        let home = &span.class.home;
        let of = span.class.of.as_ref().map_or("", |of| of.class.name());
        match (of, home.group, home.inode) {
            ("", Some(group), _) => format!(" {} {group}", home.class.name()),
            ("", None, Some(inode)) => format!(" {} of inode {inode}", home.class.name()),
            ("", None, None) => format!(" {}", home.class.name()),
            (of, ..) => format!(" {} of {of}", home.class.name()),
        }
    });
    format!("{}{class} at {sector}+{sectors}", op.name())
}
