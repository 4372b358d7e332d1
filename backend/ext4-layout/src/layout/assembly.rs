//! Blocks that arrive in parts: requests may be split at any sector.
//!
//! In: parts of blocks. Out: the full block once every sector of it was seen. A few blocks at a
//! time; the lowest are forgotten first, and then stay as they were until written again.

use std::collections::BTreeMap;

use crate::map::SECTOR_BYTES;

const BLOCKS_MAX: usize = 64;
const SECTOR: usize = SECTOR_BYTES as usize;

#[derive(Debug)]
struct Parts {
    bytes: Box<[u8]>,
    /// Bit n: sector n was seen; a block of 64 KiB has 128.
    seen: u128,
}

/// Blocks of which some sectors were seen.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    blocks: BTreeMap<u64, Parts>,
}

impl Assembly {
    /// Adds whole sectors, `offset` bytes into a block of `block_bytes`.
    pub(crate) fn add(
        &mut self,
        block: u64,
        block_bytes: usize,
        offset: usize,
        part: &[u8],
    ) -> Option<Box<[u8]>> {
        if self.blocks.len() >= BLOCKS_MAX && !self.blocks.contains_key(&block) {
            self.blocks.pop_first();
        }
        let parts = self
            .blocks
            .entry(block)
            .or_insert_with(|| Parts { bytes: vec![0; block_bytes].into(), seen: 0 });
        parts.bytes.get_mut(offset..offset + part.len())?.copy_from_slice(part);
        for sector in offset / SECTOR..(offset + part.len()) / SECTOR {
            parts.seen |= 1 << sector;
        }
        let all = u128::MAX >> (128 - block_bytes / SECTOR);
        if parts.seen != all {
            return None;
        }
        self.blocks.remove(&block).map(|parts| parts.bytes)
    }

    pub(crate) fn forget(&mut self, block: u64) {
        self.blocks.remove(&block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_whole_when_its_last_sector_came() {
        let mut assembly = Assembly::default();
        assert!(assembly.add(7, 2048, 512, &[2; 1024]).is_none());
        assert!(assembly.add(7, 2048, 512, &[2; 512]).is_none());
        assert!(assembly.add(7, 2048, 0, &[1; 512]).is_none());
        let whole = assembly.add(7, 2048, 1536, &[3; 512]).unwrap();
        assert_eq!([whole[0], whole[512], whole[1024], whole[2047]], [1, 2, 2, 3]);
        assert!(assembly.add(7, 65536, 0, &vec![1; 65536]).is_some());
    }
}
