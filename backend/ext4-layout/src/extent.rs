//! Extent tree nodes (`struct ext4_extent_header` and what follows it), in inodes and in blocks.
//!
//! In: bytes, and the depth that the parent promises. Out: a [`Mapping`] of the entries that can be,
//! or, for checkers, an [`ExtentNode`] with all of them. `ee_len` is decoded here: above 32768 the
//! extent is unwritten.

use thiserror::Error;

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

/// Why bytes are no extent node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotANode {
    /// `eh_magic`.
    #[error("magic {0:#06x}")]
    Magic(u16),
    /// Too many entries, no room for any, or too deep.
    #[error("{entries} of {max} entries at depth {depth}")]
    Header {
        /// `eh_entries`.
        entries: u16,
        /// `eh_max`.
        max: u16,
        /// `eh_depth`.
        depth: u16,
    },
}

/// An extent node with a sound header; its entries are as they are stored.
#[derive(Clone, Copy, Debug)]
pub struct ExtentNode<'a> {
    /// 0: the entries map data.
    pub depth: u16,
    max: usize,
    entries: &'a [u8],
}

impl<'a> ExtentNode<'a> {
    /// Reads the header: of a block, or of `i_block`.
    ///
    /// # Errors
    /// Bytes that are no node.
    pub fn parse(bytes: &'a [u8]) -> Result<ExtentNode<'a>, NotANode> {
        let half = |at| u16_le(bytes, at).unwrap_or(0);
        let (magic, entries, max, depth) = (half(0), half(2), half(4), half(6));
        if magic != MAGIC {
            return Err(NotANode::Magic(magic));
        }
        let room = bytes.len().saturating_sub(HEADER_BYTES) / ENTRY_BYTES;
        if max == 0 || entries > max || usize::from(max) > room || depth > DEPTH_MAX {
            return Err(NotANode::Header { entries, max, depth });
        }
        let end = HEADER_BYTES + usize::from(entries) * ENTRY_BYTES;
        let entries = bytes.get(HEADER_BYTES..end).unwrap_or_default();
        Ok(ExtentNode { depth, max: max.into(), entries })
    }

    /// The entries of a leaf.
    pub fn extents(self) -> impl Iterator<Item = Extent> + 'a {
        let leaf = if self.depth == 0 { self.entries } else { &[] };
        leaf.chunks_exact(ENTRY_BYTES).filter_map(leaf_entry)
    }

    /// The entries of an index node.
    pub fn children(self) -> impl Iterator<Item = Child> + 'a {
        let index = if self.depth == 0 { &[] } else { self.entries };
        let depth = self.depth.saturating_sub(1);
        index.chunks_exact(ENTRY_BYTES).filter_map(move |entry| index_entry(entry, depth))
    }

    /// What cannot be, if anything: blocks outside `first..end`, empty, unsorted or overlapping
    /// entries.
    pub fn fault(self, first: u64, end: u64) -> Option<String> {
        let mut next = 0_u64;
        for extent in self.extents() {
            let Extent { lblk, len, pblk, .. } = extent;
            let last = u64::from(lblk) + u64::from(len);
            if !is_possible(&extent) {
                return Some(format!("an extent at lblk {lblk} has {len} blocks"));
            }
            if u64::from(lblk) < next {
                return Some(format!("the extent at lblk {lblk} begins before {next}"));
            }
            if pblk < first || pblk.saturating_add(len.into()) > end {
                return Some(format!("the extent at lblk {lblk} maps blocks {pblk}+{len}"));
            }
            next = last;
        }
        for Child { lblk, pblk, .. } in self.children() {
            if u64::from(lblk) < next {
                return Some(format!("the index entry at lblk {lblk} begins before {next}"));
            }
            if pblk < first || pblk >= end {
                return Some(format!("the index entry at lblk {lblk} points at block {pblk}"));
            }
            next = u64::from(lblk) + 1;
        }
        None
    }
}

/// Whether the bytes start as an extent node does.
pub(crate) fn looks_like_node(bytes: &[u8]) -> bool {
    ExtentNode::parse(bytes).is_ok()
}

/// An entry has blocks, and they have numbers.
fn is_possible(extent: &Extent) -> bool {
    extent.len > 0 && extent.lblk.checked_add(extent.len - 1).is_some()
}

/// Whether `et_checksum` of a node block fits (`ext4_extent_block_csum_verify`).
pub(crate) fn checksum_fits(bytes: &[u8], seed: u32, ino: Ino, generation: u32) -> bool {
    let Ok(node) = ExtentNode::parse(bytes) else {
        return false;
    };
    let tail = HEADER_BYTES + ENTRY_BYTES * node.max;
    let seed = crc32c(crc32c(seed, &ino.to_le_bytes()), &generation.to_le_bytes());
    bytes
        .get(..tail)
        .zip(u32_le(bytes, tail))
        .is_some_and(|(covered, stored)| crc32c(seed, covered) == stored)
}

/// Parses a node; `depth` is what the parent says, `None` for the root in the inode.
pub(crate) fn parse(bytes: &[u8], geometry: &Geometry, depth: Option<u16>) -> Option<Mapping> {
    let node = ExtentNode::parse(bytes).ok()?;
    if depth.is_some_and(|depth| depth != node.depth) {
        return None;
    }
    let extents = node.extents().filter(is_possible);
    let extents = extents.filter(|extent| geometry.contains_run(extent.pblk, extent.len.into()));
    let children = node.children().filter(|child| geometry.contains(child.pblk));
    Some(Mapping { extents: extents.collect(), children: children.collect() })
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
    Some(Extent { lblk, len, pblk, state })
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

    /// A node with room for `max` entries, each of its first four, middle two and last four bytes.
    fn node(depth: u16, count: u16, max: u16, entries: &[(u32, u16, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES + usize::from(max) * ENTRY_BYTES];
        for (at, half) in [MAGIC, count, max, depth].into_iter().enumerate() {
            bytes[at * 2..at * 2 + 2].copy_from_slice(&half.to_le_bytes());
        }
        for (raw, (lblk, middle, low)) in bytes[12..].chunks_exact_mut(12).zip(entries) {
            raw[..4].copy_from_slice(&lblk.to_le_bytes());
            raw[4..6].copy_from_slice(&middle.to_le_bytes());
            raw[8..].copy_from_slice(&low.to_le_bytes());
        }
        bytes
    }

    fn root(count: u16, entries: &[(u32, u16, u32)]) -> Vec<u8> {
        node(0, count, 4, entries)
    }

    #[test]
    fn each_impossible_node_is_named() {
        let sound = root(2, &[(0, 10, 100), (10, 32_769, 200)]);
        assert_eq!(ExtentNode::parse(&sound).unwrap().fault(1, 1000), None);
        for (entries, word) in [
            (&[(0, 10, 995)][..], "maps blocks"),
            (&[(0, 0, 5)], "has 0 blocks"),
            (&[(5, 10, 100), (14, 1, 200)], "begins before"),
            (&[(u32::MAX, 2, 100)], "has 2 blocks"),
        ] {
            let bytes = root(entries.len() as u16, entries);
            let fault = ExtentNode::parse(&bytes).unwrap().fault(1, 1000).unwrap();
            assert!(fault.contains(word), "{fault}");
        }
        assert!(matches!(ExtentNode::parse(&node(6, 0, 4, &[])), Err(NotANode::Header { .. })));
        assert!(matches!(ExtentNode::parse(&[0; 60]), Err(NotANode::Magic(0))));
        assert!(ExtentNode::parse(&[]).is_err());
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
