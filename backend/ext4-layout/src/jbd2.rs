//! The format of the journal (Linux `include/linux/jbd2.h`): blocks of the log that start with the
//! magic number, big-endian throughout.
//!
//! In: a block. Out: its header, and through the submodules its contents. Checksums (v2 and v3)
//! are checked here; a block whose checksum fails is no block of the journal.

pub(crate) mod commit;
pub(crate) mod descriptor;
pub(crate) mod revoke;
pub(crate) mod superblock;

use crate::bytes::{crc32c_with_hole, u32_be};
use crate::class::Tid;

/// `JBD2_MAGIC_NUMBER`; a copy of a block that starts with it is stored with four zero bytes there.
pub(crate) const MAGIC: u32 = 0xc03b_3998;
/// Bytes of `journal_header_t`.
const HEADER_BYTES: usize = 12;
/// Bytes of `struct jbd2_journal_block_tail`.
const TAIL_BYTES: usize = 4;

/// What follows a journal block's header (`h_blocktype`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockType {
    Descriptor,
    Commit,
    SuperblockV1,
    SuperblockV2,
    Revoke,
}

/// The header of a block that starts with the magic number and has a known type.
pub(crate) fn header(block: &[u8]) -> Option<(BlockType, Tid)> {
    if u32_be(block, 0)? != MAGIC {
        return None;
    }
    let kind = match u32_be(block, 4)? {
        1 => BlockType::Descriptor,
        2 => BlockType::Commit,
        3 => BlockType::SuperblockV1,
        4 => BlockType::SuperblockV2,
        5 => BlockType::Revoke,
        _ => return None,
    };
    Some((kind, u32_be(block, 8)?))
}

/// What the journal's superblock says about the format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    /// Block numbers have 64 bits.
    pub(crate) wide: bool,
    pub(crate) checksums: Checksums,
}

/// Which checksums the log carries, with their seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checksums {
    None,
    V2(u32),
    V3(u32),
}

impl Checksums {
    fn seed(self) -> Option<u32> {
        match self {
            Checksums::None => None,
            Checksums::V2(seed) | Checksums::V3(seed) => Some(seed),
        }
    }
}

impl Format {
    /// Bytes of a descriptor or revoke block before the checksum in its tail.
    fn body<'a>(&self, block: &'a [u8]) -> Option<&'a [u8]> {
        let Some(seed) = self.checksums.seed() else {
            return Some(block);
        };
        let tail = block.len().checked_sub(TAIL_BYTES)?;
        let fits = crc32c_with_hole(seed, block, tail..block.len()) == u32_be(block, tail)?;
        fits.then(|| &block[..tail])
    }
}

#[cfg(test)]
mod tests;
