//! Sizes and options that stay the same during a run.
//!
//! In: nothing. Out: [`Geometry`] and arithmetic on sets of blocks.
//! Must not know: states, operations.

/// Logical blocks that a model file can have.
pub const BLOCKS_MAX: u8 = 16;
/// Physical blocks that a model file system can have.
pub const PBLKS_MAX: u8 = 32;

/// A set of logical blocks, or of folios: bit n is block (folio) n.
pub type Set = u16;

/// Blocks `first..end` as a set.
#[inline]
pub const fn span(first: u8, end: u8) -> Set {
    if end <= first {
        return 0;
    }
    (below(end) & !below(first)) as Set
}

#[inline]
const fn below(n: u8) -> u32 {
    if n >= 16 { 0xffff } else { (1u32 << n) - 1 }
}

/// One block as a set.
#[inline]
pub const fn bit(block: u8) -> Set {
    1 << (block & 15)
}

/// The blocks in a set, lowest first.
#[inline]
pub fn each(mut set: Set) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        if set == 0 {
            return None;
        }
        let block = set.trailing_zeros() as u8;
        set &= set - 1;
        Some(block)
    })
}

/// Sizes and mount options of the model file system.
#[allow(clippy::struct_excessive_bools, reason = "independent switches")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Logical blocks of the file that are modelled.
    pub blocks: u8,
    /// Bytes in a block.
    pub block_bytes: u32,
    /// log2 of the blocks in a page.
    pub page_shift: u8,
    /// log2 of the blocks in a cluster (bigalloc; 0 without).
    pub cluster_shift: u8,
    /// Logical blocks that one extent leaf describes; 0 if the extents are in the inode.
    pub leaf_blocks: u8,
    /// Clusters of the device that the file can have.
    pub clusters: u8,
    /// Mapped by indirect blocks, not extents.
    pub indirect: bool,
    /// Writeback allocates unwritten extents and converts them after the write.
    pub dioread_nolock: bool,
    /// Read/write semaphores are granted first come, first served, instead of in any order.
    pub fair: bool,
    /// Track the referenced bit of extent status (only the shrinker looks at it).
    pub referenced: bool,
}

impl Default for Geometry {
    fn default() -> Geometry {
        Geometry {
            blocks: 4,
            block_bytes: 4096,
            page_shift: 0,
            cluster_shift: 0,
            leaf_blocks: 0,
            clusters: 8,
            indirect: false,
            dioread_nolock: true,
            fair: false,
            referenced: false,
        }
    }
}

impl Geometry {
    /// All blocks of the file.
    #[inline]
    pub const fn all(&self) -> Set {
        span(0, self.blocks)
    }

    /// The folio that holds a block.
    #[inline]
    pub const fn folio(&self, block: u8) -> u8 {
        block >> self.page_shift
    }

    /// Number of folios of the file.
    #[inline]
    pub const fn folios(&self) -> u8 {
        (self.blocks + (1 << self.page_shift) - 1) >> self.page_shift
    }

    /// First block of a folio.
    #[inline]
    pub const fn folio_first(&self, folio: u8) -> u8 {
        folio << self.page_shift
    }

    /// Blocks of a folio.
    #[inline]
    pub const fn folio_blocks(&self, folio: u8) -> Set {
        span(folio << self.page_shift, (folio + 1) << self.page_shift)
    }

    /// The folios that hold any of `blocks`.
    #[inline]
    pub fn folios_of(&self, blocks: Set) -> Set {
        if self.page_shift == 0 {
            return blocks;
        }
        each(blocks).fold(0, |set, block| set | bit(self.folio(block)))
    }

    /// The blocks of all folios in a set.
    #[inline]
    pub fn blocks_of(&self, folios: Set) -> Set {
        if self.page_shift == 0 {
            return folios;
        }
        each(folios).fold(0, |set, folio| set | self.folio_blocks(folio))
    }

    /// Blocks in a cluster.
    #[inline]
    pub const fn cluster_blocks(&self) -> u8 {
        1 << self.cluster_shift
    }

    /// The cluster of a logical or physical block.
    #[inline]
    pub const fn cluster(&self, block: u8) -> u8 {
        block >> self.cluster_shift
    }

    /// Blocks of a logical cluster.
    #[inline]
    pub const fn cluster_set(&self, cluster: u8) -> Set {
        span(cluster << self.cluster_shift, (cluster + 1) << self.cluster_shift)
    }

    /// The clusters that hold any of `blocks`.
    #[inline]
    pub fn clusters_of(&self, blocks: Set) -> Set {
        if self.cluster_shift == 0 {
            return blocks;
        }
        each(blocks).fold(0, |set, block| set | bit(self.cluster(block)))
    }

    /// The extent leaf that describes a block; 0 if the extents are in the inode.
    #[inline]
    pub const fn leaf(&self, block: u8) -> u8 {
        match block.checked_div(self.leaf_blocks) {
            Some(leaf) => leaf,
            None => 0,
        }
    }

    /// Blocks described by a leaf.
    #[inline]
    pub const fn leaf_set(&self, leaf: u8) -> Set {
        if self.leaf_blocks == 0 {
            self.all()
        } else {
            span(leaf * self.leaf_blocks, (leaf + 1) * self.leaf_blocks)
        }
    }

    /// Bytes up to the end of `blocks` blocks.
    #[inline]
    pub const fn bytes(&self, blocks: u8) -> u32 {
        blocks as u32 * self.block_bytes
    }

    /// The blocks of which `bytes` bytes fill all, at most [`BLOCKS_MAX`].
    #[inline]
    pub const fn whole_blocks(&self, bytes: u32) -> Set {
        let blocks = bytes / self.block_bytes;
        span(0, if blocks > BLOCKS_MAX as u32 { BLOCKS_MAX } else { blocks as u8 })
    }

    /// Blocks needed for `bytes`, rounded up, at most [`BLOCKS_MAX`].
    #[inline]
    pub const fn blocks_for(&self, bytes: u32) -> u8 {
        let blocks = bytes.div_ceil(self.block_bytes);
        if blocks > BLOCKS_MAX as u32 { BLOCKS_MAX } else { blocks as u8 }
    }
}
