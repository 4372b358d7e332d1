//! What a checker of the disk asks for beyond labels: the log's format, claims that contradict
//! each other, what a transaction changed.
//!
//! In: a map, blocks of the log. Out: the same parse that keeps the map current, so that a checker
//! and the labels cannot differ in how they read a disk.
//! Must not know: what is right or wrong.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::bytes::{crc32c, u16_le};
use crate::class::{Class, Group, Home, Ino, Kind, Tid, Written};
use crate::descriptor::Descriptor;
use crate::extent;
use crate::inode;
use crate::jbd2::descriptor::{self, Tag};
use crate::jbd2::superblock::JournalSuperblock;
use crate::jbd2::{BlockType, commit, header, revoke};
use crate::map::{FsMap, LayoutMap, SECTOR_BYTES, Spot};
use crate::runs::{Owner, Role};

/// A transaction that took effect: the commit record and all before it are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// `h_sequence`.
    pub tid: Tid,
    /// The blocks that decide about others (superblock, descriptors, bitmaps, inode tables, trees),
    /// with what they hold now.
    pub blocks: BTreeMap<u64, Box<[u8]>>,
    /// Some of it was not seen: the layout asked to be read again.
    pub lost: bool,
}

/// What does not change while a file system is in use, short of a resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Blocks of the file system, those before `first_block` included.
    pub blocks: u64,
    /// `s_first_data_block`.
    pub first_block: u64,
    /// Block groups.
    pub groups: u32,
    /// log2 of the blocks in a cluster.
    pub cluster_bits: u32,
    /// Bytes of an inode.
    pub inode_bytes: usize,
    /// Inodes of the file system.
    pub inodes: u64,
    /// Inodes of a group.
    pub inodes_per_group: u32,
    /// Bytes of a group descriptor.
    pub descriptor_bytes: usize,
    /// Seed of metadata checksums, with `metadata_csum`.
    pub checksum_seed: Option<u32>,
    /// `gdt_csum` or `metadata_csum`: `BLOCK_UNINIT` counts.
    pub uninit_groups: bool,
    /// Inode of the log.
    pub journal_inode: Option<Ino>,
    /// Feature `orphan_file`.
    pub orphan_file: bool,
    /// compat, incompat and ro_compat.
    pub features: [u32; 3],
    /// `s_uuid`.
    pub uuid: [u8; 16],
}

/// Format and live part of a log, from its superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFormat(pub(crate) JournalSuperblock);

/// One tag of a descriptor: what the copy at the same place of the sequence is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogTag(Tag);

/// What a block of the log is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogBlock {
    /// A descriptor; no tags if its checksum fails.
    Descriptor {
        /// Transaction.
        tid: Tid,
        /// In the order of the copies after it.
        tags: Option<Vec<LogTag>>,
    },
    /// A revoke record; no blocks if its checksum fails.
    Revoke {
        /// Transaction.
        tid: Tid,
        /// Blocks whose copies, in this transaction and before, must not be replayed.
        blocks: Option<Vec<u64>>,
    },
    /// A commit record.
    Commit {
        /// Transaction.
        tid: Tid,
        /// Its checksum fits, or there is none.
        sound: bool,
    },
    /// A copy, or anything else.
    Other,
}

impl LogFormat {
    /// Parses block 0 of a log.
    pub fn parse(block: &[u8]) -> Option<LogFormat> {
        JournalSuperblock::parse(block, u32::MAX).map(LogFormat)
    }

    /// First transaction that recovery would look for (`s_sequence`).
    pub fn sequence(&self) -> Tid {
        self.0.sequence
    }

    /// Where recovery would look; `None` when the log is empty.
    pub fn start(&self) -> Option<u32> {
        self.0.start
    }

    /// Blocks of the log that hold transactions.
    pub fn blocks(&self) -> Range<u32> {
        self.0.first..self.0.fast_commit
    }

    /// The log has an area for fast commits.
    pub fn has_fast_commits(&self) -> bool {
        self.0.fast_commit < self.0.blocks
    }

    /// The commit record may be stored before the copies (`journal_async_commit`).
    pub fn async_commit(&self) -> bool {
        self.0.async_commit
    }

    /// The block `by` blocks after `index`, wrapping at the end.
    pub fn after(&self, index: u32, by: u32) -> u32 {
        self.0.after(index, by)
    }

    /// Parses a full block of the log.
    pub fn read(&self, block: &[u8]) -> LogBlock {
        let format = self.0.format;
        match header(block) {
            Some((BlockType::Descriptor, tid)) => {
                let tags = descriptor::parse(block, format);
                let tags = tags.map(|tags| tags.into_iter().map(LogTag).collect());
                LogBlock::Descriptor { tid, tags }
            }
            Some((BlockType::Revoke, tid)) => {
                LogBlock::Revoke { tid, blocks: revoke::parse(block, format) }
            }
            Some((BlockType::Commit, tid)) => {
                LogBlock::Commit { tid, sound: commit::checksum_fits(block, format) }
            }
            _ => LogBlock::Other,
        }
    }

    /// Whether a copy, as stored in the log, has its tag's checksum.
    pub fn fits(&self, tag: LogTag, tid: Tid, copy: &[u8]) -> bool {
        tag.0.checksum_fits(copy, tid, self.0.format)
    }
}

impl LogTag {
    /// The block that the copy is of.
    pub fn pblk(self) -> u64 {
        self.0.pblk
    }

    /// The copy's first four bytes stand for the magic number.
    pub fn escaped(self) -> bool {
        self.0.escaped
    }
}

/// Two claims to the same blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contest {
    /// First block.
    pub first: u64,
    /// One past the last.
    pub end: u64,
    /// Who has them.
    pub holder: Ino,
    /// Who claims them too.
    pub other: Ino,
}

impl LayoutMap {
    /// What does not change; `None` without a file system.
    pub fn facts(&self) -> Option<Facts> {
        let fs = self.fs.as_ref()?;
        let geometry = &*fs.geometry;
        Some(Facts {
            block_bytes: geometry.block_bytes(),
            blocks: geometry.blocks_count,
            first_block: geometry.first_data_block,
            groups: geometry.groups,
            cluster_bits: geometry.cluster_bits,
            inode_bytes: geometry.inode_bytes,
            inodes: geometry.inodes_count(),
            inodes_per_group: geometry.inodes_per_group,
            descriptor_bytes: geometry.desc_bytes,
            checksum_seed: geometry.checksum_seed,
            uninit_groups: geometry.uninit_groups,
            journal_inode: geometry.journal_inode,
            orphan_file: geometry.orphan_inode.is_some(),
            features: geometry.features,
            uuid: geometry.uuid,
        })
    }

    /// The block that holds a sector.
    pub fn block_of_sector(&self, sector: u64) -> Option<u64> {
        let per_block = self.block_bytes()? / SECTOR_BYTES;
        Some(sector.checked_sub(self.base_sector)? / per_block)
    }

    /// The groups whose descriptors the block holds, if it is one of the primary descriptors.
    pub fn groups_of_descriptors(&self, pblk: u64) -> Option<Range<Group>> {
        let geometry = &*self.fs.as_ref()?.geometry;
        let first = geometry.gdt_index(pblk)?.checked_mul(geometry.descs_per_block)?;
        Some(first..geometry.groups.min(first.saturating_add(geometry.descs_per_block)))
    }

    /// What a block is, and one past the last block, `limit` at most and above `pblk`, for which
    /// that holds. Blocks of the log are `Err` with their number in the log.
    pub fn block(&self, pblk: u64, limit: u64) -> (Result<Home, u32>, u64) {
        let Some(fs) = &self.fs else {
            return (Ok(Home::Unknown), limit);
        };
        match fs.at(pblk, limit) {
            (Spot::Home(home), end) => (Ok(home), end),
            (Spot::Log(index), end) => (Err(index), end),
        }
    }

    /// The inode whose tree claims a block, whatever the bitmap says, and one past the last block,
    /// `limit` at most, for which that holds.
    pub fn claimant(&self, pblk: u64, limit: u64) -> (Option<Ino>, u64) {
        match &self.fs {
            Some(fs) => {
                let (owner, end) = fs.runs.at(pblk, limit);
                (owner.map(|owner| owner.ino), end)
            }
            None => (None, limit),
        }
    }

    /// Some blocks of trees have contents that are not known, or there are too many trees.
    pub fn has_gaps(&self) -> bool {
        self.fs.as_ref().is_some_and(|fs| fs.restless || fs.full)
    }

    /// Free clusters of a group by its bitmap.
    pub fn free_clusters(&self, group: Group) -> Option<u32> {
        let fs = self.fs.as_ref()?;
        let geometry = &*fs.geometry;
        if group >= geometry.groups {
            return None;
        }
        let blocks = geometry.group_end(group) - geometry.group_first(group);
        let clusters = blocks.div_ceil(1 << geometry.cluster_bits) as u32;
        Some(fs.bitmaps.free(group, clusters))
    }

    /// Blocks that two inodes claim.
    pub fn contests(&self) -> impl Iterator<Item = Contest> {
        self.fs.iter().flat_map(|fs| fs.runs.contests())
    }

    /// Whether the range holds nothing but file data that is written: what happens there says
    /// nothing about the file system.
    pub fn is_written_data(&self, sector: u64, sectors: u64) -> bool {
        let Some(fs) = &self.fs else { return false };
        let per_block = fs.geometry.block_bytes() as u64 / SECTOR_BYTES;
        let Some(first) = sector.checked_sub(self.base_sector) else { return false };
        let mut at = first / per_block;
        let end = first.saturating_add(sectors).div_ceil(per_block);
        while at < end {
            match fs.at(at, end) {
                (Spot::Home(Home::FileData { state: Written::Written, .. }), next) => at = next,
                _ => return false,
            }
        }
        sectors > 0
    }

    /// The runs of clusters whose bit in `new`, the group's bitmap to be, differs from what it is
    /// now: first block, one past the last, and whether they are in use then.
    pub fn bitmap_changes(&self, group: Group, new: &[u8], out: &mut impl FnMut(u64, u64, bool)) {
        let Some(fs) = &self.fs else { return };
        let geometry = &*fs.geometry;
        if group >= geometry.groups {
            return;
        }
        let first = geometry.group_first(group);
        let end = geometry.group_end(group);
        let block = |cluster: u32| end.min(first + (u64::from(cluster) << geometry.cluster_bits));
        fs.bitmaps.changes(group, new, &mut |from, to, used| {
            if block(from) < block(to) {
                out(block(from), block(to), used);
            }
        });
    }

    /// Whether the inode's checksum fits, or there is none; `raw` is the whole inode.
    pub fn inode_fits(&self, ino: Ino, raw: &[u8]) -> bool {
        self.fs.as_ref().is_none_or(|fs| inode::checksum_fits(raw, &fs.geometry, ino))
    }

    /// Whether the checksum of an extent node fits, or there is none.
    pub fn node_fits(&self, ino: Ino, generation: u32, block: &[u8]) -> bool {
        let seed = self.fs.as_ref().and_then(|fs| fs.geometry.checksum_seed);
        seed.is_none_or(|seed| extent::checksum_fits(block, seed, ino, generation))
    }

    /// Whether a group descriptor's checksum fits, or there is none.
    pub fn descriptor_fits(&self, group: Group, raw: &[u8]) -> bool {
        self.fs.as_ref().is_none_or(|fs| Descriptor::parse(raw, &fs.geometry, group).is_some())
    }

    /// Whether a descriptor has the checksum of its group's block bitmap, or there is none
    /// (`ext4_block_bitmap_csum_verify`).
    pub fn bitmap_fits(&self, descriptor: &[u8], bitmap: &[u8]) -> bool {
        let Some(fs) = &self.fs else { return true };
        let Some(seed) = fs.geometry.checksum_seed else { return true };
        let clusters = fs.geometry.blocks_per_group >> fs.geometry.cluster_bits;
        let covered = bitmap.get(..clusters as usize / 8).unwrap_or(bitmap);
        let sum = crc32c(seed, covered);
        let low = u16_le(descriptor, 0x18).is_some_and(|low| low == sum as u16);
        let wide = fs.geometry.desc_bytes >= 64;
        low && (!wide || u16_le(descriptor, 0x38) == Some((sum >> 16) as u16))
    }

    /// Any write may matter to the map: see [`LayoutMap::wants_bytes`].
    pub fn any_write_counts(&self) -> bool {
        self.fs.as_ref().is_some_and(FsMap::any_write_counts)
    }

    /// The kind of one block.
    pub fn kind_of_block(&self, pblk: u64) -> Kind {
        match self.block(pblk, pblk.saturating_add(1)).0 {
            Ok(home) => home.kind(),
            Err(0) => Class::JournalSuperblock.kind(),
            Err(_) => Kind::JournalIdle,
        }
    }
}

impl Owner {
    /// Blocks of the log and shared attribute blocks have no contest.
    pub(crate) fn is_exclusive(&self) -> bool {
        !matches!(self.role, Role::Xattr | Role::Log)
    }
}
