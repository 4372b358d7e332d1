//! `struct ext4_group_desc`: where a group's bitmaps and inode table are.
//!
//! In: 32 or 64 bytes. Out: a checked [`Descriptor`], or `None` for one that cannot be used.

use crate::bytes::{crc32c, crc32c_with_hole, u16_le, u32_le};
use crate::class::Group;
use crate::geometry::Geometry;

const INODE_UNINIT: u16 = 0x1;
const BLOCK_UNINIT: u16 = 0x2;

/// One group's descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) block_bitmap: u64,
    pub(crate) inode_bitmap: u64,
    pub(crate) inode_table: u64,
    /// The block bitmap was never written: nothing but metadata is in use.
    pub(crate) block_uninit: bool,
    /// Inodes at the start of the table that may be in use; those after it were never written.
    pub(crate) inodes_used: u32,
}

impl Descriptor {
    /// Parses the descriptor of `group`; `None` when its checksum or a place is wrong.
    pub(crate) fn parse(raw: &[u8], geometry: &Geometry, group: Group) -> Option<Descriptor> {
        let raw = raw.get(..geometry.desc_bytes)?;
        if let Some(seed) = geometry.checksum_seed {
            let seed = crc32c(seed, &group.to_le_bytes());
            if crc32c_with_hole(seed, raw, 0x1e..0x20) as u16 != u16_le(raw, 0x1e)? {
                return None;
            }
        }
        let wide = geometry.desc_bytes >= 64;
        let block = |low, high| {
            let high = if wide { u32_le(raw, high)? } else { 0 };
            Some(u64::from(high) << 32 | u64::from(u32_le(raw, low)?))
        };
        let flags = if geometry.uninit_groups { u16_le(raw, 0x12)? } else { 0 };
        let unused_high = if wide { u16_le(raw, 0x32)? } else { 0 };
        let unused = u32::from(unused_high) << 16 | u32::from(u16_le(raw, 0x1c)?);
        let inodes_used = if !geometry.uninit_groups {
            geometry.inodes_per_group
        } else if flags & INODE_UNINIT != 0 {
            0
        } else {
            geometry.inodes_per_group.saturating_sub(unused)
        };
        let descriptor = Descriptor {
            block_bitmap: block(0x0, 0x20)?,
            inode_bitmap: block(0x4, 0x24)?,
            inode_table: block(0x8, 0x28)?,
            block_uninit: flags & BLOCK_UNINIT != 0,
            inodes_used,
        };
        let usable = descriptor.block_bitmap != 0
            && descriptor.inode_bitmap != 0
            && descriptor.inode_table != 0
            && geometry.contains(descriptor.block_bitmap)
            && geometry.contains(descriptor.inode_bitmap)
            && geometry
                .contains_run(descriptor.inode_table, u64::from(geometry.inode_table_blocks()));
        usable.then_some(descriptor)
    }

    /// Whether the other descriptor keeps its bitmaps and inode table in the same places.
    pub(crate) fn same_places(&self, other: &Descriptor) -> bool {
        (self.block_bitmap, self.inode_bitmap, self.inode_table)
            == (other.block_bitmap, other.inode_bitmap, other.inode_table)
    }
}
