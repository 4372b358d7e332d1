//! The extent status tree, one cell a block.
//!
//! Entries are maximal runs of equal cells (physically contiguous where mapped): where the kernel
//! may keep two mergeable entries apart, the model merges.

use zerocopy::{Immutable, IntoBytes};

use crate::geometry::{Set, bit, each, span};

/// What the extent status tree says about a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    /// No entry.
    None,
    /// Written.
    Written,
    /// Unwritten (also U+D).
    Unwritten,
    /// Delayed only: reserved, not allocated.
    Delayed,
    /// Hole.
    Hole,
}

/// Extent status of every block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct Es {
    /// Cells with W.
    pub written: Set,
    /// Cells with U.
    pub unwritten: Set,
    /// Cells with D, alone or with another type.
    pub delayed: Set,
    /// Cells with H.
    pub hole: Set,
    /// Cells with R.
    pub referenced: Set,
    /// Logical clusters with a pending reservation (bigalloc).
    pub pending: Set,
    /// Physical block of each W or U cell, else 0.
    pub pblk: [u8; 16],
}

impl Es {
    /// What the tree says about a block.
    #[inline]
    pub fn status(&self, block: u8) -> Status {
        let b = bit(block);
        if self.written & b != 0 {
            Status::Written
        } else if self.unwritten & b != 0 {
            Status::Unwritten
        } else if self.delayed & b != 0 {
            Status::Delayed
        } else if self.hole & b != 0 {
            Status::Hole
        } else {
            Status::None
        }
    }

    /// Cells with W or U.
    #[inline]
    pub fn mapped(&self) -> Set {
        self.written | self.unwritten
    }

    /// Cells that are delayed and not allocated ("delonly").
    #[inline]
    pub fn delayed_only(&self) -> Set {
        self.delayed & !self.mapped()
    }

    /// Cells with an entry.
    #[inline]
    pub fn present(&self) -> Set {
        self.mapped() | self.delayed | self.hole
    }

    /// Whether two neighbours belong to one entry.
    #[inline]
    fn joined(&self, left: u8) -> bool {
        let (a, b) = (bit(left), bit(left + 1));
        let same = |set: Set| (set & a != 0) == (set & b != 0);
        same(self.written)
            && same(self.unwritten)
            && same(self.delayed)
            && same(self.hole)
            && (self.mapped() & a == 0
                || self.pblk[usize::from(left)] + 1 == self.pblk[usize::from(left) + 1])
    }

    /// End of the entry that holds `block`, at most `end`.
    #[inline]
    pub fn entry_end(&self, block: u8, end: u8) -> u8 {
        let mut last = block;
        while last + 1 < end && self.joined(last) {
            last += 1;
        }
        last + 1
    }

    /// Start of the entry that holds `block`.
    #[inline]
    pub fn entry_start(&self, block: u8) -> u8 {
        let mut first = block;
        while first > 0 && self.joined(first - 1) {
            first -= 1;
        }
        first
    }

    /// Takes cells out of the tree.
    #[inline]
    pub fn remove(&mut self, set: Set) {
        let keep = !set;
        for b in each(set & self.mapped()) {
            self.pblk[usize::from(b)] = 0;
        }
        self.written &= keep;
        self.unwritten &= keep;
        self.delayed &= keep;
        self.hole &= keep;
        self.referenced &= keep;
    }

    /// Puts `first..end` in as W or U, with D beside it if asked.
    pub fn insert_mapped(
        &mut self,
        first: u8,
        end: u8,
        pblk: u8,
        unwritten: bool,
        with_delayed: bool,
    ) {
        let set = span(first, end);
        self.remove(set);
        if unwritten {
            self.unwritten |= set;
        } else {
            self.written |= set;
        }
        if with_delayed {
            self.delayed |= set;
        }
        for b in first..end {
            self.pblk[usize::from(b)] = pblk + (b - first);
        }
    }

    /// Puts cells in as H.
    #[inline]
    pub fn insert_hole(&mut self, set: Set) {
        self.remove(set);
        self.hole |= set;
    }

    /// Puts cells in as D.
    #[inline]
    pub fn insert_delayed(&mut self, set: Set) {
        self.remove(set);
        self.delayed |= set;
    }
}
