//! The log at the time of opening: what recovery would find (`do_one_pass` of
//! `fs/jbd2/recovery.c`), without writing anything.
//!
//! In: the journal's inode and the blocks of the log. Out: the committed copies that count, the
//! entries of the log, and the transaction that was being written.

use std::collections::BTreeMap;

use crate::class::{Ino, Tid};
use crate::descriptor::Descriptor;
use crate::error::OpenError;
use crate::extent;
use crate::geometry::Geometry;
use crate::indirect;
use crate::inode::Inode;
use crate::jbd2::descriptor::Tag;
use crate::jbd2::superblock::JournalSuperblock;
use crate::jbd2::{BlockType, commit, descriptor, header, revoke};
use crate::layout::disk::{Disk, LogCopy};
use crate::layout::transaction::{Piece, Transaction};
use crate::log::{Entry, Log, not_older};
use crate::mapping::{Child, Extent, Tree};

/// Tree blocks of the journal's inode read at most: far more than a log of 4 GiB needs.
const TREE_BLOCKS_MAX: usize = 1 << 16;

/// The journal as found.
pub(crate) struct Replay {
    /// Blocks that the journal's inode maps.
    pub(crate) file_blocks: u32,
    pub(crate) superblock: Option<JournalSuperblock>,
    pub(crate) log: Option<Log>,
    pub(crate) copies: BTreeMap<u64, LogCopy>,
    /// The transaction of the newest committed copy of each block.
    pub(crate) covered: BTreeMap<u64, Tid>,
    /// The transaction after the last complete one, if it has begun.
    pub(crate) running: Option<(Tid, Transaction)>,
    /// Where in the log the next transaction starts, if one was found before it.
    pub(crate) next: Option<u32>,
}

/// Reads the journal of inode `ino`; its copies count only when `needs_recovery` is set, as the
/// kernel throws the log away otherwise (`ext4_load_journal`).
pub(crate) fn read(
    disk: &mut Disk<'_>,
    geometry: &Geometry,
    ino: Ino,
    needs_recovery: bool,
) -> Result<Replay, OpenError> {
    let extents = journal_extents(disk, geometry, ino)?;
    let file_blocks = extents.last().map_or(0, |last| last.lblk.saturating_add(last.len));
    let mut replay = Replay {
        file_blocks,
        superblock: None,
        log: None,
        copies: BTreeMap::new(),
        covered: BTreeMap::new(),
        running: None,
        next: None,
    };
    let Some(first) = place_in(&extents, 0) else {
        return Ok(replay);
    };
    let Some(superblock) = JournalSuperblock::parse(&disk.raw_block(first)?, file_blocks) else {
        return Ok(replay);
    };
    replay.superblock = Some(superblock);
    let mut scan = Scan {
        superblock,
        extents,
        log: Log::new(superblock.blocks, superblock.fast_commit, superblock.sequence),
        committed: Vec::new(),
        revoked: BTreeMap::new(),
        next: None,
    };
    if let Some(start) = superblock.start.filter(|_| needs_recovery) {
        replay.running = scan.run(disk, start)?;
    }
    replay.next = scan.next;
    for (tid, index, tag) in &scan.committed {
        let revoked = scan.revoked.get(&tag.pblk).is_some_and(|by| not_older(*by, *tid));
        if let Some(at) = place_in(&scan.extents, *index).filter(|_| !revoked) {
            replay.copies.insert(tag.pblk, LogCopy { at, escaped: tag.escaped });
            replay.covered.insert(tag.pblk, *tid);
        }
    }
    replay.log = Some(scan.log);
    Ok(replay)
}

struct Scan {
    superblock: JournalSuperblock,
    extents: Vec<Extent>,
    log: Log,
    /// Tags of complete transactions, with the place of their copies in the log.
    committed: Vec<(Tid, u32, Tag)>,
    /// The newest transaction that revoked a block.
    revoked: BTreeMap<u64, Tid>,
    next: Option<u32>,
}

impl Scan {
    fn run(
        &mut self,
        disk: &mut Disk<'_>,
        start: u32,
    ) -> Result<Option<(Tid, Transaction)>, OpenError> {
        let format = self.superblock.format;
        let mut tid = self.superblock.sequence;
        let mut index = start;
        let mut left = self.superblock.usable();
        let mut running = Transaction::default();
        while left > 0 {
            let Some(pblk) = place_in(&self.extents, index) else {
                break;
            };
            let block = disk.raw_block(pblk)?;
            let Some((kind, found)) = header(&block) else {
                break;
            };
            if found != tid {
                break;
            }
            let mut len = 1;
            match kind {
                BlockType::Descriptor => {
                    let Some(tags) = descriptor::parse(&block, format) else {
                        break;
                    };
                    len += tags.len() as u32;
                    if len > left {
                        break;
                    }
                    running.pieces.insert(index, Piece::Descriptor);
                    self.log.set(index, Entry::Descriptor(tid));
                    for (tag, place) in tags.into_iter().zip(1..) {
                        let at = self.superblock.after(index, place);
                        self.log.set(at, Entry::Copy { tid, pblk: tag.pblk });
                        running.pieces.insert(at, Piece::Copy(tag));
                    }
                }
                BlockType::Revoke => {
                    let Some(revoked) = revoke::parse(&block, format) else {
                        break;
                    };
                    self.log.set(index, Entry::Revoke(tid));
                    running.pieces.insert(index, Piece::Revoke(revoked));
                }
                BlockType::Commit => {
                    if !commit::checksum_fits(&block, format) {
                        break;
                    }
                    self.log.set(index, Entry::Commit(tid));
                    self.commit(tid, std::mem::take(&mut running));
                    tid = tid.wrapping_add(1);
                    self.next = Some(self.superblock.after(index, 1));
                }
                BlockType::SuperblockV1 | BlockType::SuperblockV2 => break,
            }
            left -= len;
            index = self.superblock.after(index, len);
        }
        running.from_log = true;
        Ok((!running.pieces.is_empty()).then_some((tid, running)))
    }

    fn commit(&mut self, tid: Tid, transaction: Transaction) {
        // In the order of the log, which the wrap may have split.
        let (wrapped, straight): (Vec<_>, Vec<_>) = transaction
            .pieces
            .into_iter()
            .partition(|(index, _)| self.superblock.start.is_some_and(|start| *index < start));
        for (index, piece) in straight.into_iter().chain(wrapped) {
            match piece {
                Piece::Copy(tag) => self.committed.push((tid, index, tag)),
                Piece::Revoke(blocks) => {
                    self.revoked.extend(blocks.into_iter().map(|pblk| (pblk, tid)));
                }
                Piece::Descriptor => {}
            }
        }
    }
}

/// What the journal's inode maps, in logical order; read without the log, as recovery has to.
fn journal_extents(
    disk: &mut Disk<'_>,
    geometry: &Geometry,
    ino: Ino,
) -> Result<Vec<Extent>, OpenError> {
    let Some(inode) = raw_inode(disk, geometry, ino)? else {
        return Ok(Vec::new());
    };
    let mut extents = inode.root.extents.to_vec();
    let mut todo: Vec<Child> = inode.root.children.to_vec();
    let mut left = TREE_BLOCKS_MAX;
    while let Some(child) = todo.pop().filter(|_| left > 0) {
        left -= 1;
        let block = disk.raw_block(child.pblk)?;
        let mapping = match inode.tree {
            Tree::Extents => extent::parse(&block, geometry, Some(child.depth)).unwrap_or_default(),
            Tree::Indirect => indirect::parse(&block, geometry, child.depth, child.lblk),
        };
        extents.extend(mapping.extents);
        todo.extend(mapping.children);
    }
    extents.sort_unstable_by_key(|extent| extent.lblk);
    Ok(extents)
}

fn raw_inode(
    disk: &mut Disk<'_>,
    geometry: &Geometry,
    ino: Ino,
) -> Result<Option<Inode>, OpenError> {
    let Some(number) = ino.checked_sub(1) else {
        return Ok(None);
    };
    let group = number / geometry.inodes_per_group;
    let Some(gdt_block) = geometry.gdt_block(group / geometry.descs_per_block) else {
        return Ok(None);
    };
    let block = disk.raw_block(gdt_block)?;
    let at = (group % geometry.descs_per_block) as usize * geometry.desc_bytes;
    let Some(descriptor) = Descriptor::parse(&block[at..], geometry, group) else {
        return Ok(None);
    };
    let index = number % geometry.inodes_per_group;
    let table_block = u64::from(index / geometry.inodes_per_block());
    let block = disk.raw_block(descriptor.inode_table + table_block)?;
    let at = (index % geometry.inodes_per_block()) as usize * geometry.inode_bytes;
    Ok(Inode::parse(&block[at..at + geometry.inode_bytes], geometry, ino))
}

/// The block of the device that holds a logical block.
fn place_in(extents: &[Extent], lblk: u32) -> Option<u64> {
    let after = extents.partition_point(|extent| extent.lblk <= lblk);
    let extent = extents.get(after.checked_sub(1)?)?;
    let offset = lblk - extent.lblk;
    (offset < extent.len).then(|| extent.pblk + u64::from(offset))
}
