//! What one block of an inode's tree, or the inode itself, says about where data is.
//!
//! The common form of extent nodes and indirect blocks: ranges of data, and further blocks of the
//! tree. Entries outside the file system are left out when bytes become a [`Mapping`].

use crate::class::Written;

/// A range of data blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First logical block.
    pub lblk: u32,
    /// Blocks; 0 only in an entry of a node that cannot be.
    pub len: u32,
    /// First block.
    pub pblk: u64,
    /// Whether the blocks have data.
    pub state: Written,
}

/// A further block of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// The block.
    pub pblk: u64,
    /// First logical block below it.
    pub lblk: u32,
    /// 0: the block maps data.
    pub depth: u16,
}

/// Entries in the order in which the bytes have them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) extents: Box<[Extent]>,
    pub(crate) children: Box<[Child]>,
}

/// How an inode maps its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tree {
    Extents,
    Indirect,
}
