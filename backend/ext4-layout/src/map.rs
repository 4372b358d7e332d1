//! The map from sectors to classes: an immutable snapshot.
//!
//! In: a range of sectors. Out: its classes. A block is looked up in this order, and the first
//! that knows it decides: superblocks and descriptors (arithmetic), bitmaps and inode tables (from
//! the descriptors), the block bitmap (not in use is [`Home::Free`], whatever an inode says), the
//! owner of the block, the log. In use without an owner is [`Home::Unknown`].
//! Must not know: how the parts are kept current.

use std::sync::Arc;

use crate::bits::Bitmaps;
use crate::class::{Class, Home, Kind, Span};
use crate::geometry::Geometry;
use crate::log::{Entry, Log};
use crate::placed::{Part, Placed};
use crate::runs::{Owner, Role, Runs};

/// Bytes in a sector of virtio-blk, whatever the logical block size of the device.
pub(crate) const SECTOR_BYTES: u64 = 512;

/// Sectors in which a partition table may appear: the MBR and a GPT of 128 entries.
pub(crate) const PARTITION_TABLE_SECTORS: u64 = 34;

/// What every sector of a device is; immutable, shared between threads, read without locks.
#[derive(Clone, Debug)]
pub struct LayoutMap {
    pub(crate) device_sectors: u64,
    /// First sector of the file system.
    pub(crate) base_sector: u64,
    /// First sectors of partitions in which a file system may appear.
    pub(crate) partitions: Arc<[u64]>,
    pub(crate) fs: Option<FsMap>,
}

/// The map of a file system, by block.
#[derive(Clone, Debug)]
pub(crate) struct FsMap {
    pub(crate) geometry: Arc<Geometry>,
    pub(crate) placed: Arc<Placed>,
    pub(crate) bitmaps: Bitmaps,
    pub(crate) runs: Runs,
    /// `None` without a journal, or until its superblock is known.
    pub(crate) log: Option<Log>,
    /// Some tree blocks have bytes that are not known yet, so any write may bring them.
    pub(crate) restless: bool,
    /// There are more inodes and extents than are kept, so blocks in use may lack their owner.
    pub(crate) full: bool,
}

/// What a block is, before the log is looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spot {
    Home(Home),
    /// A block of the log, by its number there.
    Log(u32),
}

impl FsMap {
    /// What `pblk` and the blocks after it are, with one past the last block, `limit` at most,
    /// for which that holds. `limit` is above `pblk`.
    pub(crate) fn at(&self, pblk: u64, limit: u64) -> (Spot, u64) {
        let geometry = &*self.geometry;
        if !geometry.contains(pblk) {
            let end =
                if pblk < geometry.first_data_block { geometry.first_data_block } else { limit };
            return (Spot::Home(Home::Unknown), end.min(limit));
        }
        let (base, end) = geometry.base_at(pblk);
        let mut limit = limit.min(end);
        if let Some(home) = base {
            return (Spot::Home(home), limit);
        }
        match geometry.mmp_block {
            Some(mmp) if mmp == pblk => return (Spot::Home(Home::Mmp), pblk + 1),
            Some(mmp) if mmp > pblk => limit = limit.min(mmp),
            _ => {}
        }
        let place = match self.placed.at(pblk) {
            Ok(place) => place,
            Err(next) => return self.in_groups(pblk, limit.min(next)),
        };
        let end = limit.min(place.end);
        let group = place.group;
        let home = match place.part {
            Part::BlockBitmap => Home::BlockBitmap { group },
            Part::InodeBitmap => Home::InodeBitmap { group },
            Part::InodeTable => {
                let last = place.index + (end - pblk - 1) as u32;
                let (first_inode, _) = geometry.inodes_of_table_block(group, place.index);
                let (_, last_inode) = geometry.inodes_of_table_block(group, last);
                Home::InodeTable { group, first_inode, last_inode }
            }
        };
        (Spot::Home(home), end)
    }

    /// What a block is that is none of the metadata which descriptors name; `limit` lies in its
    /// group.
    fn in_groups(&self, pblk: u64, limit: u64) -> (Spot, u64) {
        let (used, end) = self.in_use(pblk, limit);
        if !used {
            return (Spot::Home(Home::Free), end);
        }
        let (owner, end) = self.runs.at(pblk, end);
        (owner.map_or(Spot::Home(Home::Unknown), |owner| spot(owner, end - pblk)), end)
    }

    /// Whether the block bitmap has the block in use, and how far that holds. `limit` lies in the
    /// same group.
    fn in_use(&self, pblk: u64, limit: u64) -> (bool, u64) {
        let geometry = &*self.geometry;
        let group = geometry.group_of(pblk);
        let first = geometry.group_first(group);
        let cluster = |block: u64| ((block - first) >> geometry.cluster_bits) as u32;
        let (used, end) = self.bitmaps.at(group, cluster(pblk), cluster(limit - 1) + 1);
        (used, limit.min(first + (u64::from(end) << geometry.cluster_bits)))
    }

    /// Whether a write to any block may matter. Without a journal a block of a tree may be written
    /// while the map still has it as free or as data, before the inode and the bitmap that say
    /// otherwise.
    pub(crate) fn any_write_counts(&self) -> bool {
        self.restless || self.geometry.journal_inode.is_none()
    }

    /// What a block is at home; blocks of the log have no home of their own.
    pub(crate) fn home(&self, pblk: u64) -> Home {
        match self.at(pblk, pblk.saturating_add(1)) {
            (Spot::Home(home), _) => home,
            (Spot::Log(_), _) => Home::Unknown,
        }
    }

    /// The class of a spot of `blocks` blocks, and for how many of them it holds.
    fn class(&self, spot: Spot, blocks: u64) -> (Class, u64) {
        let index = match spot {
            Spot::Home(home) => return (Class::Home(home), blocks),
            Spot::Log(0) => return (Class::JournalSuperblock, 1),
            Spot::Log(index) => index,
        };
        let Some(log) = self.log.as_ref().filter(|log| index < log.blocks()) else {
            return (Class::JournalIdle, blocks);
        };
        if index >= log.fast_commit {
            return (Class::JournalFastCommit, blocks.min(u64::from(log.blocks() - index)));
        }
        let class = match log.get(index) {
            Entry::Idle => {
                let limit = u64::from(index).saturating_add(blocks).min(log.fast_commit.into());
                let end = log.idle_until(index, limit as u32);
                return (Class::JournalIdle, u64::from(end - index).max(1));
            }
            Entry::Descriptor(tid) => Class::JournalDescriptor { tid },
            Entry::Copy { tid, pblk } => Class::JournalCopy { tid, of: self.home(pblk) },
            Entry::Commit(tid) => Class::JournalCommit { tid },
            Entry::Revoke(tid) => Class::JournalRevoke { tid },
        };
        (class, 1)
    }
}

fn spot(owner: Owner, blocks: u64) -> Spot {
    let inode = owner.ino;
    Spot::Home(match owner.role {
        Role::Data(state) => Home::FileData {
            inode,
            first_lblk: owner.lblk,
            last_lblk: owner.lblk.wrapping_add((blocks - 1) as u32),
            state,
        },
        Role::Directory => Home::Directory { inode },
        Role::Xattr => Home::Xattr { inode },
        Role::ExtentNode { depth } => Home::ExtentNode { inode, depth },
        Role::Indirect => Home::IndirectBlock { inode },
        Role::OrphanFile => Home::OrphanFile,
        Role::Log => return Spot::Log(owner.lblk),
    })
}

/// The class of two adjacent runs as one, if they are one.
fn joined(left: Class, right: Class) -> Option<Class> {
    match (left, right) {
        (
            Class::Home(Home::FileData { inode, first_lblk, last_lblk, state }),
            Class::Home(Home::FileData {
                inode: other,
                first_lblk: next,
                last_lblk: last,
                state: s,
            }),
        ) => (inode == other && state == s && last_lblk.checked_add(1) == Some(next))
            .then_some(Class::Home(Home::FileData { inode, first_lblk, last_lblk: last, state })),
        (
            Class::Home(Home::InodeTable { group, first_inode, last_inode }),
            Class::Home(Home::InodeTable { group: other, first_inode: next, last_inode: last }),
        ) => (group == other && last_inode.checked_add(1) == Some(next))
            .then_some(Class::Home(Home::InodeTable { group, first_inode, last_inode: last })),
        _ => (left == right).then_some(left),
    }
}

impl LayoutMap {
    pub(crate) fn blank(device_bytes: u64, partitions: Arc<[u64]>) -> LayoutMap {
        let device_sectors = device_bytes / SECTOR_BYTES;
        LayoutMap { device_sectors, base_sector: 0, partitions, fs: None }
    }

    /// Sectors of 512 bytes that the device has.
    pub fn device_sectors(&self) -> u64 {
        self.device_sectors
    }

    /// Bytes in a block of the file system, if there is one.
    pub fn block_bytes(&self) -> Option<u64> {
        self.fs.as_ref().map(|fs| fs.geometry.block_bytes() as u64)
    }

    /// Blocks of the file system, as its superblock counts them.
    pub fn block_count(&self) -> Option<u64> {
        self.fs.as_ref().map(|fs| fs.geometry.blocks_count)
    }

    /// Block groups of the file system.
    pub fn group_count(&self) -> Option<u32> {
        self.fs.as_ref().map(|fs| fs.geometry.groups)
    }

    /// The first sector of a block of the file system.
    pub fn sector_of_block(&self, pblk: u64) -> Option<u64> {
        let per_block = self.block_bytes()? / SECTOR_BYTES;
        pblk.checked_mul(per_block)?.checked_add(self.base_sector)
    }

    /// Calls `out` for the maximal runs of one class in the range, in order; they cover the range
    /// exactly. A block that the range touches in part counts as a whole for `lblk` and inode
    /// ranges. Allocates nothing; the cost is logarithmic in the size of the map for each run.
    pub fn classify(&self, sector: u64, sectors: u64, out: &mut impl FnMut(Span)) {
        let mut open: Option<Span> = None;
        self.pieces(sector, sectors, &mut |piece| {
            if let Some(span) = &mut open {
                if let Some(class) = joined(span.class, piece.class) {
                    span.class = class;
                    span.sectors += piece.sectors;
                    return;
                }
                out(*span);
            }
            open = Some(piece);
        });
        if let Some(span) = open {
            out(span);
        }
    }

    fn pieces(&self, sector: u64, sectors: u64, out: &mut impl FnMut(Span)) {
        let end = sector.saturating_add(sectors);
        let mut at = sector;
        let mut emit = |from: u64, to: u64, class: Class| {
            if from < to {
                out(Span { first_sector: from, sectors: to - from, class });
            }
        };
        let unknown = Class::Home(Home::Unknown);
        let Some(fs) = &self.fs else {
            return emit(at, end, unknown);
        };
        if at < self.base_sector {
            let to = end.min(self.base_sector);
            emit(at, to, unknown);
            at = to;
        }
        if at >= end {
            return;
        }
        // log2 of the sectors in a block: a block has 1024 bytes at least.
        let shift = fs.geometry.block_bits - SECTOR_BYTES.trailing_zeros();
        let per_block = 1_u64 << shift;
        let limit = ((end - self.base_sector - 1) >> shift) + 1;
        let mut pblk = (at - self.base_sector) >> shift;
        while pblk < limit {
            let (spot, spot_end) = fs.at(pblk, limit);
            let mut spot = spot;
            while pblk < spot_end {
                let (class, blocks) = fs.class(spot, spot_end - pblk);
                pblk += blocks;
                let to = pblk.saturating_mul(per_block).saturating_add(self.base_sector).min(end);
                emit(at, to, class);
                at = to;
                if let Spot::Log(index) = &mut spot {
                    *index = index.wrapping_add(blocks as u32);
                }
            }
        }
    }

    /// The kinds in the range, as an OR of [`Kind::bit`].
    pub fn kinds(&self, sector: u64, sectors: u64) -> u32 {
        let mut kinds = 0;
        self.pieces(sector, sectors, &mut |piece| {
            kinds |= piece.class.kind().bit();
        });
        kinds
    }

    /// Whether a write there can change the map, so that [`crate::Layout`] must see its bytes.
    pub fn wants_bytes(&self, sector: u64, sectors: u64) -> bool {
        self.wants_bytes_of(sector, sectors, || self.kinds(sector, sectors))
    }

    /// The same, where `kinds` tells the kinds in the range.
    pub fn wants_bytes_of(&self, sector: u64, sectors: u64, kinds: impl FnOnce() -> u32) -> bool {
        if self.may_announce(sector, sectors) {
            return true;
        }
        let Some(fs) = &self.fs else { return false };
        fs.any_write_counts() || kinds() & WANTED != 0
    }

    /// Whether a partition table or a first superblock may be written there.
    pub(crate) fn may_announce(&self, sector: u64, sectors: u64) -> bool {
        let touches = |first: u64, len: u64| {
            sectors > 0
                && sector < first.saturating_add(len)
                && first < sector.saturating_add(sectors)
        };
        if self.fs.is_some() {
            return self.base_sector > 0 && touches(0, PARTITION_TABLE_SECTORS);
        }
        touches(0, PARTITION_TABLE_SECTORS)
            || self.partitions.iter().any(|first| touches(first.saturating_add(2), 2))
    }

    /// Bytes that the map has on the heap; shared parts count in full.
    pub fn heap_bytes(&self) -> usize {
        let fs = self.fs.as_ref().map_or(0, |fs| {
            size_of::<Geometry>()
                + fs.placed.heap_bytes()
                + fs.bitmaps.heap_bytes()
                + fs.runs.heap_bytes()
                + fs.log.as_ref().map_or(0, Log::heap_bytes)
        });
        fs + self.partitions.len() * size_of::<u64>()
    }
}

/// Kinds whose blocks say where other blocks are.
const WANTED: u32 = Kind::Superblock.bit()
    | Kind::GroupDescriptors.bit()
    | Kind::BlockBitmap.bit()
    | Kind::InodeTable.bit()
    | Kind::ExtentNode.bit()
    | Kind::IndirectBlock.bit()
    | Kind::LOG;
