//! A recorded event log through the shadow again: the same findings, offline.
//!
//! In: lines of an event log that a disk with a shadow has written (`--shadow --event-log`): it has
//! the bytes of metadata writes, and those that the layout was read from, as `bytes` events. Out:
//! findings, and whether they are the recorded ones.
//! Must not know: files.

use std::collections::HashMap;

use ext4_layout::{Change, Layout, ReadAt, ReadError};
use thiserror::Error;

use super::{Arriving, Finding, Options, Shadow, ShadowStats};
use crate::delalloc_shadow::{Follower, FollowerStats};
use crate::event::{BadBytes, Event, LayoutChange, SCHEMA, What, bytes_of};
use crate::request::{Nanos, Op, Outcome, RequestId};

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checked {
    /// What the shadow finds in the log, with the line at which it does.
    pub findings: Vec<(usize, Finding)>,
    /// What it found when the log was written, with its line.
    pub recorded: Vec<(usize, Finding)>,
    /// Counts at the end.
    pub stats: ShadowStats,
    /// Counts of the delalloc shadow, if a kernel was watched.
    pub kernel: Option<FollowerStats>,
}

/// A log that cannot be checked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckError {
    /// A line that is no event.
    #[error("line {line} is not an event of schema {SCHEMA}")]
    Line {
        /// Line of the log, from 1.
        line: usize,
        /// Why not.
        source: serde_json::Error,
    },
    /// A `bytes` event that cannot be read.
    #[error("line {line} cannot be read")]
    Bytes {
        /// Line of the log, from 1.
        line: usize,
        /// Why not.
        source: BadBytes,
    },
    /// Written by another version.
    #[error("the log has schema {found}, this program reads {SCHEMA}")]
    Schema {
        /// Schema of the log.
        found: u32,
    },
    /// No bytes in it, and no kernel that was watched.
    #[error("the log has no bytes of metadata; record it with --shadow and --event-log")]
    NoBytes,
}

/// A request of the log that has not ended.
struct Open {
    op: Op,
    sector: u64,
    sectors: u64,
    bytes: Option<Vec<u8>>,
}

/// Reads a log, line by line.
pub struct Checker {
    line: usize,
    shadow: Shadow,
    layout: Layout,
    reads: Recorded,
    /// Size of the device if the layout is due to be read.
    due: Option<u64>,
    pending: HashMap<RequestId, Vec<u8>>,
    open: HashMap<RequestId, Open>,
    seen_bytes: bool,
    /// What the agent said of its kernel, in the same log.
    follower: Follower,
    /// The last event, if it was a request.
    request: Option<Event>,
    checked: Checked,
}

/// What was read from the device then.
#[derive(Default)]
struct Recorded(HashMap<(u64, usize), Vec<u8>>);

impl ReadAt for Recorded {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let length = buf.len();
        let bytes = self.0.get(&(offset, length)).ok_or_else(|| ReadError {
            offset,
            length,
            source: "the log does not have them".into(),
        })?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

impl Checker {
    /// A checker that has read nothing.
    pub fn new(options: Options) -> Checker {
        let mut layout = Layout::blank(0);
        layout.keep_commits();
        Checker {
            line: 0,
            shadow: Shadow::new(options),
            layout,
            reads: Recorded::default(),
            due: None,
            pending: HashMap::new(),
            open: HashMap::new(),
            seen_bytes: false,
            follower: Follower::new(),
            request: None,
            checked: Checked::default(),
        }
    }

    /// Takes in the next line of the log.
    ///
    /// # Errors
    /// A line that is no event, or of another schema.
    pub fn line(&mut self, text: &str) -> Result<(), CheckError> {
        self.line += 1;
        let line = self.line;
        let event: Event =
            serde_json::from_str(text).map_err(|source| CheckError::Line { line, source })?;
        self.event(event)
    }

    /// Takes in the next event of the log.
    ///
    /// # Errors
    /// An event that cannot be read, or of another schema.
    pub fn event(&mut self, event: Event) -> Result<(), CheckError> {
        self.follow(&event);
        let Event { at, what, .. } = event;
        match what {
            What::Log { schema, .. } if schema != SCHEMA => {
                return Err(CheckError::Schema { found: schema });
            }
            What::Bytes { id, offset, len, data } => {
                let line = self.line;
                let bytes =
                    bytes_of(len, &data).map_err(|source| CheckError::Bytes { line, source })?;
                self.seen_bytes = true;
                match id {
                    Some(id) => drop(self.pending.insert(id, bytes)),
                    None => drop(self.reads.0.insert((offset, bytes.len()), bytes)),
                }
            }
            What::Layout { change, device_bytes, .. } if change != LayoutChange::Changed => {
                self.due = device_bytes;
            }
            What::Rules { .. } => self.shadow.tell_anew(),
            What::Finding(finding) => self.checked.recorded.push((self.line, finding)),
            What::Request { id, op, sector, sectors, .. } => {
                self.reopen();
                self.request(at, id, op, sector, sectors);
            }
            What::Complete { id, outcome, .. } => self.complete(at, id, outcome),
            What::Disconnect => {
                self.reopen();
                self.shadow.disconnect();
                self.open.clear();
            }
            _ => {}
        }
        let found = self.shadow.take_findings().into_iter().map(|finding| (self.line, finding));
        self.checked.findings.extend(found);
        Ok(())
    }

    /// Counts of the on-disk shadow so far.
    pub fn stats(&self) -> ShadowStats {
        self.shadow.stats()
    }

    /// The end of the log.
    ///
    /// # Errors
    /// A log without bytes.
    pub fn finish(mut self) -> Result<Checked, CheckError> {
        self.checked.kernel = self.follower.stats();
        if !self.seen_bytes && self.checked.kernel.is_none() {
            return Err(CheckError::NoBytes);
        }
        self.checked.stats = self.shadow.stats();
        self.checked.stats.layout_bytes = self.layout.heap_bytes() as u64;
        Ok(self.checked)
    }

    /// The delalloc shadow goes by events, and a decision belongs to the request before it.
    fn follow(&mut self, event: &Event) {
        let belongs = matches!(event.what, What::Decision { .. });
        match self.request.take().filter(|_| belongs) {
            Some(request) => self.follower.observe(&[request, event.clone()]),
            None => self.follower.observe(std::slice::from_ref(event)),
        }
        if matches!(event.what, What::Request { .. }) {
            self.request = Some(event.clone());
        }
        let found = self.follower.take_findings().into_iter().map(|finding| (self.line, finding));
        self.checked.findings.extend(found);
    }

    fn request(&mut self, at: Nanos, id: RequestId, op: Op, sector: u64, sectors: u64) {
        let bytes = self.pending.remove(&id);
        if let Some(bytes) = &bytes {
            // What a write that arrives means for the map is in it; it never asks to be read anew.
            let _: Change = self.layout.write_arrived(sector, bytes);
        }
        let arriving = Arriving { id, op, sector, sectors, bytes: bytes.as_deref() };
        self.shadow.arrive(at, &arriving, &self.layout.map());
        self.open.insert(id, Open { op, sector, sectors, bytes });
    }

    fn complete(&mut self, at: Nanos, id: RequestId, outcome: Outcome) {
        let Some(open) = self.open.remove(&id) else {
            return self.reopen();
        };
        let old = self.layout.map();
        if outcome == Outcome::Ok {
            let _: Change = match (open.op, &open.bytes) {
                (Op::Write | Op::Store, Some(bytes)) => self.layout.write_done(open.sector, bytes),
                (Op::Discard | Op::WriteZeroes, _) => self.layout.zeroed(open.sector, open.sectors),
                _ => Change::None,
            };
        }
        // The log says when the layout was read anew, and what was read.
        self.reopen();
        let commits = self.layout.take_commits();
        self.shadow.complete(at, id, outcome, (&old, &self.layout.map()), &commits);
    }

    fn reopen(&mut self) {
        let Some(device_bytes) = self.due.take() else {
            return;
        };
        // Without ext4 the layout is blank, as it was then.
        drop(self.layout.reopen(&mut self.reads, device_bytes));
        self.reads.0.clear();
        self.shadow.opened(&self.layout);
    }
}
