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
    let entries = bytes
        .get(HEADER_BYTES..)?
        .chunks_exact(ENTRY_BYTES)
        .take(header.entries);
    if header.depth == 0 {
        let extents = entries.filter_map(leaf_entry);
        let extents =
            extents.filter(|extent| geometry.contains_run(extent.pblk, extent.len.into()));
        return Some(Mapping {
            extents: extents.collect(),
            children: Box::default(),
        });
    }
    let children = entries.filter_map(|entry| index_entry(entry, header.depth - 1));
    let children = children.filter(|child| geometry.contains(child.pblk));
    Some(Mapping {
        extents: Box::default(),
        children: children.collect(),
    })
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
    sound.then_some(Extent {
        lblk,
        len,
        pblk,
        state,
    })
}

fn index_entry(entry: &[u8], depth: u16) -> Option<Child> {
    let lblk = u32_le(entry, 0)?;
    let pblk = u64::from(u16_le(entry, 8)?) << 32 | u64::from(u32_le(entry, 4)?);
    Some(Child { pblk, lblk, depth })
}
