//! Recorded logs of a real guest, and ways to alter them.
//!
//! In: the logs of `tests/data`. Out: the log's writes, altered logs, what the shadow says of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ext4_layout::Kind;
use pipeline::event::{Event, What, bytes_event, bytes_of};
use pipeline::shadow::{Checked, Checker, Options, Rule};
use pipeline::{Op, RequestId};

/// Alterations that are tried for one canary.
const TRIED_MAX: usize = 400;

pub(crate) fn recorded(name: &str) -> Vec<Event> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn plain() -> Vec<Event> {
    recorded("guest-plain.jsonl")
}

pub(crate) fn check(events: &[Event]) -> Checked {
    let mut checker = Checker::new(Options::default());
    for event in events {
        checker.event(event.clone()).unwrap();
    }
    checker.finish().unwrap()
}

/// Some alteration must break the rule.
#[track_caller]
pub(crate) fn caught(rule: Rule, alterations: impl IntoIterator<Item = Vec<Event>>) {
    let mut tried = 0;
    for events in alterations.into_iter().take(TRIED_MAX) {
        tried += 1;
        let found = check(&events).findings;
        if found.iter().any(|(_, finding)| finding.rule == rule.id()) {
            return;
        }
    }
    panic!("{}: not caught by any of {tried} alterations", rule.id());
}

/// A write of the log, by the places of its events.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) bytes: Option<usize>,
    pub(crate) request: usize,
    pub(crate) complete: usize,
    pub(crate) sector: u64,
    /// First sector, kind, and what a log copy is of.
    pub(crate) spans: Vec<(u64, Kind, Option<Kind>)>,
}

impl Write {
    pub(crate) fn has(&self, kind: Kind) -> bool {
        self.spans.iter().any(|(_, of, _)| *of == kind)
    }

    pub(crate) fn is_log(&self) -> bool {
        self.spans.iter().any(|(_, kind, _)| kind.name().starts_with("journal"))
    }

    /// Metadata at its own place.
    pub(crate) fn in_place(&self) -> bool {
        const KINDS: [Kind; 6] = [
            Kind::ExtentNode,
            Kind::BlockBitmap,
            Kind::InodeBitmap,
            Kind::InodeTable,
            Kind::Directory,
            Kind::GroupDescriptors,
        ];
        self.bytes.is_some() && KINDS.iter().any(|kind| self.has(*kind))
    }
}

pub(crate) fn writes(events: &[Event]) -> Vec<Write> {
    let mut bytes = BTreeMap::new();
    let mut writes: BTreeMap<RequestId, Write> = BTreeMap::new();
    for (at, event) in events.iter().enumerate() {
        match &event.what {
            What::Bytes { id: Some(id), .. } => drop(bytes.insert(*id, at)),
            What::Request { id, op: Op::Write, sector, classes, .. } => {
                let spans = classes.iter().map(|span| {
                    let of = span.class.of.map(|of| of.class);
                    (span.sector, span.class.home.class, of)
                });
                let write = Write {
                    bytes: bytes.get(id).copied(),
                    request: at,
                    complete: at,
                    sector: *sector,
                    spans: spans.collect(),
                };
                writes.insert(*id, write);
            }
            What::Complete { id, .. } => {
                if let Some(write) = writes.get_mut(id) {
                    write.complete = at;
                }
            }
            _ => {}
        }
    }
    writes.into_values().collect()
}

/// The log without one write.
pub(crate) fn without(events: &[Event], write: &Write) -> Vec<Event> {
    let gone = [write.bytes, Some(write.request), Some(write.complete)];
    let kept = events.iter().enumerate().filter(|(at, _)| !gone.contains(&Some(*at)));
    kept.map(|(_, event)| event.clone()).collect()
}

/// The log with the event at `from` right behind that at `to`.
pub(crate) fn moved(events: &[Event], from: usize, to: usize) -> Vec<Event> {
    let mut events = events.to_vec();
    let event = events.remove(from);
    events.insert(if from < to { to } else { to + 1 }, event);
    events
}

/// The log with other bytes in a write.
pub(crate) fn with_bytes(
    events: &[Event],
    write: &Write,
    edit: impl FnOnce(&mut [u8]),
) -> Vec<Event> {
    let mut events = events.to_vec();
    let at = write.bytes.unwrap();
    let What::Bytes { id, offset, len, data } = &events[at].what else { panic!("no bytes") };
    let mut bytes = bytes_of(*len, data).unwrap();
    edit(&mut bytes);
    events[at].what = bytes_event(*id, *offset, &bytes);
    events
}

pub(crate) fn bytes(events: &[Event], write: &Write) -> Vec<u8> {
    let What::Bytes { len, data, .. } = &events[write.bytes.unwrap()].what else {
        panic!("no bytes")
    };
    bytes_of(*len, data).unwrap()
}

/// The next commit record's request at or after `at`.
pub(crate) fn next_commit(events: &[Event], writes: &[Write], at: usize) -> Option<usize> {
    let commits =
        writes.iter().filter(|write| write.has(Kind::JournalCommit) || commits(events, write));
    commits.map(|write| write.request).filter(|request| *request > at).min()
}

/// A commit record is idle log until it has arrived: its bytes tell.
pub(crate) fn commits(events: &[Event], write: &Write) -> bool {
    write.is_log()
        && write.bytes.is_some()
        && bytes(events, write)
            .chunks(1024)
            .any(|block| block.starts_with(&[0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 2]))
}

/// Where in the bytes of log writes there is a copy of such a block, with the write.
pub(crate) fn copies(writes: &[Write], of: Kind) -> Vec<(Write, usize)> {
    let mut found = Vec::new();
    for write in writes.iter().filter(|write| write.bytes.is_some()) {
        for (sector, kind, subject) in &write.spans {
            if *kind == Kind::JournalCopy && *subject == Some(of) {
                found.push((write.clone(), (sector - write.sector) as usize * 512));
            }
        }
    }
    found
}

/// Alters each inode with an extent tree in each copy of an inode table.
pub(crate) fn inodes(events: &[Event], edit: impl Fn(&mut [u8])) -> Vec<Vec<Event>> {
    let mut altered = Vec::new();
    for (write, offset) in copies(&writes(events), Kind::InodeTable) {
        let raw = bytes(events, &write);
        for at in (offset..offset + 1024).step_by(256) {
            let inode = &raw[at..at + 256];
            let mapped = inode[0x28..0x2c] == [0x0a, 0xf3, 1, 0] && inode[0x2e] == 0;
            if mapped {
                altered.push(with_bytes(events, &write, |bytes| edit(&mut bytes[at..at + 256])));
            }
        }
    }
    altered
}
