//! Commit blocks: the transaction is complete.

use crate::bytes::{crc32c_with_hole, u32_be};
use crate::jbd2::Format;

const CHECKSUM: std::ops::Range<usize> = 0x10..0x14;

/// Whether the block's checksum fits, if it carries one.
pub(crate) fn checksum_fits(block: &[u8], format: Format) -> bool {
    format.checksums.seed().is_none_or(|seed| {
        u32_be(block, CHECKSUM.start) == Some(crc32c_with_hole(seed, block, CHECKSUM))
    })
}
