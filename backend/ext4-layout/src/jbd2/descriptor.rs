//! Descriptor blocks: which blocks the copies after it are of.

use crate::bytes::{crc32c, u16_be, u32_be};
use crate::class::Tid;
use crate::jbd2::{Checksums, Format, HEADER_BYTES};

const FLAG_ESCAPE: u32 = 1;
const FLAG_SAME_UUID: u32 = 2;
const FLAG_LAST_TAG: u32 = 8;
const UUID_BYTES: usize = 16;

/// One tag: the copies follow the descriptor in the order of its tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    /// The block that the copy is of.
    pub(crate) pblk: u64,
    /// The first four bytes are the magic number and are stored as zero.
    pub(crate) escaped: bool,
    checksum: u32,
}

/// The tags of a descriptor block; `None` when its checksum fails.
pub(crate) fn parse(block: &[u8], format: Format) -> Option<Vec<Tag>> {
    let body = format.body(block)?;
    let v3 = matches!(format.checksums, Checksums::V3(_));
    let tag_bytes = tag_bytes(format);
    let mut tags = Vec::new();
    let mut at = HEADER_BYTES;
    while let Some(raw) = body.get(at..at + tag_bytes) {
        let low = u32_be(raw, 0)?;
        let (flags, high, checksum) = if v3 {
            (u32_be(raw, 4)?, u32_be(raw, 8)?, u32_be(raw, 12)?)
        } else {
            let high = if format.wide { u32_be(raw, 8)? } else { 0 };
            (u16_be(raw, 6)?.into(), high, u16_be(raw, 4)?.into())
        };
        let high = if format.wide { high } else { 0 };
        tags.push(Tag {
            pblk: u64::from(high) << 32 | u64::from(low),
            escaped: flags & FLAG_ESCAPE != 0,
            checksum,
        });
        at += tag_bytes;
        if flags & FLAG_SAME_UUID == 0 {
            at += UUID_BYTES;
        }
        if flags & FLAG_LAST_TAG != 0 {
            break;
        }
    }
    Some(tags)
}

/// `journal_tag_bytes`.
fn tag_bytes(format: Format) -> usize {
    let wide = if format.wide { 4 } else { 0 };
    match format.checksums {
        Checksums::V3(_) => 16,
        Checksums::V2(_) => 10 + wide,
        Checksums::None => 8 + wide,
    }
}

impl Tag {
    /// Whether the copy, as stored in the log, has the tag's checksum.
    pub(crate) fn checksum_fits(&self, copy: &[u8], tid: Tid, format: Format) -> bool {
        let sum = |seed| crc32c(crc32c(seed, &tid.to_be_bytes()), copy);
        match format.checksums {
            Checksums::None => true,
            Checksums::V2(seed) => sum(seed) & 0xffff == self.checksum,
            Checksums::V3(seed) => sum(seed) == self.checksum,
        }
    }
}
