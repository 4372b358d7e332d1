//! What is on disk: the block map of the file, the allocator's bitmap, and data by physical block.

use zerocopy::{Immutable, IntoBytes};

use crate::geometry::{Geometry, PBLKS_MAX, Set, bit, each, span};

/// Data of one block, as far as the model tells data apart.
pub type Content = u8;
/// Reads as zeroes.
pub const ZERO: Content = 0;
/// Anything may be read: the device failed the write that would have decided.
pub const ANY: Content = 14;
/// An earlier owner's bytes: nobody may ever see them.
pub const STALE: Content = 15;

/// One small number a block, for sixteen blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(transparent)]
pub struct Contents(pub u64);

impl Contents {
    /// Data of a block.
    #[inline]
    pub fn get(self, block: u8) -> Content {
        (self.0 >> (4 * u32::from(block & 15))) as u8 & 15
    }

    /// Changes the data of a block.
    #[inline]
    pub fn set(&mut self, block: u8, content: Content) {
        let shift = 4 * u32::from(block & 15);
        self.0 = self.0 & !(15 << shift) | u64::from(content & 15) << shift;
    }

    /// Changes the data of several blocks.
    #[inline]
    pub fn fill(&mut self, blocks: Set, content: Content) {
        for block in each(blocks) {
            self.set(block, content);
        }
    }
}

/// The block map of the file and the blocks behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub struct Disk {
    /// Data of the physical blocks 0-15 and 16-31.
    pub media: [Contents; 2],
    /// Physical blocks that the bitmap has free. Block 0 is never used.
    pub free: u32,
    /// Freed in a transaction that has not committed: clear in the bitmap, not to be reused yet.
    pub freed: u32,
    /// Physical block of each mapped block, else 0.
    pub pblk: [u8; 16],
    /// Logical blocks that are mapped.
    pub mapped: Set,
    /// Of those, the ones in unwritten extents.
    pub unwritten: Set,
    /// Extent leaves in memory. Where the geometry asks for no leaves (`leaf_blocks` is 0): 0 while
    /// the extents fit the inode, else [`Disk::NEW_LEAF`] or [`Disk::KNOWN_LEAF`].
    pub leaves: Set,
    /// Fills the struct up.
    gap: Set,
}

impl Disk {
    /// Extents that fit the inode (`EXT4_N_BLOCKS` words, less the header).
    pub const ROOT_EXTENTS: u32 = 4;
    /// The extents have outgrown the inode; their leaf has been looked at.
    pub const KNOWN_LEAF: Set = 1;
    /// The extents have outgrown the inode; the next look at their leaf is the first.
    pub const NEW_LEAF: Set = 2;

    /// Number of extents, all that can be merged being merged.
    #[inline]
    pub fn extents(&self) -> u32 {
        let inner = each(self.mapped).filter(|&b| b > 0 && self.joined(b - 1)).count();
        self.mapped.count_ones() - inner as u32
    }

    /// Nothing mapped, `clusters` clusters free, full of an earlier owner's bytes.
    pub fn new(geo: &Geometry) -> Disk {
        // Cluster 0 stays out of use, so that physical block 0 can mean "none".
        let first = u32::from(geo.cluster_blocks());
        let blocks =
            (u32::from(geo.clusters) << geo.cluster_shift).min(u32::from(PBLKS_MAX) - first);
        Disk {
            mapped: 0,
            unwritten: 0,
            leaves: if geo.leaf_blocks == 0 { 0 } else { Set::MAX },
            pblk: [0; 16],
            free: (((1u64 << blocks) - 1) << first) as u32,
            freed: 0,
            media: [Contents(u64::MAX); 2],
            gap: 0,
        }
    }

    /// Data of a physical block.
    #[inline]
    pub fn media(&self, pblk: u8) -> Content {
        self.media[usize::from(pblk >> 4) & 1].get(pblk)
    }

    /// Writes a physical block.
    #[inline]
    pub fn set_media(&mut self, pblk: u8, content: Content) {
        self.media[usize::from(pblk >> 4) & 1].set(pblk, content);
    }

    /// Blocks in written extents.
    #[inline]
    pub fn written(&self) -> Set {
        self.mapped & !self.unwritten
    }

    /// End of the extent that holds the mapped block `block`, at most `end`.
    #[inline]
    pub fn extent_end(&self, block: u8, end: u8) -> u8 {
        let mut next = block + 1;
        while next < end && self.joined(next - 1) {
            next += 1;
        }
        next
    }

    /// Start of the extent that holds the mapped block `block`.
    #[inline]
    pub fn extent_start(&self, block: u8) -> u8 {
        let mut first = block;
        while first > 0 && self.joined(first - 1) {
            first -= 1;
        }
        first
    }

    #[inline]
    fn joined(&self, left: u8) -> bool {
        let (a, b) = (bit(left), bit(left + 1));
        self.mapped & a != 0
            && self.mapped & b != 0
            && (self.unwritten & a != 0) == (self.unwritten & b != 0)
            && self.pblk[usize::from(left)] + 1 == self.pblk[usize::from(left) + 1]
    }

    /// The unmapped range around `block`, within `blocks` blocks.
    #[inline]
    pub fn hole(&self, block: u8, blocks: u8) -> (u8, u8) {
        let mut first = block;
        while first > 0 && self.mapped & bit(first - 1) == 0 {
            first -= 1;
        }
        let mut end = block + 1;
        while end < blocks && self.mapped & bit(end) == 0 {
            end += 1;
        }
        (first, end)
    }

    /// Maps a block.
    #[inline]
    pub fn map(&mut self, block: u8, pblk: u8, unwritten: bool) {
        self.mapped |= bit(block);
        self.set_unwritten(bit(block), unwritten);
        self.pblk[usize::from(block)] = pblk;
    }

    /// Changes the type of mapped blocks.
    #[inline]
    pub fn set_unwritten(&mut self, blocks: Set, unwritten: bool) {
        if unwritten {
            self.unwritten |= blocks;
        } else {
            self.unwritten &= !blocks;
        }
    }

    /// Takes blocks out of the map; says nothing to the bitmap.
    #[inline]
    pub fn unmap(&mut self, blocks: Set) {
        for block in each(blocks & self.mapped) {
            self.pblk[usize::from(block)] = 0;
        }
        self.mapped &= !blocks;
        self.unwritten &= !blocks;
    }

    /// The physical cluster (by its first block) to give out next for `wanted` blocks: where the
    /// first run of free space starts that is long enough, else the lowest.
    #[inline]
    pub fn lowest_free(&self, geo: &Geometry, wanted: u8) -> Option<u8> {
        let usable = self.free & !self.freed;
        // Bit n of `runs` is left if n..n + wanted are free.
        let mut runs = usable;
        for _ in 1..wanted {
            runs &= runs >> 1;
        }
        let mut pblk = if runs == 0 { usable } else { runs }.trailing_zeros();
        // Whole clusters are free or not, so the first free block starts one.
        if pblk >= 32 {
            return None;
        }
        pblk &= !(u32::from(geo.cluster_blocks()) - 1);
        Some(pblk as u8)
    }

    /// The physical cluster behind the one that starts at `pblk`, if it may be given out.
    #[inline]
    pub fn free_behind(&self, geo: &Geometry, pblk: u8) -> Option<u8> {
        let next = pblk + geo.cluster_blocks();
        let usable = self.free & !self.freed;
        (next < PBLKS_MAX && usable & (1 << next) != 0).then_some(next)
    }

    /// Physical blocks of the cluster that starts at `pblk`.
    #[inline]
    pub fn cluster_bits(geo: &Geometry, pblk: u8) -> u32 {
        let blocks = u32::from(geo.cluster_blocks());
        (((1u64 << blocks) - 1) << (u32::from(pblk) & !(blocks - 1))) as u32
    }

    /// Physical clusters that the file owns, as the bits of their blocks.
    pub fn owned(&self, geo: &Geometry) -> u32 {
        each(self.mapped).fold(0, |set, b| set | Disk::cluster_bits(geo, self.pblk[usize::from(b)]))
    }

    /// Logical blocks whose written data nobody but an earlier owner has written.
    pub fn stale(&self) -> Set {
        each(self.written())
            .filter(|&b| self.media(self.pblk[usize::from(b)]) == STALE)
            .fold(0, |set, b| set | bit(b))
    }

    /// Makes the freed blocks reusable: the transaction committed.
    #[inline]
    pub fn commit(&mut self) {
        self.freed = 0;
    }

    /// Shifts the map of `first..` by `by` blocks (down if negative) in a file of `blocks` blocks.
    pub fn shift(&mut self, first: u8, by: i8, blocks: u8) {
        let moving = self.mapped & span(first, blocks);
        let old = *self;
        self.unmap(moving);
        for b in each(moving) {
            if let Some(to) = b.checked_add_signed(by).filter(|&to| to < blocks) {
                let from = usize::from(b);
                self.map(to, old.pblk[from], old.unwritten & bit(b) != 0);
            }
        }
    }
}
