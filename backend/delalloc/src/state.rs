//! The whole state of a run: one file system, one inode, its page cache, locks and threads.
//!
//! In: [`Geometry`]. Out: [`State`], a few hundred bytes without pointers, cheap to clone, compare
//! and fingerprint.
//! Must not know: kernel versions, operations, the search.
//!
//! Left out: quota, inline data beyond one flag, preallocation, the extent tree's shape beyond its
//! leaves, and everything of other inodes.

use std::hash::{Hash, Hasher};

use crate::geometry::{Geometry, Set, each};

mod disk;
mod es;
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
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
}

/// Page cache: folio bits by folio number, buffer bits by block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cache {
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
    /// Data of each block in the cache.
    pub data: Contents,
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
        self.data.fill(blocks, ZERO);
    }
}

/// Where a data write is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IoEnd {
    /// Blocks written.
    pub blocks: Set,
    /// Of those, the ones to convert to written afterwards.
    pub convert: Set,
    /// Where it is.
    pub state: IoState,
}

/// A request of one thread to the device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
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

    /// Whether a flag is set.
    #[inline]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Why an operation fails.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Thread {
    /// Next instruction.
    pub pc: u16,
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
    /// Failure of the operation at hand.
    pub errno: Errno,
    /// Folio (or data write) at which writeback is.
    pub wb: u8,
    /// End of the folios that it covers.
    pub wb_end: u8,
}

impl Thread {
    #[inline]
    fn feed(&self, mix: &mut Mixer) {
        // Blocks and folios are below 32, flags too: five bits each.
        let small = [
            self.cur,
            self.end,
            self.map.lblk,
            self.map.end,
            self.map.pblk,
            self.map.flags,
            self.wb,
            self.wb_end,
        ];
        let packed = small.iter().fold(0, |word, &number| word << 5 | u64::from(number));
        let how = u16::from_le_bytes([self.held, self.wait as u8 | (self.errno as u8) << 4]);
        mix.pair(packed << 16 | u64::from(self.pc), four(self.folios, self.guard, self.aside, how));
    }
}

/// A rule broken in the middle of a step, where no look at the state would show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Broken {
    /// Number of the invariant plus one; 0 if none.
    pub invariant: u8,
    /// Block at fault.
    pub block: u8,
}

/// One file system, inode, page cache and set of threads at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    /// Extent status tree.
    pub es: Es,
    /// Block map, bitmap, data on disk.
    pub disk: Disk,
    /// Page cache.
    pub cache: Cache,
    /// What each block should read as.
    pub want: Contents,
    /// Inode.
    pub inode: Inode,
    /// File system.
    pub fs: Fs,
    /// Semaphores and handles.
    pub locks: Locks,
    /// Data writes of writeback.
    pub io: [IoEnd; IO_ENDS],
    /// Registers.
    pub threads: [Thread; SLOTS],
    /// A rule broken by the last step.
    pub broken: Broken,
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
        let mut mix = Mixer::default();
        self.feed_file(&mut mix);
        self.feed_rest(&mut mix);
        for t in &self.threads {
            t.feed(&mut mix);
        }
        mix.finish()
    }

    /// Gives the mixer what is known about blocks.
    #[inline]
    fn feed_file(&self, mix: &mut Mixer) {
        let (es, disk, cache) = (&self.es, &self.disk, &self.cache);
        mix.pair(
            four(es.written, es.unwritten, es.delayed, es.hole),
            four(es.referenced, es.pending, disk.mapped, disk.unwritten),
        );
        mix.bytes(&es.pblk);
        mix.bytes(&disk.pblk);
        mix.pair(disk.media[0].0, disk.media[1].0);
        mix.pair(
            four(cache.present, cache.locked, cache.dirty, cache.writeback),
            four(cache.mapped, cache.uptodate, cache.buf_dirty, cache.delay),
        );
        mix.pair(
            four(cache.unwritten, cache.in_flight, disk.leaves, cache.ordered),
            u64::from(disk.free) | u64::from(disk.freed) << 32,
        );
        mix.pair(cache.data.0, self.want.0);
    }

    /// Gives the mixer counters, locks and writes in flight.
    #[inline]
    fn feed_rest(&self, mix: &mut Mixer) {
        let (inode, fs, locks) = (&self.inode, &self.fs, &self.locks);
        let flags = u8::from(inode.inline_data)
            | u8::from(inode.orphan) << 1
            | u8::from(inode.gone) << 2
            | u8::from(fs.delalloc) << 3
            | u8::from(fs.bitmap) << 4
            | u8::from(fs.locked) << 5
            | u8::from(fs.shadow) << 6
            | u8::from(fs.bitmap_in_tx) << 7;
        mix.pair(
            u64::from(inode.i_size) | u64::from(inode.i_disksize) << 32,
            u64::from_le_bytes([
                inode.i_blocks as u8,
                inode.reserved as u8,
                inode.dio,
                flags,
                fs.free as u8,
                fs.dirty as u8,
                fs.faults,
                fs.shrinks,
            ]),
        );
        mix.pair(
            u64::from_le_bytes([
                self.broken.invariant,
                self.broken.block,
                locks.count[0],
                locks.count[1],
                locks.count[2],
                locks.handles,
                self.io[0].state as u8,
                self.io[1].state as u8,
            ]),
            four(locks.queue[0], locks.queue[1], locks.queue[2], 0),
        );
        let [a, b] = &self.io;
        mix.pair(four(a.blocks, a.convert, b.blocks, b.convert), 0);
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

#[inline]
fn four(a: u16, b: u16, c: u16, d: u16) -> u64 {
    u64::from(a) | u64::from(b) << 16 | u64::from(c) << 32 | u64::from(d) << 48
}

/// Two lanes of multiply and fold, two words at a time (the scheme of wyhash): independent
/// multiplications, so that they overlap.
struct Mixer {
    lanes: [u64; 2],
}

impl Default for Mixer {
    #[inline]
    fn default() -> Mixer {
        Mixer { lanes: [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344] }
    }
}

impl Mixer {
    #[inline]
    fn pair(&mut self, first: u64, second: u64) {
        let [lane, other] = self.lanes;
        let mixed = fold(first ^ 0x9e37_79b9_7f4a_7c15, second ^ lane);
        self.lanes = [other, mixed];
    }

    #[inline]
    fn bytes(&mut self, bytes: &[u8; 16]) {
        let value = u128::from_le_bytes(*bytes);
        self.pair(value as u64, (value >> 64) as u64);
    }

    #[inline]
    fn finish(&self) -> u64 {
        fold(
            self.lanes[0] ^ 0xa409_3822_299f_31d0,
            self.lanes[1].rotate_left(32) ^ 0x082e_fa98_ec4e_6c89,
        )
    }
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}
