//! Blocks written before anything refers to them that look like blocks of a tree.
//!
//! Without a journal the kernel writes a new extent node and the inode that names it in any order.
//! In: full blocks. Out: the bytes, if they were kept; bounded, the oldest go first.

use std::collections::{BTreeMap, VecDeque};

/// Bytes kept at most.
const BYTES_MAX: usize = 4 << 20;

/// Recent blocks that may be of a tree.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    blocks: BTreeMap<u64, Box<[u8]>>,
    /// Oldest first; may name blocks that are gone.
    order: VecDeque<u64>,
    bytes: usize,
}

impl Candidates {
    pub(crate) fn keep(&mut self, pblk: u64, block: &[u8]) {
        if self.blocks.contains_key(&pblk) {
            self.forget(pblk);
            self.order.retain(|kept| *kept != pblk);
        }
        if self.order.len() > 2 * self.blocks.len() + 64 {
            self.order.retain(|kept| self.blocks.contains_key(kept));
        }
        self.bytes += block.len();
        self.blocks.insert(pblk, block.into());
        self.order.push_back(pblk);
        while self.bytes > BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.forget(oldest);
        }
    }

    /// Something else was written there.
    pub(crate) fn forget(&mut self, pblk: u64) {
        if let Some(block) = self.blocks.remove(&pblk) {
            self.bytes -= block.len();
        }
    }

    /// Something else was written to all of the range.
    pub(crate) fn forget_range(&mut self, from: u64, to: u64) {
        let gone: Vec<u64> = self.blocks.range(from..to.max(from)).map(|(pblk, _)| *pblk).collect();
        for pblk in gone {
            self.forget(pblk);
        }
    }

    /// Bytes on the heap, nearly.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.bytes + self.order.capacity() * size_of::<u64>()
    }

    pub(crate) fn take(&mut self, pblk: u64) -> Option<Box<[u8]>> {
        let block = self.blocks.remove(&pblk)?;
        self.bytes -= block.len();
        Some(block)
    }
}
