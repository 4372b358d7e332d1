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

    /// Cells that differ in type from the next one.
    #[inline]
    fn edges(&self) -> Set {
        [self.written, self.unwritten, self.delayed, self.hole]
            .iter()
            .fold(0, |edges, set| edges | (set ^ (set >> 1)))
    }

    /// Whether two neighbours of one type belong to one entry.
    #[inline]
    fn joined(&self, left: u8) -> bool {
        self.pblk[usize::from(left)] + 1 == self.pblk[usize::from(left) + 1]
    }

    /// End of the entry that holds `block`, at most `end`.
    #[inline]
    pub fn entry_end(&self, block: u8, end: u8) -> u8 {
        let run = (self.edges() >> block).trailing_zeros() as u8;
        // Above the last cell there is nothing: a run may go on there, but not beyond `end`.
        let last = block.saturating_add(run).min(end.max(block + 1) - 1);
        if self.mapped() & bit(block) == 0 {
            return last + 1;
        }
        (block..last).find(|&left| !self.joined(left)).unwrap_or(last) + 1
    }

    /// Start of the entry that holds `block`.
    #[inline]
    pub fn entry_start(&self, block: u8) -> u8 {
        let edges = self.edges() & span(0, block);
        let first = 16 - edges.leading_zeros() as u8;
        if self.mapped() & bit(block) == 0 {
            return first;
        }
        (first..block).rev().find(|&left| !self.joined(left)).map_or(first, |left| left + 1)
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
