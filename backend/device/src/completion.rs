//! Completion: what is in flight on one queue, and how it ends.
//!
//! In: requests that were started, results of their parts in any order. Out: a status byte in
//! guest memory and a [`Used`] element for each request, exactly once.
//! Must not know: storage, descriptor layouts.
//!
//! A request has one part, or one for each range of a discard. Parts and requests are taken out
//! of their table when they end: what is not in there cannot end again.

use std::sync::Arc;

use pipeline::{Op, Outcome, RequestId};
use rustix::io::Errno;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

use crate::counters::{Begun, Done};
use crate::queue::Used;
use crate::request::status_of;
use crate::segments::{AlignedBuf, StatusByte};
use crate::storage::IoResult;

/// A table whose keys are never those of an earlier entry.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

/// Names an entry of a [`Slab`]: index and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token(pub u64);

impl Token {
    fn new(index: u32, generation: u32) -> Token {
        Token(u64::from(generation) << 32 | u64::from(index))
    }

    fn index(self) -> u32 {
        self.0 as u32
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Slab<T> {
        Slab { entries: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, value: T) -> Token {
        if let Some(index) = self.free.pop() {
            let (generation, entry) = &mut self.entries[index as usize];
            *entry = Some(value);
            Token::new(index, *generation)
        } else {
            self.entries.push((0, Some(value)));
            Token::new(self.entries.len() as u32 - 1, 0)
        }
    }

    pub(crate) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let (generation, entry) = self.entries.get_mut(token.index() as usize)?;
        if *generation == token.generation() { entry.as_mut() } else { None }
    }

    pub(crate) fn remove(&mut self, token: Token) -> Option<T> {
        let (generation, entry) = self.entries.get_mut(token.index() as usize)?;
        if *generation != token.generation() {
            return None;
        }
        let value = entry.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(token.index());
        Some(value)
    }
}

/// A request of which not all parts have ended.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub head: u16,
    pub status: StatusByte,
    /// Bytes written for the guest if all goes well, without the status.
    pub written: u32,
    pub parts_left: u32,
    pub failed: Option<Errno>,
    /// For the counters.
    pub begun: Begun,
}

impl InFlight {
    /// One part ended. True if it was the last.
    pub(crate) fn part_ended(&mut self, result: IoResult) -> bool {
        if let Err(errno) = result {
            self.failed.get_or_insert(errno);
        }
        self.parts_left -= 1;
        self.parts_left == 0
    }

    /// All parts ended: tells the guest how, and gives the chain back.
    pub(crate) fn complete(self) -> (Used, Done) {
        let InFlight { head, status, written, failed, begun, .. } = self;
        let used = match failed {
            None => complete(head, status, VIRTIO_BLK_S_OK as u8, written),
            Some(errno) => complete(head, status, status_of(errno), 0),
        };
        (used, Done { begun, failed: failed.is_some() })
    }
}

/// Writes a status byte. `written` bytes went before it.
pub(crate) fn complete(head: u16, status: StatusByte, code: u8, written: u32) -> Used {
    status.write(code);
    Used { head, len: written.saturating_add(1) }
}

/// What the engine was told of a part, to be told again when it ends.
#[derive(Debug)]
pub(crate) struct Traced {
    pub id: RequestId,
    pub op: Op,
    pub sector: u64,
    pub sectors: u64,
    /// The data of a write that the engine looks at.
    pub bytes: Option<Arc<AlignedBuf>>,
}

/// One operation of storage, and whom it belongs to.
#[derive(Debug)]
pub(crate) struct Part {
    pub owner: Token,
    pub traced: Option<Traced>,
}

/// How the engine sees a result.
pub(crate) fn outcome_of(result: IoResult) -> Outcome {
    match result {
        Ok(()) => Outcome::Ok,
        Err(errno) if u32::from(status_of(errno)) == VIRTIO_BLK_S_UNSUPP => Outcome::Unsupported,
        Err(_) => Outcome::IoErr,
    }
}
