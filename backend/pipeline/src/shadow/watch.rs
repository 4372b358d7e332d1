//! Which requests the shadow has to be told of; asked for every request, without a lock.
//!
//! In: the map, a request, blocks that the shadow named. Out: nothing, the range, or the bytes too.
//! Must not know: why.
//!
//! Most writes of a busy disk go to file data that is written already, where nothing can go wrong
//! that the disk could see: they cost one lookup in the map. Blocks there that the shadow is still
//! interested in (freed metadata, journaled data) are named in a filter of 65 536 bits; a bit that
//! stands for several blocks costs a needless copy, no more.

use std::sync::atomic::{AtomicU64, Ordering};

use ext4_layout::{Kind, LayoutMap};

use crate::request::Op;

const WORDS: usize = 1024;

/// What the shadow wants of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Nothing.
    Nothing,
    /// To be told of it.
    Range,
    /// To be told of it, with the data that is written.
    Bytes,
}

/// The blocks that are watched beyond what the map says.
#[derive(Debug)]
pub struct Watch {
    any: AtomicU64,
    words: Box<[AtomicU64]>,
}

/// Kinds whose blocks are metadata; what is written there is looked at.
const METADATA: u32 = Kind::Superblock.bit()
    | Kind::GroupDescriptors.bit()
    | Kind::BlockBitmap.bit()
    | Kind::InodeBitmap.bit()
    | Kind::InodeTable.bit()
    | Kind::ExtentNode.bit()
    | Kind::IndirectBlock.bit()
    | Kind::Directory.bit()
    | Kind::Xattr.bit()
    | Kind::OrphanFile.bit()
    | Kind::LOG;

impl Default for Watch {
    fn default() -> Watch {
        Watch { any: AtomicU64::new(0), words: (0..WORDS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Watch {
    /// What the shadow wants of a request to a disk with that map.
    pub fn wants(&self, map: &LayoutMap, op: Op, sector: u64, sectors: u64) -> Wants {
        match op {
            Op::Read | Op::Fault => Wants::Nothing,
            Op::Flush | Op::Discard | Op::WriteZeroes => Wants::Range,
            Op::Write | Op::Store
                if map.is_written_data(sector, sectors) && !map.any_write_counts() =>
            {
                if self.watches(map, sector, sectors) { Wants::Bytes } else { Wants::Nothing }
            }
            Op::Write | Op::Store => {
                let metadata = map.wants_bytes(sector, sectors)
                    || map.kinds(sector, sectors) & METADATA != 0
                    || self.watches(map, sector, sectors);
                if metadata { Wants::Bytes } else { Wants::Range }
            }
        }
    }

    fn watches(&self, map: &LayoutMap, sector: u64, sectors: u64) -> bool {
        if self.any.load(Ordering::Relaxed) == 0 || sectors == 0 {
            return false;
        }
        let block = |sector| map.block_of_sector(sector);
        let (Some(first), Some(last)) = (block(sector), block(sector + (sectors - 1))) else {
            return false;
        };
        (first..=last).take(WORDS * 64).any(|block| {
            let (word, bit) = place(block);
            self.words.get(word).is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
        })
    }

    pub(super) fn add(&self, block: u64) {
        let (word, bit) = place(block);
        if let Some(word) = self.words.get(word) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
        self.any.store(1, Ordering::Relaxed);
    }

    /// Forgets every block, to be told anew.
    pub(super) fn clear(&self) {
        self.any.store(0, Ordering::Relaxed);
        for word in &self.words {
            word.store(0, Ordering::Relaxed);
        }
    }
}

fn place(block: u64) -> (usize, u64) {
    // Multiplied by 2^64 / golden ratio: neighbours go apart.
    let hash = block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    ((hash >> 6) as usize % WORDS, 1 << (hash & 63))
}
