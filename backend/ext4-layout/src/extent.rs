//! Extent tree nodes (`struct ext4_extent_header` and what follows it), in inodes and in blocks.
//!
//! In: bytes, and the depth that the parent promises. Out: a [`Mapping`], or `None` for bytes that
//! are no such node. `ee_len` is decoded here: above 32768 the extent is unwritten.

use crate::bytes::{crc32c, u16_le, u32_le};
use crate::class::{Ino, Written};
use crate::geometry::Geometry;
use crate::mapping::{Child, Extent, Mapping};

const MAGIC: u16 = 0xf30a;
const HEADER_BYTES: usize = 12;
const ENTRY_BYTES: usize = 12;
/// `EXT4_MAX_EXTENT_DEPTH`.
const DEPTH_MAX: u16 = 5;
/// `EXT_INIT_MAX_LEN`: longer is unwritten.
const WRITTEN_LEN_MAX: u32 = 1 << 15;

/// Whether the bytes start as an extent node does.
pub(crate) fn looks_like_node(bytes: &[u8]) -> bool {
    header(bytes).is_some()
}

struct Header {
    entries: usize,
    max: usize,
    depth: u16,
}

fn header(bytes: &[u8]) -> Option<Header> {
    let header = Header {
        entries: usize::from(u16_le(bytes, 2)?),
        max: usize::from(u16_le(bytes, 4)?),
        depth: u16_le(bytes, 6)?,
    };
    let room = bytes.len().checked_sub(HEADER_BYTES)? / ENTRY_BYTES;
    let sound = u16_le(bytes, 0)? == MAGIC
        && header.max > 0
        && header.entries <= header.max
        && header.max <= room
        && header.depth <= DEPTH_MAX;
    sound.then_some(header)
}

/// Whether `et_checksum` of a node block fits (`ext4_extent_block_csum_verify`).
pub(crate) fn checksum_fits(bytes: &[u8], seed: u32, ino: Ino, generation: u32) -> bool {
    let Some(header) = header(bytes) else {
        return false;
    };
    let tail = HEADER_BYTES + ENTRY_BYTES * header.max;
    let seed = crc32c(crc32c(seed, &ino.to_le_bytes()), &generation.to_le_bytes());
    bytes
        .get(..tail)
        .zip(u32_le(bytes, tail))
        .is_some_and(|(covered, stored)| crc32c(seed, covered) == stored)
}

/// Parses a node; `depth` is what the parent says, `None` for the root in the inode.
pub(crate) fn parse(bytes: &[u8], geometry: &Geometry, depth: Option<u16>) -> Option<Mapping> {
    let header = header(bytes)?;
    if depth.is_some_and(|depth| depth != header.depth) {
        return None;
    }
    let entries = bytes.get(HEADER_BYTES..)?.chunks_exact(ENTRY_BYTES).take(header.entries);
    if header.depth == 0 {
        let extents = entries.filter_map(leaf_entry);
        let extents =
            extents.filter(|extent| geometry.contains_run(extent.pblk, extent.len.into()));
        return Some(Mapping { extents: extents.collect(), children: Box::default() });
    }
    let children = entries.filter_map(|entry| index_entry(entry, header.depth - 1));
    let children = children.filter(|child| geometry.contains(child.pblk));
    Some(Mapping { extents: Box::default(), children: children.collect() })
}

fn leaf_entry(entry: &[u8]) -> Option<Extent> {
    let lblk = u32_le(entry, 0)?;
    let ee_len = u32::from(u16_le(entry, 4)?);
    let (len, state) = if ee_len <= WRITTEN_LEN_MAX {
        (ee_len, Written::Written)
    } else {
        (ee_len - WRITTEN_LEN_MAX, Written::Unwritten)
    };
    let pblk = u64::from(u16_le(entry, 6)?) << 32 | u64::from(u32_le(entry, 8)?);
    let sound = len > 0 && lblk.checked_add(len - 1).is_some();
    sound.then_some(Extent { lblk, len, pblk, state })
}

fn index_entry(entry: &[u8], depth: u16) -> Option<Child> {
    let lblk = u32_le(entry, 0)?;
    let pblk = u64::from(u16_le(entry, 8)?) << 32 | u64::from(u32_le(entry, 4)?);
    Some(Child { pblk, lblk, depth })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::superblock::Superblock;
    use crate::superblock::tests::sample;

    fn geometry() -> Geometry {
        Superblock::parse(&sample(), 24_577 * 1024).unwrap().geometry
    }

    /// A root of four entries with `ee_len` and the low half of `ee_start`.
    fn root(entries: u16, lens: &[(u32, u16, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; 60];
        for (at, half) in [MAGIC, entries, 4, 0].into_iter().enumerate() {
            bytes[at * 2..at * 2 + 2].copy_from_slice(&half.to_le_bytes());
        }
        for (entry, (lblk, len, pblk)) in bytes[12..].chunks_exact_mut(12).zip(lens) {
            entry[..4].copy_from_slice(&lblk.to_le_bytes());
            entry[4..6].copy_from_slice(&len.to_le_bytes());
            entry[8..].copy_from_slice(&pblk.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn lengths_above_32768_are_unwritten() {
        let geometry = Geometry { blocks_count: 1 << 20, ..geometry() };
        let bytes = root(3, &[(0, 32_768, 100), (40_000, 32_769, 200), (50_000, 65_535, 300)]);
        let extents = parse(&bytes, &geometry, None).unwrap().extents;
        let states: Vec<_> = extents.iter().map(|extent| (extent.len, extent.state)).collect();
        assert_eq!(
            states,
            [(32_768, Written::Written), (1, Written::Unwritten), (32_767, Written::Unwritten)]
        );
    }

    #[test]
    fn entries_outside_the_file_system_are_left_out() {
        let bytes = root(4, &[(0, 1, 24_576), (1, 2, 24_576), (2, 0, 100), (u32::MAX, 2, 100)]);
        let extents = parse(&bytes, &geometry(), None).unwrap().extents;
        assert_eq!(extents.len(), 1);
    }

    #[test]
    fn a_header_that_cannot_be_is_no_node() {
        assert!(parse(&root(4, &[]), &geometry(), Some(0)).is_some());
        assert!(parse(&root(5, &[]), &geometry(), None).is_none(), "more entries than fit");
        assert!(parse(&root(1, &[]), &geometry(), Some(1)).is_none(), "another depth");
        assert!(parse(&root(0, &[])[..11], &geometry(), None).is_none(), "too short");
        let mut deep = root(0, &[]);
        deep[6] = 6;
        assert!(parse(&deep, &geometry(), None).is_none());
        deep[0] = 0;
        assert!(!looks_like_node(&deep));
    }
}
