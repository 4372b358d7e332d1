//! The owner's copy of a layout: built from a device, kept current from the guest's writes.
//!
//! In: bytes of the device, then every write that [`LayoutMap::wants_bytes`]. Out: [`LayoutMap`]
//! snapshots. Must not know: requests, rules, threads.
//!
//! What a label means:
//! - The map says what the device knows: what recovery would find if the guest stopped now. A block
//!   gets a class, or becomes free, when the commit record of the transaction that says so is
//!   stored and all of the transaction is. Data that `data=ordered` writes before that commit
//!   goes to [`crate::Home::Free`] blocks.
//! - Without a journal, and outside it (mkfs, e2fsck), metadata takes effect as it is stored in
//!   place. While the log has a newer committed copy of a block, what is stored in place does
//!   not count, as recovery would overwrite it.
//! - Blocks of the log get their class when the descriptor arrives, before anything is stored, so
//!   that copies in the same request have theirs. What a copy is of is looked up in the map of the
//!   moment: the first copy of a block that its own transaction allocates is a copy of a free one.
//! - Fast commits are not replayed; what they say counts from the next full commit on.
//! - A write of a part of a block counts for what it holds in full: inodes, descriptors, bits of
//!   a bitmap, the superblock (of which a copy is kept). Blocks of the log are put together from
//!   their parts. A part of an extent node or indirect block makes the layout be read again.
//! - Where two inodes claim a block, the claim seen last has it.
//!
//! Work for a write is proportional to the write and the entries it changes. Where the map cannot
//! follow from writes alone it asks for [`Change::Reopen`], at a bounded rate.

mod allowance;
mod assembly;
mod candidates;
mod disk;
mod journal;
mod open;
mod replay;
mod tracker;
mod transaction;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::audit::{Commit, LogFormat};
use crate::class::{Class, Home, Kind};
use crate::error::OpenError;
use crate::layout::allowance::Allowance;
use crate::layout::journal::Stage;
use crate::layout::open::Opened;
use crate::layout::tracker::{Effect, Part, Tracker};
use crate::log::Log;
use crate::map::{FsMap, LayoutMap, SECTOR_BYTES, Spot};
use crate::reader::ReadAt;

/// What a write meant for the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Change {
    /// Nothing.
    None,
    /// [`Layout::map`] gives a new snapshot.
    Map,
    /// The map can no longer follow from the writes alone (mkfs, resize, a write that hides what
    /// it replaced): call [`Layout::reopen`] with the storage. Until then [`Layout::map`] is the
    /// best there is.
    Reopen,
}

/// The owner's copy of a layout.
#[derive(Debug)]
pub struct Layout {
    device_bytes: u64,
    map: Arc<LayoutMap>,
    tracker: Option<Box<Tracker>>,
    allowance: Allowance,
    /// Transactions that took effect since the last [`Layout::take_commits`]; `None`: nobody asks.
    commits: Option<Vec<Commit>>,
}

impl Layout {
    /// Reads the metadata of the ext4 file system on `dev`, `device_bytes` long, or in its first
    /// ext4 partition (MBR or GPT). Committed transactions in the log count as done.
    ///
    /// # Errors
    /// The storage failed, or there is no ext4 file system that this crate can map.
    pub fn open(dev: &mut dyn ReadAt, device_bytes: u64) -> Result<Layout, OpenError> {
        let mut layout = Layout::blank(device_bytes);
        layout.reopen(dev, device_bytes)?;
        Ok(layout)
    }

    /// A device about which nothing is known; a later mkfs is noticed.
    pub fn blank(device_bytes: u64) -> Layout {
        Layout {
            device_bytes,
            map: Arc::new(LayoutMap::blank(device_bytes, Arc::default())),
            tracker: None,
            allowance: Allowance::default(),
            commits: None,
        }
    }

    /// From now on, transactions that take effect are kept for [`Layout::take_commits`].
    pub fn keep_commits(&mut self) {
        self.commits.get_or_insert_default();
    }

    /// The transactions that took effect since the last call, oldest first; none without
    /// [`Layout::keep_commits`].
    pub fn take_commits(&mut self) -> Vec<Commit> {
        self.commits.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Opens again from the storage, now `device_bytes` long. On an error the layout is blank and goes on noticing a later
    /// mkfs, on the device or in a partition of it.
    ///
    /// # Errors
    /// As [`Layout::open`].
    pub fn reopen(&mut self, dev: &mut dyn ReadAt, device_bytes: u64) -> Result<(), OpenError> {
        self.device_bytes = device_bytes;
        self.tracker = None;
        self.map = Arc::new(LayoutMap::blank(self.device_bytes, Arc::default()));
        self.allowance.opened(0);
        let partitions = open::partitions(dev, self.device_bytes)?;
        let starts = partitions.iter().map(|partition| partition.first).collect();
        self.map = Arc::new(LayoutMap::blank(self.device_bytes, starts));
        let Opened { map, tracker, bytes_read } = open::open(dev, self.device_bytes, &partitions)?;
        self.map = Arc::new(map);
        self.tracker = Some(Box::new(tracker));
        self.allowance.opened(bytes_read);
        Ok(())
    }

    /// Format and tail of the log, if there is one that is known.
    pub fn log_format(&self) -> Option<LogFormat> {
        self.tracker.as_ref()?.journal.as_ref()?.superblock().map(LogFormat)
    }

    /// An immutable snapshot; cheap, shares structure with earlier ones.
    pub fn map(&self) -> Arc<LayoutMap> {
        Arc::clone(&self.map)
    }

    /// Bytes on the heap, the current map included; shared parts count in full.
    pub fn heap_bytes(&self) -> usize {
        self.map.heap_bytes() + self.tracker.as_ref().map_or(0, |tracker| tracker.heap_bytes())
    }

    /// Learns from a write that has arrived and is not yet stored, before it is classified:
    /// journal descriptors name what the copies after them, in this or later requests, are of.
    pub fn write_arrived(&mut self, sector: u64, bytes: &[u8]) -> Change {
        let sectors = bytes.len() as u64 / SECTOR_BYTES;
        let Some(tracker) = &mut self.tracker else {
            return Change::None;
        };
        if tracker.journal.is_none() || self.map.kinds(sector, sectors) & Kind::LOG == 0 {
            return Change::None;
        }
        let map = Arc::make_mut(&mut self.map);
        let base_sector = map.base_sector;
        let (Some(fs), Some(journal)) = (&mut map.fs, &mut tracker.journal) else {
            return Change::None;
        };
        let mut changed = false;
        let block_bytes = fs.geometry.block_bytes();
        for part in parts(base_sector, block_bytes, sector, bytes) {
            let (Spot::Log(index), _) = fs.at(part.pblk, part.pblk + 1) else {
                continue;
            };
            if let (Some(block), Some(log)) = (part.full(block_bytes), &mut fs.log) {
                changed |= journal.arrived(log, index, block);
            }
        }
        if changed { Change::Map } else { Change::None }
    }

    /// Learns from a write that is stored: metadata in place and commit records take effect.
    pub fn write_done(&mut self, sector: u64, bytes: &[u8]) -> Change {
        let sectors = bytes.len() as u64 / SECTOR_BYTES;
        if !self.map.wants_bytes(sector, sectors) {
            return Change::None;
        }
        self.allowance.earn(bytes.len() as u64);
        let mut effect = Effect::default();
        if self.map.may_announce(sector, sectors) && bytes.iter().any(|byte| *byte != 0) {
            effect |= Effect::REOPEN;
        }
        if let Some(tracker) = &mut self.tracker {
            let map = Arc::make_mut(&mut self.map);
            let base_sector = map.base_sector;
            if let Some(fs) = &mut map.fs {
                let commits = self.commits.as_mut();
                effect |= write_done(tracker, fs, commits, base_sector, sector, bytes);
            }
        }
        self.conclude(effect)
    }

    /// Learns that `sectors` sectors from `sector` on were discarded or zeroed.
    pub fn zeroed(&mut self, sector: u64, sectors: u64) -> Change {
        let Some(tracker) = &mut self.tracker else {
            return Change::None;
        };
        let mut effect = Effect::default();
        self.map.classify(sector, sectors, &mut |span| match span.class {
            Class::Home(Home::Superblock { backup: false }) => effect.gone = true,
            class => effect.reopen |= class.kind().bit() & HELD_KINDS != 0,
        });
        if let Some(fs) = &self.map.fs {
            let per_block = fs.geometry.block_bytes() as u64 / SECTOR_BYTES;
            let block = |sector: u64| sector.saturating_sub(self.map.base_sector) / per_block;
            tracker.forget(block(sector), block(sector.saturating_add(sectors)).saturating_add(1));
        }
        self.conclude(effect)
    }

    fn conclude(&mut self, effect: Effect) -> Change {
        if effect.gone {
            let partitions = Arc::clone(&self.map.partitions);
            self.map = Arc::new(LayoutMap::blank(self.device_bytes, partitions));
            self.tracker = None;
        }
        if effect.reopen {
            self.allowance.ask();
        }
        if self.allowance.take() {
            Change::Reopen
        } else if effect.changed || effect.gone {
            Change::Map
        } else {
            Change::None
        }
    }
}

/// Kinds whose blocks, zeroed, leave the map without ground.
const HELD_KINDS: u32 = Kind::GroupDescriptors.bit()
    | Kind::BlockBitmap.bit()
    | Kind::InodeTable.bit()
    | Kind::ExtentNode.bit()
    | Kind::IndirectBlock.bit()
    | (Kind::LOG & !Kind::JournalIdle.bit());

/// The blocks of the file system that a write touches, with what it writes to each.
fn parts(
    base_sector: u64,
    block_bytes: usize,
    sector: u64,
    bytes: &[u8],
) -> impl Iterator<Item = Part<'_>> {
    let skipped = base_sector.saturating_sub(sector).saturating_mul(SECTOR_BYTES);
    let skipped = usize::try_from(skipped).unwrap_or(usize::MAX).min(bytes.len());
    let mut rest = &bytes[skipped..];
    let mut at = sector.saturating_sub(base_sector).saturating_mul(SECTOR_BYTES);
    std::iter::from_fn(move || {
        let offset = (at % block_bytes as u64) as usize;
        let len = rest.len().min(block_bytes - offset);
        let (part, after) = rest.split_at(len);
        let pblk = at / block_bytes as u64;
        rest = after;
        at = at.saturating_add(len as u64);
        (len > 0).then_some(Part { pblk, offset, bytes: part })
    })
}

fn write_done(
    tracker: &mut Tracker,
    fs: &mut FsMap,
    mut commits: Option<&mut Vec<Commit>>,
    base_sector: u64,
    sector: u64,
    bytes: &[u8],
) -> Effect {
    let block_bytes = fs.geometry.block_bytes();
    let mut effect = Effect::default();
    for part in parts(base_sector, block_bytes, sector, bytes) {
        if !fs.geometry.contains(part.pblk) {
            continue;
        }
        effect |= match fs.at(part.pblk, part.pblk + 1).0 {
            Spot::Log(index) => log_block(tracker, fs, commits.as_deref_mut(), index, part),
            Spot::Home(_) => tracker.take(fs, part),
        };
        if effect.gone {
            return effect;
        }
    }
    effect |= tracker.end_write(fs);
    effect
}

/// A block of the log, or a part of one, is stored.
fn log_block(
    tracker: &mut Tracker,
    fs: &mut FsMap,
    commits: Option<&mut Vec<Commit>>,
    index: u32,
    part: Part<'_>,
) -> Effect {
    let block_bytes = fs.geometry.block_bytes();
    let Some(journal) = &mut tracker.journal else {
        return Effect::default();
    };
    let assembled;
    let mut effect = Effect::default();
    let block = if let Some(block) = part.full(block_bytes) {
        block
    } else {
        let Some(block) = journal.assemble(index, block_bytes, part.offset, part.bytes) else {
            return effect;
        };
        assembled = block;
        if let Some(log) = &mut fs.log {
            effect.changed |= journal.arrived(log, index, &assembled);
        }
        &assembled
    };
    let audited = commits.is_some();
    let needs_bytes = |pblk, block: &[u8]| {
        Tracker::needs_bytes(fs, pblk, block)
            || audited && matches!(fs.home(pblk), Home::InodeBitmap { .. } | Home::OrphanFile)
    };
    match journal.stored(index, block, needs_bytes) {
        Stage::Quiet => {}
        Stage::Lost(tid) => {
            effect |= Effect::REOPEN;
            if let Some(commits) = commits {
                commits.push(Commit { tid, blocks: BTreeMap::new(), lost: true });
            }
        }
        Stage::Superblock(block) => {
            if let Some((superblock, stale)) = journal.set_superblock(block) {
                effect.changed = true;
                effect.reopen |= stale;
                let (blocks, fast_commit) = (superblock.blocks, superblock.fast_commit);
                match &mut fs.log {
                    Some(log) if log.blocks() == blocks && log.fast_commit == fast_commit => {
                        log.tail = superblock.sequence;
                    }
                    log => *log = Some(Log::new(blocks, fast_commit, superblock.sequence)),
                }
            }
        }
        Stage::Committed(tid, blocks) => {
            effect.changed = true;
            effect |= tracker.commit(fs, &blocks);
            if let Some(commits) = commits {
                commits.push(Commit { tid, blocks, lost: false });
            }
        }
    }
    effect
}
