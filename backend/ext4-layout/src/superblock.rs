//! `struct ext4_super_block` (Linux `fs/ext4/ext4.h`): what the rest of the layout follows from.
//!
//! In: the 1024 bytes at byte 1024 of the file system. Out: a checked [`Geometry`].
//! Must not know: where on the device the file system starts.

use crate::bytes::{crc32c, u16_le, u32_le, u64_le};
use crate::error::OpenError;
use crate::geometry::Geometry;

/// Length of the superblock, and its offset from the start of the file system, in bytes.
pub(crate) const SUPERBLOCK_BYTES: usize = 1024;

const MAGIC: u16 = 0xef53;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const COMPAT_ORPHAN_FILE: u32 = 0x1000;

const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_MMP: u32 = 0x100;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
/// filetype, recover, journal_dev, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed,
/// largedir, inline_data, encrypt, casefold.
const INCOMPAT_KNOWN: u32 = 0x3_e7de;

const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_GDT_CSUM: u32 = 0x10;
const RO_COMPAT_BIGALLOC: u32 = 0x200;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
/// Set and cleared with every mount (`RO_COMPAT_ORPHAN_PRESENT`).
const RO_COMPAT_TRANSIENT: u32 = 0x1_0000;

/// No ext4 of today has more: 128 TiB in groups of 128 MiB. Bounds what a hostile image costs.
const GROUPS_MAX: u64 = 1 << 20;
/// Smallest value that mke2fs accepts.
const BLOCKS_PER_GROUP_MIN: u32 = 256;

/// A superblock that can be worked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// What does not change while a file system is in use, short of a resize.
    pub(crate) geometry: Geometry,
    /// The log holds transactions to be replayed (`INCOMPAT_RECOVER`).
    pub(crate) needs_recovery: bool,
}

/// Whether the bytes carry ext4's magic number.
pub(crate) fn has_magic(raw: &[u8]) -> bool {
    u16_le(raw, 0x38) == Some(MAGIC)
}

impl Superblock {
    /// Parses and checks a superblock of a file system that may use `room_bytes` of the device.
    pub(crate) fn parse(raw: &[u8], room_bytes: u64) -> Result<Superblock, OpenError> {
        let raw = raw
            .first_chunk::<SUPERBLOCK_BYTES>()
            .filter(|raw| has_magic(&raw[..]))
            .ok_or(OpenError::NotExt4 {
                looked_at: "no superblock magic",
            })?;
        let word = |at| u32_le(raw, at).unwrap_or(0);
        let half = |at| u16_le(raw, at).unwrap_or(0);
        let (compat, incompat, ro_compat) = (word(0x5c), word(0x60), word(0x64));
        let compat_has = |bit| compat & bit != 0;
        let incompat_has = |bit| incompat & bit != 0;
        let ro_compat_has = |bit| ro_compat & bit != 0;

        if incompat_has(INCOMPAT_JOURNAL_DEV) {
            return Err(OpenError::JournalDevice);
        }
        if incompat & !INCOMPAT_KNOWN != 0 {
            return Err(OpenError::Unsupported {
                bits: incompat & !INCOMPAT_KNOWN,
            });
        }
        if ro_compat_has(RO_COMPAT_METADATA_CSUM) && crc32c(!0, &raw[..0x3fc]) != word(0x3fc) {
            return corrupt("s_checksum", word(0x3fc).into());
        }
        let journal_inode = word(0xe0);
        if compat_has(COMPAT_HAS_JOURNAL) && journal_inode == 0 {
            return Err(OpenError::ExternalJournal);
        }

        let block_bits = check("s_log_block_size", word(0x18), |log| log <= 6)? + 10;
        let block_bytes = 1_u32 << block_bits;
        let bigalloc = ro_compat_has(RO_COMPAT_BIGALLOC);
        let cluster_bits = if bigalloc {
            let log = check("s_log_cluster_size", word(0x1c), |log| {
                (block_bits..=block_bits + 14).contains(&(log.saturating_add(10)))
            })?;
            log + 10 - block_bits
        } else {
            0
        };
        let clusters_per_group = if bigalloc { word(0x24) } else { word(0x20) };
        check("s_clusters_per_group", clusters_per_group, |n| {
            n > 0 && n % 8 == 0 && n <= 8 * block_bytes
        })?;
        let blocks_per_group = check("s_blocks_per_group", word(0x20), |n| {
            n >= BLOCKS_PER_GROUP_MIN
                && u64::from(n) == u64::from(clusters_per_group) << cluster_bits
        })?;

        let wide = incompat_has(INCOMPAT_64BIT);
        let high = if wide { u64::from(word(0x150)) } else { 0 };
        let blocks_count = high << 32 | u64::from(word(0x4));
        let first_data_block = check("s_first_data_block", word(0x14), |n| n <= 1)?;
        if blocks_count <= u64::from(first_data_block) || blocks_count > room_bytes >> block_bits {
            return corrupt("s_blocks_count", blocks_count);
        }
        let groups =
            (blocks_count - u64::from(first_data_block)).div_ceil(u64::from(blocks_per_group));
        if groups > GROUPS_MAX {
            return corrupt("the number of groups", groups);
        }

        let old_revision = word(0x4c) == 0;
        let inode_bytes = if old_revision { 128 } else { half(0x58) };
        check("s_inode_size", u32::from(inode_bytes), |n| {
            n.is_power_of_two() && n >= 128 && n <= block_bytes
        })?;
        let inodes_per_group = check("s_inodes_per_group", word(0x28), |n| {
            n >= block_bytes / u32::from(inode_bytes) && n <= 8 * block_bytes
        })?;
        if groups * u64::from(inodes_per_group) != u64::from(word(0)) {
            return corrupt("s_inodes_count", word(0).into());
        }

        let desc_bytes = if wide { half(0xfe) } else { 32 };
        check("s_desc_size", u32::from(desc_bytes), |n| {
            n.is_power_of_two() && n <= block_bytes && (!wide || n >= 64)
        })?;
        let descs_per_block = block_bytes / u32::from(desc_bytes);
        let gdt_blocks = (groups as u32).div_ceil(descs_per_block);
        let first_meta_bg = if incompat_has(INCOMPAT_META_BG) {
            Some(check("s_first_meta_bg", word(0x104), |n| n <= gdt_blocks)?)
        } else {
            None
        };
        let reserved_gdt_blocks = check("s_reserved_gdt_blocks", half(0xce).into(), |n| {
            n <= block_bytes / 4
        })?;

        let mut uuid = [0; 16];
        uuid.copy_from_slice(&raw[0x68..0x78]);
        let checksum_seed = ro_compat_has(RO_COMPAT_METADATA_CSUM).then(|| {
            if incompat_has(INCOMPAT_CSUM_SEED) {
                word(0x270)
            } else {
                crc32c(!0, &uuid)
            }
        });
        Ok(Superblock {
            needs_recovery: incompat_has(INCOMPAT_RECOVER),
            geometry: Geometry {
                block_bits,
                blocks_count,
                first_data_block: u64::from(first_data_block),
                blocks_per_group,
                cluster_bits,
                groups: groups as u32,
                inodes_per_group,
                inode_bytes: usize::from(inode_bytes),
                desc_bytes: usize::from(desc_bytes),
                descs_per_block,
                gdt_blocks,
                reserved_gdt_blocks,
                first_meta_bg,
                sparse_super: ro_compat_has(RO_COMPAT_SPARSE_SUPER),
                sparse_super2: compat_has(COMPAT_SPARSE_SUPER2).then(|| [word(0x24c), word(0x250)]),
                uninit_groups: ro_compat_has(RO_COMPAT_GDT_CSUM | RO_COMPAT_METADATA_CSUM),
                mmp_block: incompat_has(INCOMPAT_MMP)
                    .then(|| u64_le(raw, 0x168).unwrap_or(0))
                    .filter(|block| *block < blocks_count),
                journal_inode: compat_has(COMPAT_HAS_JOURNAL).then_some(journal_inode),
                orphan_inode: compat_has(COMPAT_ORPHAN_FILE).then(|| word(0x280)),
                checksum_seed,
                uuid,
                features: [
                    compat,
                    incompat & !INCOMPAT_RECOVER,
                    ro_compat & !RO_COMPAT_TRANSIENT,
                ],
            },
        })
    }
}

fn corrupt<T>(field: &'static str, value: u64) -> Result<T, OpenError> {
    Err(OpenError::Corrupt { field, value })
}

fn check(field: &'static str, value: u32, good: impl Fn(u32) -> bool) -> Result<u32, OpenError> {
    if good(value) {
        Ok(value)
    } else {
        corrupt(field, value.into())
    }
}
