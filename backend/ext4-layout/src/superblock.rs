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
/// As many blocks of 1 KiB; far more than any device has.
const BLOCKS_MAX: u64 = 1 << 37;
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

/// Little-endian fields of a superblock, by offset.
struct Fields<'a>(&'a [u8; SUPERBLOCK_BYTES]);

impl Fields<'_> {
    fn word(&self, at: usize) -> u32 {
        u32_le(self.0, at).unwrap_or(0)
    }

    fn half(&self, at: usize) -> u16 {
        u16_le(self.0, at).unwrap_or(0)
    }

    fn compat(&self, bit: u32) -> bool {
        self.word(0x5c) & bit != 0
    }

    fn incompat(&self, bit: u32) -> bool {
        self.word(0x60) & bit != 0
    }

    fn ro_compat(&self, bit: u32) -> bool {
        self.word(0x64) & bit != 0
    }
}

/// Blocks, clusters and groups.
struct Blocks {
    bits: u32,
    count: u64,
    first: u64,
    per_group: u32,
    cluster_bits: u32,
    groups: u32,
}

/// Group descriptors.
struct Descriptors {
    bytes: u16,
    per_block: u32,
    blocks: u32,
    reserved_blocks: u32,
    first_meta_bg: Option<u32>,
}

impl Superblock {
    /// Parses and checks a superblock of a file system that may use `room_bytes` of the device.
    pub(crate) fn parse(raw: &[u8], room_bytes: u64) -> Result<Superblock, OpenError> {
        let raw = raw
            .first_chunk::<SUPERBLOCK_BYTES>()
            .filter(|raw| has_magic(&raw[..]))
            .ok_or(OpenError::NotExt4 { looked_at: "no superblock magic" })?;
        let fields = Fields(raw);
        refuse(&fields)?;
        let blocks = Blocks::parse(&fields, room_bytes)?;
        let (inode_bytes, inodes_per_group) = inodes(&fields, &blocks)?;
        let descriptors = Descriptors::parse(&fields, &blocks)?;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&raw[0x68..0x78]);
        let checksum_seed = fields.ro_compat(RO_COMPAT_METADATA_CSUM).then(|| {
            if fields.incompat(INCOMPAT_CSUM_SEED) { fields.word(0x270) } else { crc32c(!0, &uuid) }
        });
        Ok(Superblock {
            needs_recovery: fields.incompat(INCOMPAT_RECOVER),
            geometry: Geometry {
                block_bits: blocks.bits,
                blocks_count: blocks.count,
                first_data_block: blocks.first,
                blocks_per_group: blocks.per_group,
                cluster_bits: blocks.cluster_bits,
                groups: blocks.groups,
                inodes_per_group,
                inode_bytes,
                desc_bytes: usize::from(descriptors.bytes),
                descs_per_block: descriptors.per_block,
                gdt_blocks: descriptors.blocks,
                reserved_gdt_blocks: descriptors.reserved_blocks,
                first_meta_bg: descriptors.first_meta_bg,
                sparse_super: fields.ro_compat(RO_COMPAT_SPARSE_SUPER),
                sparse_super2: fields
                    .compat(COMPAT_SPARSE_SUPER2)
                    .then(|| [fields.word(0x24c), fields.word(0x250)]),
                uninit_groups: fields.ro_compat(RO_COMPAT_GDT_CSUM | RO_COMPAT_METADATA_CSUM),
                mmp_block: fields
                    .incompat(INCOMPAT_MMP)
                    .then(|| u64_le(raw, 0x168).unwrap_or(0))
                    .filter(|block| *block < blocks.count),
                journal_inode: fields.compat(COMPAT_HAS_JOURNAL).then(|| fields.word(0xe0)),
                orphan_inode: fields.compat(COMPAT_ORPHAN_FILE).then(|| fields.word(0x280)),
                checksum_seed,
                uuid,
                features: [
                    fields.word(0x5c),
                    fields.word(0x60) & !INCOMPAT_RECOVER,
                    fields.word(0x64) & !RO_COMPAT_TRANSIENT,
                ],
            },
        })
    }
}

/// What no geometry can follow from.
fn refuse(fields: &Fields<'_>) -> Result<(), OpenError> {
    let incompat = fields.word(0x60);
    if incompat & INCOMPAT_JOURNAL_DEV != 0 {
        return Err(OpenError::JournalDevice);
    }
    if incompat & !INCOMPAT_KNOWN != 0 {
        return Err(OpenError::Unsupported { bits: incompat & !INCOMPAT_KNOWN });
    }
    let checksum = fields.word(0x3fc);
    if fields.ro_compat(RO_COMPAT_METADATA_CSUM) && crc32c(!0, &fields.0[..0x3fc]) != checksum {
        return corrupt("s_checksum", checksum.into());
    }
    if fields.compat(COMPAT_HAS_JOURNAL) && fields.word(0xe0) == 0 {
        return Err(OpenError::ExternalJournal);
    }
    Ok(())
}

impl Blocks {
    fn parse(fields: &Fields<'_>, room_bytes: u64) -> Result<Blocks, OpenError> {
        let bits = check("s_log_block_size", fields.word(0x18), |log| log <= 6)? + 10;
        let bytes = 1_u32 << bits;
        let bigalloc = fields.ro_compat(RO_COMPAT_BIGALLOC);
        let cluster_bits = if bigalloc {
            let log = check("s_log_cluster_size", fields.word(0x1c), |log| {
                (bits..=bits + 14).contains(&log.saturating_add(10))
            })?;
            log + 10 - bits
        } else {
            0
        };
        let clusters_per_group = fields.word(if bigalloc { 0x24 } else { 0x20 });
        check("s_clusters_per_group", clusters_per_group, |n| {
            n > 0 && n % 8 == 0 && n <= 8 * bytes
        })?;
        let per_group = check("s_blocks_per_group", fields.word(0x20), |n| {
            n >= BLOCKS_PER_GROUP_MIN
                && u64::from(n) == u64::from(clusters_per_group) << cluster_bits
        })?;
        let high = if fields.incompat(INCOMPAT_64BIT) { fields.word(0x150) } else { 0 };
        let count = u64::from(high) << 32 | u64::from(fields.word(0x4));
        let first = check("s_first_data_block", fields.word(0x14), |n| n <= 1)?.into();
        if count <= first || count > (room_bytes >> bits).min(BLOCKS_MAX) {
            return corrupt("s_blocks_count", count);
        }
        let groups = (count - first).div_ceil(u64::from(per_group));
        if groups > GROUPS_MAX {
            return corrupt("the number of groups", groups);
        }
        Ok(Blocks { bits, count, first, per_group, cluster_bits, groups: groups as u32 })
    }

    fn bytes(&self) -> u32 {
        1 << self.bits
    }
}

/// Bytes of an inode, and inodes of a group.
fn inodes(fields: &Fields<'_>, blocks: &Blocks) -> Result<(usize, u32), OpenError> {
    let old_revision = fields.word(0x4c) == 0;
    let bytes = if old_revision { 128 } else { fields.half(0x58).into() };
    check("s_inode_size", bytes, |n| n.is_power_of_two() && n >= 128 && n <= blocks.bytes())?;
    let per_group = check("s_inodes_per_group", fields.word(0x28), |n| {
        n >= blocks.bytes() / bytes && n <= 8 * blocks.bytes()
    })?;
    let count = fields.word(0);
    if u64::from(blocks.groups) * u64::from(per_group) != u64::from(count) {
        return corrupt("s_inodes_count", count.into());
    }
    Ok((bytes as usize, per_group))
}

impl Descriptors {
    fn parse(fields: &Fields<'_>, blocks: &Blocks) -> Result<Descriptors, OpenError> {
        let wide = fields.incompat(INCOMPAT_64BIT);
        let bytes = if wide { fields.half(0xfe) } else { 32 };
        check("s_desc_size", bytes.into(), |n| {
            n.is_power_of_two() && n <= blocks.bytes() && (!wide || n >= 64)
        })?;
        let per_block = blocks.bytes() / u32::from(bytes);
        let gdt_blocks = blocks.groups.div_ceil(per_block);
        let first_meta_bg = if fields.incompat(INCOMPAT_META_BG) {
            Some(check("s_first_meta_bg", fields.word(0x104), |n| n <= gdt_blocks)?)
        } else {
            None
        };
        let reserved_blocks =
            check("s_reserved_gdt_blocks", fields.half(0xce).into(), |n| n <= blocks.bytes() / 4)?;
        Ok(Descriptors { bytes, per_block, blocks: gdt_blocks, reserved_blocks, first_meta_bg })
    }
}

fn corrupt<T>(field: &'static str, value: u64) -> Result<T, OpenError> {
    Err(OpenError::Corrupt { field, value })
}

fn check(field: &'static str, value: u32, good: impl Fn(u32) -> bool) -> Result<u32, OpenError> {
    if good(value) { Ok(value) } else { corrupt(field, value.into()) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A superblock of three groups of 8192 blocks of 1 KiB, with a journal, 64bit and no
    /// checksums.
    pub(crate) fn sample() -> Vec<u8> {
        let mut raw = vec![0; SUPERBLOCK_BYTES];
        for (at, value) in [
            (0x0, 3 * 2048),
            (0x4, 24_577),
            (0x14, 1),
            (0x20, 8192),
            (0x24, 8192),
            (0x28, 2048),
            (0x4c, 1),
            (0x5c, COMPAT_HAS_JOURNAL),
            (0x60, INCOMPAT_64BIT | 0x42),
            (0x64, RO_COMPAT_SPARSE_SUPER),
            (0xe0, 8),
        ] {
            put(&mut raw, at, value);
        }
        raw[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
        raw[0x58..0x5a].copy_from_slice(&256_u16.to_le_bytes());
        raw[0xce..0xd0].copy_from_slice(&7_u16.to_le_bytes());
        raw[0xfe..0x100].copy_from_slice(&64_u16.to_le_bytes());
        raw
    }

    fn put(raw: &mut [u8], at: usize, value: u32) {
        raw[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn parse(raw: &[u8]) -> Result<Superblock, OpenError> {
        Superblock::parse(raw, 24_577 * 1024)
    }

    #[test]
    fn a_sound_superblock_gives_its_geometry() {
        let Superblock { geometry, needs_recovery } = parse(&sample()).unwrap();
        assert_eq!((geometry.groups, geometry.gdt_blocks, geometry.inode_bytes), (3, 1, 256));
        assert_eq!((geometry.journal_inode, geometry.checksum_seed), (Some(8), None));
        assert!(!needs_recovery);
    }

    #[test]
    fn a_mount_does_not_change_the_geometry() {
        let mut mounted = sample();
        put(&mut mounted, 0x60, INCOMPAT_64BIT | 0x42 | INCOMPAT_RECOVER);
        let mounted = parse(&mounted).unwrap();
        assert!(mounted.needs_recovery);
        assert_eq!(mounted.geometry, parse(&sample()).unwrap().geometry);
    }

    #[test]
    fn each_impossible_field_is_named() {
        for (at, value, name) in [
            (0x18, 7, "s_log_block_size"),
            (0x20, 8193, "s_clusters_per_group"),
            (0x20, 128, "s_blocks_per_group"),
            (0x14, 2, "s_first_data_block"),
            (0x4, 24_578, "s_blocks_count"),
            (0x4, 1, "s_blocks_count"),
            (0x150, 1, "s_blocks_count"),
            (0x28, 3, "s_inodes_per_group"),
            (0x28, 1024, "s_inodes_count"),
            (0x58, 200, "s_inode_size"),
            (0x64, RO_COMPAT_METADATA_CSUM, "s_checksum"),
        ] {
            let mut raw = sample();
            put(&mut raw, at, value);
            match parse(&raw) {
                Err(OpenError::Corrupt { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_file_system_of_its_own_is_refused() {
        let with = |at, value| {
            let mut raw = sample();
            put(&mut raw, at, value);
            parse(&raw).unwrap_err()
        };
        assert!(matches!(with(0xe0, 0), OpenError::ExternalJournal));
        assert!(matches!(with(0x60, INCOMPAT_JOURNAL_DEV), OpenError::JournalDevice));
        assert!(matches!(with(0x60, 0x8000_0040), OpenError::Unsupported { bits: 0x8000_0000 }));
        assert!(matches!(with(0x38, 0), OpenError::NotExt4 { .. }));
        assert!(matches!(parse(&sample()[..1000]), Err(OpenError::NotExt4 { .. })));
    }
}
