//! One reader of the event stream, which may be slow.
//!
//! In: lines. Out: as many of them as fit, and how many did not.
//! Must not know: sockets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use pipeline::event::{Event, What};
use rustix::event::{EventfdFlags, eventfd};

/// Bytes that wait for a reader: some seconds of what a watched kernel says while it works hard.
const ROOM_BYTES: usize = 16 << 20;

/// Lines that wait for one reader.
#[derive(Debug)]
pub struct Subscription {
    event: OwnedFd,
    /// Sequence number of the header: what is older is not for this reader.
    from: u64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    lost: u64,
}

/// Events as the sink's thread hands them round.
pub(super) struct Batch<'a> {
    pub(super) events: &'a [Event],
    /// A line for each of them.
    pub(super) lines: &'a [u8],
    /// Where each line ends.
    pub(super) ends: &'a [usize],
    /// How many events after these were dropped.
    pub(super) lost: u64,
}

impl Subscription {
    /// A reader who first gets `header`.
    pub(super) fn new(header: &Event) -> io::Result<Subscription> {
        let event = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut lines = serde_json::to_vec(header)?;
        lines.push(b'\n');
        Ok(Subscription {
            event,
            from: header.seq,
            waiting: Mutex::new(Waiting { lines, lost: 0 }),
        })
    }

    /// Adds the lines that fit. Once one does not, all are dropped until the reader has taken
    /// what waits: one gap instead of many.
    pub(super) fn offer(&self, batch: &Batch<'_>) {
        let skipped = batch.events.partition_point(|event| event.seq <= self.from);
        let start = skipped.checked_sub(1).map_or(0, |index| batch.ends[index]);
        let ends = &batch.ends[skipped..];
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = waiting.lines.is_empty();
        if waiting.lost > 0
            && was_empty
            && let Some(next) = batch.events.get(skipped)
        {
            waiting.report_lost(next);
        }
        if waiting.lost == 0 {
            let room = ROOM_BYTES.saturating_sub(waiting.lines.len());
            let fitting = ends.partition_point(|end| end - start <= room);
            if let Some(last) = fitting.checked_sub(1) {
                waiting.lines.extend_from_slice(&batch.lines[start..ends[last]]);
            }
            waiting.lost = (ends.len() - fitting) as u64;
        } else {
            waiting.lost += ends.len() as u64;
        }
        // What was dropped before it got here came after these.
        waiting.lost += batch.lost;
        let signal = was_empty && !waiting.lines.is_empty();
        drop(waiting);
        if signal {
            // A counter that cannot take one more is readable anyway.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// Moves the waiting lines into `out`, which must be empty, and makes the eventfd unreadable.
    pub fn take(&self, out: &mut Vec<u8>) {
        // Before the lines: what is added after is signalled again.
        let _ = rustix::io::read(&self.event, &mut [0_u8; 8]);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut waiting.lines, out);
    }
}

impl Waiting {
    /// Says how many events before `next` this reader did not get.
    fn report_lost(&mut self, next: &Event) {
        let what = What::Lost { events: self.lost };
        let event = Event { seq: next.seq.saturating_sub(1), at: next.at, what };
        if serde_json::to_writer(&mut self.lines, &event).is_ok() {
            self.lines.push(b'\n');
            self.lost = 0;
        }
    }
}

impl AsFd for Subscription {
    /// Readable while lines wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
