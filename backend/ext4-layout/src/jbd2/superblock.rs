//! `journal_superblock_t`, version 1 and 2: block 0 of the log.

use crate::bytes::{crc32c, crc32c_with_hole, u32_be};
use crate::class::Tid;
use crate::jbd2::{BlockType, Checksums, Format, header};

const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_ASYNC_COMMIT: u32 = 0x4;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;

/// Blocks of the fast-commit area when `s_num_fc_blks` is 0 (`JBD2_DEFAULT_FAST_COMMIT_BLOCKS`).
const FAST_COMMIT_BLOCKS: u32 = 256;
/// `JBD2_MIN_JOURNAL_BLOCKS`.
const LOG_BLOCKS_MIN: u32 = 1024;

/// The journal's superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JournalSuperblock {
    /// First block of the log that holds transactions.
    pub(crate) first: u32,
    /// One past the last block of the log, fast-commit area included.
    pub(crate) blocks: u32,
    /// First block of the fast-commit area; `blocks` when there is none.
    pub(crate) fast_commit: u32,
    /// First transaction that recovery would look for.
    pub(crate) sequence: Tid,
    /// Where it would look; `None` when the log is empty.
    pub(crate) start: Option<u32>,
    pub(crate) format: Format,
    /// Commit records may be stored before the copies.
    pub(crate) async_commit: bool,
}

impl JournalSuperblock {
    /// Parses block 0 of a log; `file_blocks` is what the journal's inode maps.
    pub(crate) fn parse(block: &[u8], file_blocks: u32) -> Option<JournalSuperblock> {
        let raw = block.get(..1024)?;
        let (kind, _) = header(raw)?;
        let incompat = match kind {
            BlockType::SuperblockV1 => 0,
            BlockType::SuperblockV2 => u32_be(raw, 0x28)?,
            BlockType::Descriptor | BlockType::Commit | BlockType::Revoke => return None,
        };
        let seed = crc32c(!0, raw.get(0x30..0x40)?);
        let checksums = if incompat & INCOMPAT_CSUM_V3 != 0 {
            Checksums::V3(seed)
        } else if incompat & INCOMPAT_CSUM_V2 != 0 {
            Checksums::V2(seed)
        } else {
            Checksums::None
        };
        if checksums != Checksums::None
            && crc32c_with_hole(!0, raw, 0xfc..0x100) != u32_be(raw, 0xfc)?
        {
            return None;
        }
        let block_bytes = u32_be(raw, 0xc)?;
        let blocks = u32_be(raw, 0x10)?;
        let first = u32_be(raw, 0x14)?;
        let start = u32_be(raw, 0x1c)?;
        if block_bytes as usize != block.len() || blocks > file_blocks || first == 0 {
            return None;
        }
        let mut fast_commit = blocks;
        if incompat & INCOMPAT_FAST_COMMIT != 0 {
            let wanted = match u32_be(raw, 0x54)? {
                0 => FAST_COMMIT_BLOCKS,
                wanted => wanted,
            };
            // As jbd2_journal_initialize_fast_commit: not at the cost of a usable log.
            fast_commit =
                blocks.checked_sub(wanted).filter(|end| *end >= LOG_BLOCKS_MIN).unwrap_or(blocks);
        }
        if first >= fast_commit || start >= fast_commit {
            return None;
        }
        Some(JournalSuperblock {
            first,
            blocks,
            fast_commit,
            sequence: u32_be(raw, 0x18)?,
            start: (start >= first).then_some(start),
            format: Format { wide: incompat & INCOMPAT_64BIT != 0, checksums },
            async_commit: incompat & INCOMPAT_ASYNC_COMMIT != 0,
        })
    }

    /// The block of the log `by` blocks after `index`, wrapping at the end of the log.
    pub(crate) fn after(&self, index: u32, by: u32) -> u32 {
        let len = self.fast_commit - self.first;
        let offset = u64::from(index.saturating_sub(self.first)) + u64::from(by);
        self.first + (offset % u64::from(len)) as u32
    }

    /// Blocks that hold transactions.
    pub(crate) fn usable(&self) -> u32 {
        self.fast_commit - self.first
    }
}
