//! The journal as the guest writes it.
//!
//! In: blocks of the log, when they arrive and when they are stored. Out: entries of the log, and
//! each transaction's copies once its commit record and all its blocks are stored.
//! Must not know: what the copies mean.
//!
//! Copies are kept until their commit record, [`HELD_BYTES_MAX`] bytes at most; beyond that the
//! copies are dropped and the commit asks for the layout to be opened again, which reads the log.

use std::collections::BTreeMap;

use crate::bytes::crc32c;
use crate::class::Tid;
use crate::jbd2::descriptor::Tag;
use crate::jbd2::superblock::JournalSuperblock;
use crate::jbd2::{BlockType, MAGIC, commit, descriptor, header, revoke};
use crate::layout::assembly::Assembly;
use crate::layout::replay::Replay;
use crate::layout::transaction::{Piece, Transaction};
use crate::log::{Entry, Log, not_older};

/// Bytes of copies kept at most.
const HELD_BYTES_MAX: usize = 24 << 20;
/// Committed blocks that the log covers, and blocks that one transaction revokes, at most: as many
/// as the largest log that mke2fs makes by itself has blocks. Beyond, the layout is opened again.
const COVERS_MAX: usize = 1 << 18;
/// Transactions without a commit record followed at most; jbd2 has one.
const TRANSACTIONS_MAX: usize = 4;

/// A block of the log that is stored.
#[derive(Debug)]
enum Stored {
    /// Its bytes, as in the log.
    Bytes(Box<[u8]>),
    /// Nothing but the checksum of what it is a copy of: its class needs no bytes.
    Sum(u32),
}

/// The newest committed copy of a block covers what is at the block's own place.
#[derive(Clone, Copy, Debug)]
struct Cover {
    tid: Tid,
    /// Checksum of the copied block, if it was seen.
    sum: Option<u32>,
    /// The last write to the block's own place stored something else.
    stale: bool,
}

/// What happened to a block of the log.
pub(crate) enum Stage<'a> {
    /// Of no further consequence.
    Quiet,
    /// The transaction took effect: the blocks it changed, with what they hold now.
    Committed(Tid, BTreeMap<u64, Box<[u8]>>),
    /// What took effect cannot be told from what was seen.
    Lost(Tid),
    /// The journal's superblock.
    Superblock(&'a [u8]),
}

/// The owner's view of the journal.
#[derive(Debug)]
pub(crate) struct Journal {
    file_blocks: u32,
    superblock: Option<JournalSuperblock>,
    transactions: BTreeMap<Tid, Transaction>,
    stored: BTreeMap<u32, Stored>,
    held_bytes: usize,
    /// Copies were dropped since the last commit.
    lost: bool,
    covers: BTreeMap<u64, Cover>,
    parts: Assembly,
    /// Where the next transaction starts, once a commit record was seen.
    next: Option<u32>,
}

impl Journal {
    pub(crate) fn new(replay: Replay) -> Journal {
        let cover = |tid| Cover { tid, sum: None, stale: false };
        Journal {
            file_blocks: replay.file_blocks,
            superblock: replay.superblock,
            transactions: replay.running.into_iter().collect(),
            stored: BTreeMap::new(),
            held_bytes: 0,
            lost: false,
            covers: replay.covered.into_iter().map(|(pblk, tid)| (pblk, cover(tid))).collect(),
            parts: Assembly::default(),
            next: replay.next,
        }
    }

    /// A full block of the log arrives. Returns whether entries changed.
    pub(crate) fn arrived(&mut self, log: &mut Log, index: u32, block: &[u8]) -> bool {
        let Some(superblock) = self.superblock else {
            return false;
        };
        if index < superblock.first || index >= superblock.fast_commit {
            return false;
        }
        let format = superblock.format;
        match header(block) {
            Some((BlockType::Descriptor, tid)) => {
                let Some(tags) = descriptor::parse(block, format) else {
                    return false;
                };
                if tags.len() >= superblock.usable() as usize {
                    return false;
                }
                let mut changed = log.set(index, Entry::Descriptor(tid));
                let mut transaction = self.transaction(tid, log.tail);
                if let Some(transaction) = &mut transaction {
                    transaction.pieces.insert(index, Piece::Descriptor);
                }
                for (tag, place) in tags.into_iter().zip(1..) {
                    let at = superblock.after(index, place);
                    changed |= log.set(at, Entry::Copy { tid, pblk: tag.pblk });
                    if let Some(transaction) = &mut transaction {
                        transaction.pieces.insert(at, Piece::Copy(tag));
                    }
                }
                changed
            }
            Some((BlockType::Revoke, tid)) => {
                let Some(blocks) = revoke::parse(block, format) else {
                    return false;
                };
                if let Some(transaction) = self.transaction(tid, log.tail)
                    && !transaction.revoke(index, blocks, COVERS_MAX)
                {
                    self.lost = true;
                }
                log.set(index, Entry::Revoke(tid))
            }
            Some((BlockType::Commit, tid)) if commit::checksum_fits(block, format) => {
                log.set(index, Entry::Commit(tid))
            }
            _ => false,
        }
    }

    fn transaction(&mut self, tid: Tid, tail: Tid) -> Option<&mut Transaction> {
        if !not_older(tid, tail) {
            return None;
        }
        if self.transactions.len() >= TRANSACTIONS_MAX && !self.transactions.contains_key(&tid) {
            self.transactions.pop_first();
        }
        Some(self.transactions.entry(tid).or_default())
    }

    /// A part of a block of the log is stored; the full block, once its last part is.
    pub(crate) fn assemble(
        &mut self,
        index: u32,
        block_bytes: usize,
        offset: usize,
        part: &[u8],
    ) -> Option<Box<[u8]>> {
        self.parts.add(index.into(), block_bytes, offset, part)
    }

    /// A full block of the log is stored. `needs_bytes` says whether the bytes of a copy of that
    /// block matter.
    pub(crate) fn stored<'a>(
        &mut self,
        index: u32,
        block: &'a [u8],
        needs_bytes: impl Fn(u64, &[u8]) -> bool,
    ) -> Stage<'a> {
        self.parts.forget(index.into());
        if index == 0 {
            return Stage::Superblock(block);
        }
        let Some(superblock) = self.superblock else {
            return Stage::Quiet;
        };
        let format = superblock.format;
        match header(block) {
            Some((BlockType::Commit, tid)) if commit::checksum_fits(block, format) => {
                if !not_older(tid, superblock.sequence) {
                    return Stage::Quiet;
                }
                self.transactions.entry(tid).or_default().commit = Some(index);
                return self.try_commit(tid);
            }
            Some((BlockType::Descriptor | BlockType::Revoke, _)) => {
                self.forget(index);
                self.stored.insert(index, Stored::Sum(0));
            }
            _ => {
                let tagged =
                    self.transactions.iter().rev().find_map(|(tid, transaction)| match transaction
                        .pieces
                        .get(&index)?
                    {
                        Piece::Copy(tag) => Some((*tid, *tag)),
                        Piece::Descriptor | Piece::Revoke(_) => None,
                    });
                match tagged {
                    Some((tid, tag)) if !tag.checksum_fits(block, tid, format) => {
                        return Stage::Quiet;
                    }
                    Some((_, tag)) if !needs_bytes(tag.pblk, block) => {
                        self.forget(index);
                        self.stored.insert(index, Stored::Sum(copied_sum(&tag, block)));
                    }
                    _ => self.hold(index, block),
                }
            }
        }
        let waiting = self
            .transactions
            .iter()
            .find(|(_, waiting)| waiting.commit.is_some() && waiting.pieces.contains_key(&index));
        match waiting.map(|(tid, _)| *tid) {
            Some(tid) => self.try_commit(tid),
            None => Stage::Quiet,
        }
    }

    fn forget(&mut self, index: u32) {
        if let Some(Stored::Bytes(bytes)) = self.stored.remove(&index) {
            self.held_bytes -= bytes.len();
        }
    }

    fn hold(&mut self, index: u32, block: &[u8]) {
        self.forget(index);
        if self.held_bytes + block.len() > HELD_BYTES_MAX {
            self.stored.clear();
            self.held_bytes = 0;
            self.lost = true;
        }
        self.held_bytes += block.len();
        self.stored.insert(index, Stored::Bytes(block.into()));
    }

    /// Lets a transaction take effect if all of it is stored.
    fn try_commit(&mut self, tid: Tid) -> Stage<'static> {
        let (Some(superblock), Some(transaction)) = (self.superblock, self.transactions.get(&tid))
        else {
            return Stage::Quiet;
        };
        let Some(commit) = transaction.commit else {
            return Stage::Quiet;
        };
        // The log has a transaction in one piece, up to the commit record.
        let usable = superblock.usable();
        let before = |by: u32| superblock.after(commit, usable - by);
        let len = transaction.pieces.len() as u32;
        let whole = len < usable
            && (1..=len).all(|by| transaction.pieces.contains_key(&before(by)))
            && self.next.is_none_or(|next| next == before(len));
        let stored = transaction.pieces.keys().all(|index| self.stored.contains_key(index));
        if whole && !stored && !self.lost && !transaction.from_log {
            return Stage::Quiet;
        }
        let lost = !whole || !stored;
        self.next = Some(superblock.after(commit, 1));
        let order: Vec<u32> = (1..=len.min(usable)).rev().map(before).collect();
        let Some(mut transaction) = self.transactions.remove(&tid) else {
            return Stage::Quiet;
        };
        // An older one that was complete in the log, but for blocks never seen stored, counts now.
        let overtaken = self
            .transactions
            .iter()
            .any(|(other, older)| not_older(tid, *other) && older.commit.is_some());
        let lost = lost || overtaken;
        self.transactions.retain(|other, _| !not_older(tid, *other));
        let mut changed = BTreeMap::new();
        let pieces =
            order.iter().filter_map(|index| Some((*index, transaction.pieces.remove(index)?)));
        for (index, piece) in pieces.collect::<Vec<_>>() {
            match piece {
                Piece::Copy(tag) => {
                    let sum = self.take_copy(index, &tag, tid, &mut changed);
                    self.covers.insert(tag.pblk, Cover { tid, sum, stale: false });
                }
                Piece::Revoke(blocks) => {
                    for pblk in blocks {
                        self.covers.remove(&pblk);
                    }
                    self.stored.remove(&index);
                }
                Piece::Descriptor => {
                    self.stored.remove(&index);
                }
            }
        }
        let crowded = self.covers.len() > COVERS_MAX;
        if crowded {
            self.covers.clear();
        }
        let lost = lost || crowded;
        if self.transactions.is_empty() {
            self.stored.clear();
            self.held_bytes = 0;
            self.lost = false;
        }
        if lost { Stage::Lost(tid) } else { Stage::Committed(tid, changed) }
    }

    /// Moves the bytes of a copy, if they were kept, to `changed`; returns their checksum.
    fn take_copy(
        &mut self,
        index: u32,
        tag: &Tag,
        tid: Tid,
        changed: &mut BTreeMap<u64, Box<[u8]>>,
    ) -> Option<u32> {
        let format = self.superblock?.format;
        match self.stored.remove(&index)? {
            Stored::Sum(sum) => Some(sum),
            Stored::Bytes(mut bytes) => {
                self.held_bytes -= bytes.len();
                if !tag.checksum_fits(&bytes, tid, format) {
                    return None;
                }
                if tag.escaped && bytes.len() >= 4 {
                    bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
                }
                let sum = crc32c(0, &bytes);
                changed.insert(tag.pblk, bytes);
                Some(sum)
            }
        }
    }

    /// The journal's superblock is stored. Returns the superblock if it is sound, and whether a
    /// block that the log covered until now holds something else at its own place.
    pub(crate) fn set_superblock(&mut self, block: &[u8]) -> Option<(JournalSuperblock, bool)> {
        let new = JournalSuperblock::parse(block, self.file_blocks)?;
        let reformatted = self.superblock.is_some_and(|old| {
            (old.first, old.blocks, old.fast_commit, old.format)
                != (new.first, new.blocks, new.fast_commit, new.format)
        });
        if reformatted {
            self.transactions.clear();
        }
        if reformatted || new.start.is_none() {
            self.next = None;
        }
        self.superblock = Some(new);
        let live = |tid: Tid| new.start.is_some() && not_older(tid, new.sequence);
        let stale = self.covers.values().any(|cover| cover.stale && !live(cover.tid));
        self.covers.retain(|_, cover| live(cover.tid));
        self.transactions.retain(|tid, _| not_older(*tid, new.sequence));
        Some((new, stale))
    }

    /// The superblock of the log.
    pub(crate) fn superblock(&self) -> Option<JournalSuperblock> {
        self.superblock
    }

    /// Bytes on the heap, nearly.
    pub(crate) fn heap_bytes(&self) -> usize {
        let pieces: usize = self.transactions.values().map(|of| of.pieces.len()).sum();
        let revoked: usize = self.transactions.values().map(|of| of.revoked).sum();
        self.held_bytes
            + self.stored.len() * size_of::<(u32, Stored)>() * 3 / 2
            + self.covers.len() * size_of::<(u64, Cover)>() * 3 / 2
            + pieces * size_of::<(u32, Piece)>() * 3 / 2
            + revoked * size_of::<u64>()
    }

    /// A block is written at its own place; returns whether the log has something newer.
    pub(crate) fn covers(&mut self, pblk: u64, full_block: Option<&[u8]>) -> bool {
        let Some(cover) = self.covers.get_mut(&pblk) else {
            return false;
        };
        if let Some(sum) = cover.sum {
            cover.stale = full_block.is_none_or(|block| crc32c(0, block) != sum);
        }
        true
    }
}

fn copied_sum(tag: &Tag, block: &[u8]) -> u32 {
    let start =
        if tag.escaped { MAGIC.to_be_bytes() } else { [block[0], block[1], block[2], block[3]] };
    crc32c(crc32c(0, &start), &block[4..])
}
