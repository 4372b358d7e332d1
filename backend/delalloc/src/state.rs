//! The whole state of a run: one file system, one inode, its page cache, locks and threads.
//!
//! In: [`Geometry`]. Out: [`State`], a few hundred bytes without pointers, cheap to clone, compare
//! and fingerprint.
//! Must not know: kernel versions, operations, the search.
//!
//! Left out: quota, inline data beyond one flag, preallocation, the extent tree's shape beyond its
//! leaves, and everything of other inodes.

use std::hash::{Hash, Hasher};

use zerocopy::{Immutable, IntoBytes};

use crate::geometry::{Geometry, Set, each};

mod disk;
mod es;
mod fingerprint;
mod locks;

pub use disk::{ANY, Content, Contents, Disk, STALE, ZERO};
pub use es::{Es, Status};
pub use locks::{Locks, Mode, Rwsem};

/// Threads that have registers: users and the end-of-I/O worker.
/// With more, a state is compared and hashed more slowly; three users are enough for every mutant.
pub const SLOTS: usize = 4;
/// Data writes that can be outstanding.
pub const IO_ENDS: usize = 2;

/// Counters of the file system.
#[allow(clippy::struct_excessive_bools, reason = "independent switches")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct Fs {
    /// `s_freeclusters_counter`.
    pub free: i8,
    /// `s_dirtyclusters_counter`.
    pub dirty: i8,
    /// Mounted with delayed allocation.
    pub delalloc: bool,
    /// The block bitmap is in memory.
    pub bitmap: bool,
    /// The running transaction has changed the block bitmap.
    pub bitmap_in_tx: bool,
    /// The log copy of the bitmap is being written: nobody may change it (`BH_Shadow`).
    pub shadow: bool,
    /// The running transaction waits for its handles to end, and takes no new one.
    pub locked: bool,
    /// Faults that may still be injected.
    pub faults: u8,
    /// Entries that the shrinker may still take.
    pub shrinks: u8,
}

/// The inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct Inode {
    /// Size seen by users, in bytes.
    pub i_size: u32,
    /// Size that goes to disk, in bytes.
    pub i_disksize: u32,
    /// Clusters accounted to the inode (`i_blocks` in clusters; data only).
    pub i_blocks: i8,
    /// `i_reserved_data_blocks`, in clusters.
    pub reserved: i8,
    /// Direct I/O in flight.
    pub dio: u8,
    /// The inline-data flag is still set (block 0 is delayed, its conversion not written back).
    pub inline_data: bool,
    /// On the orphan list.
    pub orphan: bool,
    /// Evicted.
    pub gone: bool,
    /// A system call has written to the inode, or changed its blocks (`S_NOSEC`).
    pub nosec: bool,
    /// Fills the struct up.
    gap: u8,
}

/// Page cache: folio bits by folio number, buffer bits by block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct Cache {
    /// Data of each block in the cache.
    pub data: Contents,
    /// Folios present.
    pub present: Set,
    /// Folios locked.
    pub locked: Set,
    /// Folios dirty.
    pub dirty: Set,
    /// Folios under writeback.
    pub writeback: Set,
    /// Buffers mapped.
    pub mapped: Set,
    /// Buffers up to date.
    pub uptodate: Set,
    /// Buffers dirty.
    pub buf_dirty: Set,
    /// Buffers delayed.
    pub delay: Set,
    /// Buffers over unwritten blocks.
    pub unwritten: Set,
    /// Buffers whose write is in flight (`async_write`).
    pub in_flight: Set,
    /// Blocks whose data a commit writes first (`jbd2_inode_add_write`).
    pub ordered: Set,
    /// Blocks in which a store through a mapping has left bytes behind the end of the file.
    pub behind_eof: Set,
}

impl Cache {
    /// Takes the buffers of `blocks` away.
    pub fn discard(&mut self, blocks: Set) {
        let keep = !blocks;
        self.mapped &= keep;
        self.uptodate &= keep;
        self.buf_dirty &= keep;
        self.delay &= keep;
        self.unwritten &= keep;
        self.in_flight &= keep;
        self.behind_eof &= keep;
        self.data.fill(blocks, ZERO);
    }
}

/// Where a data write is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, IntoBytes, Immutable)]
#[repr(u16)]
pub enum IoState {
    /// No write.
    #[default]
    Idle,
    /// At the device.
    AtDevice,
    /// Written; unwritten extents wait for their conversion.
    ToConvert,
    /// The device failed it; the worker has yet to end it.
    Failed,
}

/// One `ext4_io_end`: a data write of writeback.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct IoEnd {
    /// Blocks written.
    pub blocks: Set,
    /// Of those, the ones to convert to written afterwards.
    pub convert: Set,
    /// Where it is.
    pub state: IoState,
}

/// A request of one thread to the device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, IntoBytes, Immutable)]
#[repr(u8)]
pub enum Wait {
    /// None.
    #[default]
    None,
    /// Block-bitmap read (RB).
    Bitmap,
    /// Extent-leaf read (RX).
    Leaf,
    /// Data read (RD).
    Data,
    /// Data write of direct I/O (WD).
    DirectWrite,
    /// Data read of direct I/O (RD).
    DirectRead,
    /// Log blocks of a commit (WL).
    Log,
}

/// What `ext4_map_blocks` has found so far (`struct ext4_map_blocks`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct Map {
    /// First block.
    pub lblk: u8,
    /// End of the range (not its length).
    pub end: u8,
    /// Physical block of `lblk` if mapped, else 0.
    pub pblk: u8,
    /// `EXT4_MAP_UNWRITTEN`, `EXT4_MAP_DELAYED` and [`Map::NEW`].
    pub flags: u8,
}

impl Map {
    /// The blocks are in an unwritten extent.
    pub const UNWRITTEN: u8 = 1;
    /// The blocks were delayed when they were looked up.
    pub const DELAYED: u8 = 2;
    /// The blocks were allocated just now.
    pub const NEW: u8 = 4;
    /// The result must not be put into the extent status tree: a delayed extent is in the way.
    pub const NO_CACHE: u8 = 8;
    /// The hole found has delayed blocks in it.
    pub const HIDES: u8 = 16;
    /// Extent status has not changed since the mapping was made: its `m_seq` is `i_es_seq`.
    pub const SEQ: u8 = 32;

    /// Whether a flag is set.
    #[inline]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Why an operation fails.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, IntoBytes, Immutable)]
#[repr(u16)]
pub enum Errno {
    /// It does not.
    #[default]
    Ok,
    /// Out of memory.
    Enomem,
    /// Out of space.
    Enospc,
    /// The device failed a request.
    Eio,
    /// Refused.
    Einval,
    /// Beyond the end of the file: a fault gets SIGBUS.
    Fault,
}

/// Registers of one thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct Thread {
    /// Next instruction.
    pub pc: u16,
    /// Failure of the operation at hand.
    pub errno: Errno,
    /// Block at which the operation is.
    pub cur: u8,
    /// End of the range on which it works.
    pub end: u8,
    /// The mapping at hand.
    pub map: Map,
    /// Folios whose lock it holds.
    pub folios: Set,
    /// Folios that it has dropped and that must stay away.
    pub guard: Set,
    /// Blocks put aside (writeback: blocks to convert after the write).
    pub aside: Set,
    /// Locks held: see [`Locks`].
    pub held: u8,
    /// Outstanding request.
    pub wait: Wait,
    /// Folio (or data write) at which writeback is.
    pub wb: u8,
    /// End of the folios that it covers.
    pub wb_end: u8,
}

/// A rule broken in the middle of a step, where no look at the state would show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct Broken {
    /// Number of the invariant plus one; 0 if none.
    pub invariant: u8,
    /// Block at fault.
    pub block: u8,
}

/// One file system, inode, page cache and set of threads at one moment.
///
/// Laid out without a gap, so that its bytes are all of it: they are what is hashed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub struct State {
    /// Block map, bitmap, data on disk.
    pub disk: Disk,
    /// Page cache.
    pub cache: Cache,
    /// What each block should read as.
    pub want: Contents,
    /// Inode.
    pub inode: Inode,
    /// Extent status tree.
    pub es: Es,
    /// Registers.
    pub threads: [Thread; SLOTS],
    /// Data writes of writeback.
    pub io: [IoEnd; IO_ENDS],
    /// Semaphores and handles.
    pub locks: Locks,
    /// File system.
    pub fs: Fs,
    /// A rule broken by the last step.
    pub broken: Broken,
    /// Fills the struct up.
    gap: [u8; 3],
}

impl State {
    /// An empty file on a file system mounted with delayed allocation.
    pub fn new(geo: &Geometry) -> State {
        let disk = Disk::new(geo);
        State {
            es: Es::default(),
            cache: Cache::default(),
            want: Contents(0),
            inode: Inode::default(),
            fs: Fs {
                free: (disk.free.count_ones() >> geo.cluster_shift) as i8,
                delalloc: true,
                bitmap: true,
                ..Fs::default()
            },
            locks: Locks::default(),
            io: [IoEnd::default(); IO_ENDS],
            threads: [Thread::default(); SLOTS],
            broken: Broken::default(),
            gap: [0; 3],
            disk,
        }
    }

    /// Clusters that hold a delayed-only block, less those whose space is there already.
    pub fn reservation_due(&self, geo: &Geometry) -> i8 {
        let delayed = self.es.delayed_only();
        if geo.cluster_shift == 0 {
            delayed.count_ones() as i8
        } else {
            geo.clusters_of(delayed).count_ones() as i8 - self.es.pending.count_ones() as i8
        }
    }

    /// What a user would read from `block` now, with the page cache as it is.
    pub fn read(&self, geo: &Geometry, block: u8) -> Content {
        let in_cache = self.cache.present & (1 << geo.folio(block)) != 0
            && self.cache.uptodate & (1 << block) != 0;
        if in_cache {
            return self.cache.data.get(block);
        }
        self.read_disk(block)
    }

    /// What a user would read from `block` with an empty page cache.
    #[inline]
    pub fn read_disk(&self, block: u8) -> Content {
        if self.disk.written() & (1 << block) != 0 {
            return self.disk.media(self.disk.pblk[usize::from(block)]);
        }
        ZERO
    }

    /// 64 bits that stand for the state.
    #[inline]
    pub fn fingerprint(&self) -> u64 {
        fingerprint::of(self.as_bytes())
    }

    /// Blocks of a set as text: `0,2,3`.
    pub(crate) fn blocks_text(set: Set) -> String {
        each(set).map(|b| b.to_string()).collect::<Vec<_>>().join(",")
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.fingerprint());
    }
}
