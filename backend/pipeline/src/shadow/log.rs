//! The journal on the wire: which transaction each block of the log belongs to, what has been
//! stored, and which copies recovery would replay.
//!
//! In: blocks of the log and of the journal's superblock as they arrive and complete; metadata
//! written in place. Out: broken rules of order (D6, D7), and what a commit changed.
//! Must not know: what the copies mean, requests beyond their numbers.
//!
//! Bounds: [`COVERS_MAX`] copies that recovery would replay, as many blocks logged and blocks of the
//! log written without a commit record, [`TRANSACTIONS_MAX`] transactions without one. Beyond them
//! the log counts as not seen from its start, and what needs it is not checked until the guest
//! empties the log.

use std::collections::{BTreeMap, HashMap};

use ext4_layout::{LogBlock, LogFormat, LogTag, Tid};

use super::cache::{Barriers, Cache, Stamp};
use super::finding::{Finding, Findings, Rule};
use crate::request::RequestId;

const COVERS_MAX: usize = 1 << 17;
const TRANSACTIONS_MAX: usize = 4;
/// Smallest number of committed transactions whose places are remembered.
const LIVE_MAX: usize = 1 << 14;

/// Whether `tid` comes before `than`, with wrap-around (`tid_gt`).
pub(super) fn older(tid: Tid, than: Tid) -> bool {
    tid.wrapping_sub(than).cast_signed() < 0
}

/// A block of the log that was written since the last commit.
#[derive(Clone, Copy, Debug)]
struct Slot {
    id: RequestId,
    /// Checksum of what it is a copy of; `None` where that cannot be told.
    sum: Option<u32>,
    done: Option<Stamp>,
}

#[derive(Clone, Copy, Debug)]
enum Piece {
    Descriptor,
    Copy(LogTag),
    Revoke,
}

#[derive(Clone, Debug, Default)]
struct Transaction {
    pieces: BTreeMap<u32, Piece>,
    revoked: Vec<u64>,
    commit: Option<(u32, RequestId, Option<Stamp>)>,
}

/// Whether a committed block has reached its own place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InPlace {
    No,
    InFlight(RequestId),
    Done(Stamp),
}

/// The newest committed copy of a block, while recovery would replay it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cover {
    pub(super) tid: Tid,
    pub(super) sum: Option<u32>,
    /// When the commit record completed, and its request.
    pub(super) committed: Stamp,
    pub(super) commit_id: RequestId,
    pub(super) in_place: InPlace,
    /// The block was freed since: what the copy holds is nobody's any more. `data=journal` revokes
    /// no data (`ext4_forget`), since whoever takes the block next logs it as well.
    pub(super) freed: bool,
}

/// What a transaction logged.
#[derive(Clone, Debug)]
pub(super) struct Effect {
    pub(super) commit_id: RequestId,
    /// Blocks, with the checksum of what they hold.
    pub(super) copies: BTreeMap<u64, Option<u32>>,
    pub(super) revoked: Vec<u64>,
}

/// Blocks of the log that recovery would read.
#[derive(Clone, Copy, Debug)]
struct Live {
    tid: Tid,
    blocks: u32,
}

/// The journal.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    pub(super) format: Option<LogFormat>,
    transactions: BTreeMap<Tid, Transaction>,
    slots: HashMap<u32, Slot>,
    /// Blocks that a transaction without a commit has logged.
    uncommitted: HashMap<u64, (Tid, u32)>,
    pub(super) covers: BTreeMap<u64, Cover>,
    /// By first block.
    live: BTreeMap<u32, Live>,
    /// A descriptor was written since the log was empty.
    pub(super) active: bool,
    /// Every transaction since the log was empty was seen.
    pub(super) from_empty: bool,
}

/// What a block of the log was, when it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    Part,
    Commit(Tid),
}

impl Log {
    pub(super) fn new(format: Option<LogFormat>) -> Log {
        let from_empty = format.is_some_and(|format| format.start().is_none());
        Log { format, from_empty, ..Log::default() }
    }

    /// A block of the log arrives; `block` is `None` when a request holds a part of it only.
    pub(super) fn arrived(
        &mut self,
        index: u32,
        id: RequestId,
        block: Option<&[u8]>,
        cache: &mut Cache,
        findings: &mut Findings,
    ) -> Arrived {
        let Some(format) = self.format.filter(|format| format.blocks().contains(&index)) else {
            return Arrived::Part;
        };
        let mut slot = Slot { id, sum: None, done: None };
        let read = block.map_or(LogBlock::Other, |block| format.read(block));
        let tid = match &read {
            LogBlock::Descriptor { tid, .. }
            | LogBlock::Revoke { tid, .. }
            | LogBlock::Commit { tid, .. } => Some(*tid),
            LogBlock::Other => self.tag_at(index).map(|(tid, _)| tid),
        };
        self.check_overwrite(index, tid, id, findings);
        let mut arrived = Arrived::Part;
        match read {
            LogBlock::Descriptor { tid, tags: Some(tags) } => {
                self.active = true;
                let room = format.blocks().len();
                let Some(transaction) = self.transaction(tid, room) else {
                    return Arrived::Part;
                };
                transaction.pieces.insert(index, Piece::Descriptor);
                let places = (1..).map(|place| format.after(index, place));
                let copies: Vec<_> = tags.into_iter().take(room).zip(places).collect();
                for (tag, at) in &copies {
                    transaction.pieces.insert(*at, Piece::Copy(*tag));
                }
                for (tag, at) in copies {
                    self.uncommitted.insert(tag.pblk(), (tid, at));
                }
                if self.uncommitted.len() > COVERS_MAX {
                    // One descriptor can be written over and over, with other blocks each time.
                    self.lose();
                }
            }
            LogBlock::Revoke { tid, blocks: Some(blocks) } => {
                self.active = true;
                if let Some(transaction) = self.transaction(tid, format.blocks().len()) {
                    transaction.pieces.insert(index, Piece::Revoke);
                    transaction.revoked.extend(blocks);
                }
            }
            LogBlock::Commit { tid, sound: true } => {
                arrived = Arrived::Commit(tid);
                self.commit_arrived(tid, index, id, format, cache, findings);
            }
            LogBlock::Descriptor { tid, tags: None }
            | LogBlock::Revoke { tid, blocks: None }
            | LogBlock::Commit { tid, sound: false } => {
                if !older(tid, format.sequence()) {
                    let seen = format!("block {index} of the log has a wrong checksum");
                    findings.push(Finding {
                        tid: Some(tid),
                        requests: vec![id],
                        ..Finding::of(Rule::Checksum, seen)
                    });
                }
            }
            LogBlock::Other => {
                slot.sum = block.and_then(|block| self.copy_arrived(index, id, block, findings));
            }
        }
        self.slots.insert(index, slot);
        if self.slots.len() > COVERS_MAX {
            self.lose();
        }
        arrived
    }

    fn transaction(&mut self, tid: Tid, room: usize) -> Option<&mut Transaction> {
        if self.transactions.len() >= TRANSACTIONS_MAX && !self.transactions.contains_key(&tid) {
            self.lose();
        }
        let transaction = self.transactions.entry(tid).or_default();
        (transaction.pieces.len() <= room && transaction.revoked.len() <= COVERS_MAX)
            .then_some(transaction)
    }

    /// Gives up what cannot be followed any more.
    pub(super) fn lose(&mut self) {
        let (format, active) = (self.format, self.active);
        *self = Log { format, active, ..Log::default() };
    }

    fn tag_at(&self, index: u32) -> Option<(Tid, LogTag)> {
        self.transactions.iter().rev().find_map(|(tid, of)| match of.pieces.get(&index)? {
            Piece::Copy(tag) => Some((*tid, *tag)),
            Piece::Descriptor | Piece::Revoke => None,
        })
    }

    /// A copy arrives; gives the checksum of what it is a copy of.
    fn copy_arrived(
        &self,
        index: u32,
        id: RequestId,
        block: &[u8],
        findings: &mut Findings,
    ) -> Option<u32> {
        let format = self.format?;
        let (tid, tag) = self.tag_at(index)?;
        if !format.fits(tag, tid, block) {
            // A block that is cut while it is on its way says where.
            let end = block.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            let seen = format!(
                "its copy at block {index} of the log has a wrong checksum; from byte {end} on it \
                 is zero"
            );
            findings.push(Finding {
                tid: Some(tid),
                blocks: Some((tag.pblk(), tag.pblk())),
                requests: vec![id],
                ..Finding::of(Rule::Checksum, seen)
            });
        }
        if tag.escaped() {
            // JBD2_MAGIC_NUMBER, big-endian, which the log stores as zeroes.
            let start = [0xc0, 0x3b, 0x39, 0x98];
            return Some(crc32c::crc32c_append(crc32c::crc32c(&start), block.get(4..)?));
        }
        Some(crc32c::crc32c(block))
    }

    /// D7: a block of the log that recovery would read is written to.
    fn check_overwrite(
        &self,
        index: u32,
        tid: Option<Tid>,
        id: RequestId,
        findings: &mut Findings,
    ) {
        let Some(format) = self.format else { return };
        let blocks = format.blocks();
        let distance = |from: u32| {
            let len = blocks.end - blocks.start;
            (index.wrapping_sub(from).wrapping_add(if index < from { len } else { 0 })) % len
        };
        // The last to begin before the block, or the one that goes round the end of the log.
        let before = self.live.range(..=index).next_back();
        let around = self.live.last_key_value();
        let hit = before.into_iter().chain(around);
        let mut hit = hit.filter(|(first, live)| distance(**first) < live.blocks);
        if let Some((_, live)) = hit.find(|(_, live)| tid != Some(live.tid)) {
            let seen = format!(
                "block {index} of the log, of committed transaction {}, is overwritten; the log's \
                 superblock begins at transaction {}",
                live.tid,
                format.sequence()
            );
            findings.push(Finding {
                tid: Some(live.tid),
                requests: vec![id],
                ..Finding::of(Rule::LogOverwritten, seen)
            });
        }
    }

    fn commit_arrived(
        &mut self,
        tid: Tid,
        index: u32,
        id: RequestId,
        format: LogFormat,
        cache: &mut Cache,
        findings: &mut Findings,
    ) {
        let Some(transaction) = self.transactions.get_mut(&tid) else {
            // An empty transaction, or one whose descriptors were not seen.
            self.transactions.insert(
                tid,
                Transaction { commit: Some((index, id, None)), ..Transaction::default() },
            );
            return;
        };
        transaction.commit = Some((index, id, None));
        if format.async_commit() {
            return;
        }
        let slots = transaction.pieces.iter().map(|(at, piece)| (piece, self.slots.get(at)));
        let mut not_flushed = None;
        for (piece, slot) in slots {
            let Some(slot) = slot else { continue };
            match slot.done {
                None => {
                    findings.push(order(tid, piece, *slot, id, "has not completed"));
                    return;
                }
                Some(stamp) if !cache.flushed(stamp) => not_flushed = Some((piece, *slot)),
                Some(_) => {}
            }
        }
        match (not_flushed, cache.barriers) {
            (None, _) => cache.barriers = Barriers::On,
            (Some(_), Barriers::Unknown) => cache.barriers = Barriers::Off,
            (Some((piece, slot)), Barriers::On) => {
                findings.push(order(tid, piece, slot, id, "was not flushed"));
            }
            (Some(_), Barriers::Off) => {}
        }
    }

    /// A request that wrote this block of the log ended.
    pub(super) fn done(&mut self, index: u32, id: RequestId, stamp: Option<Stamp>) {
        match (self.slots.get_mut(&index).filter(|slot| slot.id == id), stamp) {
            (Some(slot), Some(_)) => slot.done = stamp,
            (Some(_), None) => {
                self.slots.remove(&index);
            }
            (None, _) => {}
        }
        for transaction in self.transactions.values_mut() {
            if let Some((_, commit_id, done)) = &mut transaction.commit
                && *commit_id == id
            {
                *done = stamp;
            }
        }
    }

    /// A transaction took effect. `None` if it was not followed from its first block on.
    pub(super) fn take_effect(&mut self, tid: Tid, findings: &mut Findings) -> Option<Effect> {
        let transaction = self.transactions.remove(&tid)?;
        let others = self.transactions.len();
        self.transactions.retain(|other, _| older(tid, *other));
        if self.transactions.len() < others {
            self.uncommitted.retain(|_, (other, _)| older(tid, *other));
        }
        for piece in transaction.pieces.values() {
            if let Piece::Copy(tag) = piece
                && self.uncommitted.get(&tag.pblk()).is_some_and(|(other, _)| *other == tid)
            {
                self.uncommitted.remove(&tag.pblk());
            }
        }
        let (index, commit_id, stamp) = transaction.commit?;
        let committed = stamp?;
        let format = self.format?;
        let len = transaction.pieces.len() as u32 + 1;
        let blocks = format.blocks();
        let first = format.after(index, (blocks.end - blocks.start).saturating_sub(len - 1));
        if self.live.len() < LIVE_MAX {
            self.live.insert(first, Live { tid, blocks: len });
        }
        for pblk in &transaction.revoked {
            self.covers.remove(pblk);
        }
        let mut copies = BTreeMap::new();
        for (at, piece) in transaction.pieces {
            let slot = self.slots.remove(&at);
            if let Piece::Copy(tag) = piece {
                let sum = slot.and_then(|slot| slot.sum);
                copies.insert(tag.pblk(), sum);
                let in_place = InPlace::No;
                let cover = Cover { tid, sum, committed, commit_id, in_place, freed: false };
                self.covers.insert(tag.pblk(), cover);
            }
        }
        self.slots.remove(&index);
        for pblk in transaction.revoked.iter().filter(|pblk| copies.contains_key(pblk)) {
            findings.push(Finding {
                blocks: Some((*pblk, *pblk)),
                tid: Some(tid),
                requests: vec![commit_id],
                ..Finding::of(Rule::RevokedCopy, "it is logged and revoked".to_owned())
            });
        }
        if self.covers.len() > COVERS_MAX {
            self.lose();
        }
        Some(Effect { commit_id, copies, revoked: transaction.revoked })
    }

    /// What a transaction without a commit has logged of a block: its number, and the checksum.
    pub(super) fn uncommitted(&self, pblk: u64) -> Option<(Tid, Option<u32>)> {
        let (tid, at) = self.uncommitted.get(&pblk)?;
        Some((*tid, self.slots.get(at).and_then(|slot| slot.sum)))
    }

    /// The journal's superblock arrives with a new tail: the blocks that recovery will not restore
    /// any more, and that are not durable in place (D7).
    pub(super) fn passed(&self, new: &LogFormat, cache: &Cache) -> Vec<(u64, Cover)> {
        let dropped = |cover: &Cover| new.start().is_none() || older(cover.tid, new.sequence());
        let stored =
            |cover: &Cover| matches!(cover.in_place, InPlace::Done(stamp) if cache.durable(stamp));
        let lost = |cover: &Cover| dropped(cover) && !cover.freed && !stored(cover);
        let covers = self.covers.iter().filter(|(_, cover)| lost(cover));
        covers.map(|(pblk, cover)| (*pblk, *cover)).collect()
    }

    /// A transaction freed the blocks.
    pub(super) fn freed(&mut self, first: u64, end: u64) {
        for (_, cover) in self.covers.range_mut(first..end) {
            cover.freed = true;
        }
    }

    /// The journal's superblock is stored.
    pub(super) fn set_format(&mut self, new: LogFormat) {
        let moved = self.format.is_some_and(|old| old.blocks() != new.blocks());
        self.format = Some(new);
        if new.start().is_none() || moved {
            *self = Log::new(Some(new));
            return;
        }
        // Recovery has emptied the log without saying so, or it was empty all the time.
        self.from_empty |= !self.active && self.covers.is_empty();
        self.covers.retain(|_, cover| !older(cover.tid, new.sequence()));
        self.live.retain(|_, live| !older(live.tid, new.sequence()));
        self.transactions.retain(|tid, _| !older(*tid, new.sequence()));
    }

    /// Everything in flight is gone: the guest was reset.
    pub(super) fn forget_running(&mut self) {
        self.transactions.clear();
        self.slots.clear();
        self.uncommitted.clear();
        self.active = false;
        for cover in self.covers.values_mut() {
            if matches!(cover.in_place, InPlace::InFlight(_)) {
                cover.in_place = InPlace::No;
            }
        }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let transactions = self.transactions.values();
        let pieces: usize =
            transactions.map(|of| of.pieces.len() * 64 + of.revoked.capacity() * 8).sum();
        self.covers.len() * (size_of::<(u64, Cover)>() * 3 / 2)
            + self.slots.capacity() * (size_of::<(u32, Slot)>() + 1)
            + self.uncommitted.capacity() * 25
            + pieces
            + self.live.len() * (size_of::<(u32, Live)>() * 3 / 2)
    }
}

fn order(tid: Tid, piece: &Piece, slot: Slot, commit: RequestId, how: &str) -> Finding {
    let (what, blocks) = match piece {
        Piece::Descriptor => ("a descriptor".to_owned(), None),
        Piece::Revoke => ("a revoke record".to_owned(), None),
        Piece::Copy(tag) => {
            (format!("the copy of block {}", tag.pblk()), Some((tag.pblk(), tag.pblk())))
        }
    };
    let seen = format!("the commit record arrives, and {what} {how}");
    Finding {
        blocks,
        tid: Some(tid),
        requests: vec![slot.id, commit],
        ..Finding::of(Rule::CommitOrder, seen)
    }
}
