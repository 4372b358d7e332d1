//! The same trial as bars: what lasted from when to when, and in which lane it belongs.
//!
//! In: steps of the guest, events of the device. Out: [`Span`]s on the device's clock.
//! Must not know: how a picture is drawn.

use std::collections::BTreeMap;

use agent::wire::{Step, ToHost};
use pipeline::kernel::{KernelEvent, KernelLine, parse_line};
use pipeline::{Event, RequestId, What};
use serde::{Deserialize, Serialize};

use super::{does, request_text, why};
use crate::link::{self, ClockMap};

/// Most bars of one kind: a guest may do, and say, as much as it likes.
const MOST: usize = 200;

/// What a bar is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An operation of the workload.
    Operation,
    /// A function of the guest's kernel, from its probes.
    Function,
    /// A thread that waits for a lock, from the kernel's probes.
    Lock,
    /// A request at the device.
    Request,
    /// A moment: the agent says, or is told, something.
    Mark,
}

/// Something that lasted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// A thread of the workload; `device`; or the name of a lock.
    pub lane: String,
    /// What it is.
    pub kind: Kind,
    /// Microseconds since the first line of the timeline.
    pub begin_us: i64,
    /// The same; not before `begin_us`.
    pub end_us: i64,
    /// What happened.
    pub text: String,
    /// The part of a request during which a rule had it parked, and which rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<Parked>,
}

/// A rule had a request parked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// The rule, and what it does.
    pub by: String,
    /// Why it let go.
    pub until: String,
    /// Microseconds since the first line of the timeline.
    pub begin_us: i64,
    /// The same.
    pub end_us: i64,
}

/// From when to when the picture goes, in nanoseconds of the device's clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) first_ns: i64,
    pub(super) last_ns: i64,
}

impl Window {
    fn us(self, at_ns: i64) -> i64 {
        at_ns.saturating_sub(self.first_ns) / 1000
    }

    fn holds(self, at_ns: i64) -> bool {
        (self.first_ns..=self.last_ns).contains(&at_ns)
    }
}

/// The operations of the workload.
pub(super) fn operations<'a>(
    steps: impl Iterator<Item = &'a Step>,
    clock: ClockMap,
    window: Window,
) -> Vec<Span> {
    let span = |step: &Step| {
        let failed = step.errno.map_or_else(String::new, |errno| format!(" (errno {errno})"));
        let begin_us = window.us(clock.to_device(step.begin_ns));
        Span {
            lane: step.thread.clone(),
            kind: Kind::Operation,
            begin_us,
            end_us: window.us(clock.to_device(step.end_ns)).max(begin_us),
            text: format!("{}{failed}", step.op),
            parked: None,
        }
    };
    steps.take(MOST).map(span).collect()
}

/// A request that has been seen.
struct Seen {
    at_ns: i64,
    text: String,
    verdict: Option<String>,
    released: Option<(i64, String)>,
}

/// Requests, and moments at the device. Those that a rule touched come before the others, so that
/// the bound drops what matters least.
pub(super) fn device(events: &[Event], lane: &str, window: Window) -> Vec<Span> {
    let mut open: BTreeMap<RequestId, Seen> = BTreeMap::new();
    let mut spans: Vec<Span> = Vec::new();
    let close = |seen: Seen, end_ns: i64| {
        let (begin_us, end_us) = (window.us(seen.at_ns), window.us(end_ns));
        let parked = seen.verdict.map(|verdict| {
            let (until_ns, until) = seen.released.unwrap_or_else(|| (end_ns, "the end".to_owned()));
            Parked { by: verdict, until, begin_us, end_us: window.us(until_ns).max(begin_us) }
        });
        let (lane, text) = (lane.to_owned(), seen.text);
        Span { lane, kind: Kind::Request, begin_us, end_us: end_us.max(begin_us), text, parked }
    };
    for event in events {
        let at_ns = event.at.0.cast_signed();
        match &event.what {
            What::Request { id, op, sector, sectors, classes, .. } if window.holds(at_ns) => {
                let text = request_text(*op, *sector, *sectors, classes);
                open.insert(*id, Seen { at_ns, text, verdict: None, released: None });
            }
            What::Decision { id, rule, verdict, .. } => {
                if let Some(seen) = open.get_mut(id) {
                    seen.verdict = Some(format!("{rule}, {}", does(verdict)));
                }
            }
            What::Released { id, cause, .. } => {
                if let Some(seen) = open.get_mut(id) {
                    seen.released = Some((at_ns, why(cause)));
                }
            }
            What::Complete { id, .. } => {
                spans.extend(open.remove(id).map(|seen| close(seen, at_ns)));
            }
            What::AgentMark { name, .. } if window.holds(at_ns) => {
                spans.push(mark(lane, window.us(at_ns), format!("agent:{name} arrives")));
            }
            What::ToldAgent { signal } if window.holds(at_ns) => {
                spans.push(mark(lane, window.us(at_ns), format!("tells the agent {signal}")));
            }
            _ => {}
        }
    }
    spans.extend(open.into_values().map(|seen| close(seen, window.last_ns)));
    spans.sort_by_key(|span| (span.parked.is_none(), span.begin_us));
    spans.truncate(MOST);
    spans.sort_by_key(|span| span.begin_us);
    spans
}

fn mark(lane: &str, at_us: i64, text: String) -> Span {
    let lane = lane.to_owned();
    Span { lane, kind: Kind::Mark, begin_us: at_us, end_us: at_us, text, parked: None }
}

/// Probes of functions: the event at the entry, the one at the return, the function.
const FUNCTIONS: [(&str, &str, &str); 5] = [
    ("mkwrite", "mkwrite_end", "ext4_page_mkwrite"),
    ("fallocate", "fallocate_end", "ext4_fallocate"),
    ("write", "write_end", "ext4_file_write_iter"),
    ("writepages", "writepages_end", "ext4_writepages"),
    ("truncate", "truncate_end", "ext4_truncate"),
];

/// Probes of the slow paths of a semaphore, which only a thread that must wait takes.
const WAITS: [(&str, &str, &str); 2] =
    [("rwsem_write", "rwsem_write_end", "to write"), ("rwsem_read", "rwsem_read_end", "to read")];

/// Probes that only the picture needs; a kernel that lacks one shows less. The fields name
/// semaphores: the distance from one to the inode that it is in (`i_mode` comes first).
pub(crate) const PROBES: [&str; 4] = [
    "p:racegate/rwsem_write rwsem_down_write_slowpath sem=%di:x64 \
     i_data_sem=\\{ext4_inode_info.vfs_inode-ext4_inode_info.i_data_sem}:s64 \
     i_rwsem=\\{inode.i_mode-inode.i_rwsem}:s64",
    "r64:racegate/rwsem_write_end rwsem_down_write_slowpath",
    "p:racegate/rwsem_read rwsem_down_read_slowpath sem=%di:x64 \
     i_data_sem=\\{ext4_inode_info.vfs_inode-ext4_inode_info.i_data_sem}:s64 \
     i_rwsem=\\{inode.i_mode-inode.i_rwsem}:s64",
    "r64:racegate/rwsem_read_end rwsem_down_read_slowpath",
];

/// What the kernel's probes tell of `threads`: functions that they were in, locks that they waited
/// for. Nothing without a shadow.
pub(super) fn kernel(
    events: &[Event],
    threads: &[String],
    clock: ClockMap,
    window: Window,
) -> Vec<Span> {
    let mut inodes: BTreeMap<u64, u64> = BTreeMap::new();
    // By thread and event at the return: what began, and when.
    let mut open: BTreeMap<(u32, &'static str), (i64, KernelEvent)> = BTreeMap::new();
    let mut spans: Vec<Span> = Vec::new();
    for event in lines(events) {
        if let (Some(inode), Some(ino)) = (event.field("inode"), event.field("ino")) {
            inodes.insert(inode, ino);
        }
        if !threads.contains(&event.thread) {
            continue;
        }
        let at_ns = clock.to_device(event.at_us.saturating_mul(1000));
        let opening = FUNCTIONS.iter().chain(&WAITS).find(|(begin, ..)| *begin == event.name);
        if let Some((_, end, _)) = opening {
            open.insert((event.tid, end), (at_ns, event));
            continue;
        }
        let closing = FUNCTIONS.iter().chain(&WAITS).find(|(_, end, _)| *end == event.name);
        let begun = closing.and_then(|(_, end, _)| open.remove(&(event.tid, end)));
        let Some((since_ns, begun)) = begun else {
            continue;
        };
        if at_ns < window.first_ns || since_ns > window.last_ns || spans.len() == 2 * MOST {
            continue;
        }
        let begin_us = window.us(since_ns.max(window.first_ns));
        let end_us = window.us(at_ns.min(window.last_ns)).max(begin_us);
        let of = |table: &'static [(&str, &str, &'static str)]| {
            table.iter().find(|(begin, ..)| *begin == begun.name).map(|(.., text)| *text)
        };
        let thread = event.thread;
        spans.extend(match (of(&FUNCTIONS), of(&WAITS)) {
            (Some(function), _) => {
                let (kind, text) = (Kind::Function, function.to_owned());
                Some(Span { lane: thread, kind, begin_us, end_us, text, parked: None })
            }
            (None, Some(how)) => {
                let lane = lock(&begun, &inodes);
                let (kind, text) = (Kind::Lock, format!("{thread} waits {how}"));
                Some(Span { lane, kind, begin_us, end_us, text, parked: None })
            }
            (None, None) => None,
        });
    }
    spans
}

/// The events of the probes, in the kernel's order.
fn lines(events: &[Event]) -> impl Iterator<Item = KernelEvent> {
    let batches = events.iter().filter_map(|event| match link::message_of(event)?.ok()? {
        ToHost::Trace(batch) => Some(batch.lines),
        _ => None,
    });
    batches.flatten().filter_map(|line| match parse_line(&line) {
        KernelLine::Event(event) => Some(event),
        _ => None,
    })
}

/// The name of the semaphore that a thread begins to wait for: the probe says where semaphores stand
/// in an inode, and other probes, where inodes are.
fn lock(begun: &KernelEvent, inodes: &BTreeMap<u64, u64>) -> String {
    let sem = begun.field("sem").unwrap_or_default();
    let of = |name: &str| {
        let ino = inodes.get(&sem.wrapping_add(begun.field(name)?))?;
        Some(format!("{name} of inode {ino}"))
    };
    of("i_data_sem").or_else(|| of("i_rwsem")).unwrap_or_else(|| "another rw_semaphore".to_owned())
}
