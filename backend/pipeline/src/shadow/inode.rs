//! Inodes and nodes of their trees, read for checking: nothing is left out that cannot be.
//!
//! In: bytes of an inode or of a tree's block. Out: fields, and entries as they are stored.
//! Must not know: which of them are right.

/// `EXT4_EXT_MAGIC`.
const MAGIC: u16 = 0xf30a;
const HEADER_BYTES: usize = 12;
/// `EXT4_MAX_EXTENT_DEPTH`.
const DEPTH_MAX: u16 = 5;
/// `EXT_INIT_MAX_LEN`: longer is unwritten.
const WRITTEN_LEN_MAX: u32 = 1 << 15;

const FORMAT_MASK: u16 = 0xf000;
const FORMAT_REGULAR: u16 = 0x8000;
const FORMAT_DIRECTORY: u16 = 0x4000;
const FORMAT_LINK: u16 = 0xa000;

const FLAG_HUGE_FILE: u32 = 0x4_0000;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_VERITY: u32 = 0x10_0000;
const FLAG_EA_INODE: u32 = 0x20_0000;
const FLAG_EOFBLOCKS: u32 = 0x40_0000;
const FLAG_INLINE_DATA: u32 = 0x1000_0000;

/// First inode number of ordinary files (`EXT4_GOOD_OLD_FIRST_INO`).
const FIRST_INODE: u32 = 11;

fn half(raw: &[u8], at: usize) -> u16 {
    raw.get(at..at + 2).map_or(0, |raw| u16::from_le_bytes([raw[0], raw[1]]))
}

pub(super) fn word(raw: &[u8], at: usize) -> u32 {
    raw.get(at..at + 4).map_or(0, |raw| u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]))
}

/// An inode as stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawInode<'a>(pub(super) &'a [u8]);

/// What the blocks of an inode are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Data,
    Directory,
    /// Attribute values, the log, the orphan file, the resize inode: not looked into.
    Special,
}

impl<'a> RawInode<'a> {
    /// The inode exists and maps blocks through an extent tree.
    pub(super) fn has_tree(self) -> bool {
        let links = half(self.0, 0x1a);
        let mode = half(self.0, 0) & FORMAT_MASK;
        let flags = word(self.0, 0x20);
        let mapped = matches!(mode, FORMAT_REGULAR | FORMAT_DIRECTORY | FORMAT_LINK);
        mapped
            && (links > 0 || !self.is_deleted())
            && flags & FLAG_EXTENTS != 0
            && flags & FLAG_INLINE_DATA == 0
    }

    /// The inode was never used, or its bytes were zeroed.
    pub(super) fn is_blank(self) -> bool {
        half(self.0, 0) == 0
    }

    fn is_deleted(self) -> bool {
        // `i_dtime` of an orphan is the number of the next one; of a deleted inode it is a time.
        half(self.0, 0x1a) == 0 && word(self.0, 0x14) > 1 << 28
    }

    pub(super) fn links(self) -> u16 {
        half(self.0, 0x1a)
    }

    /// `i_dtime`: on the orphan list, the next orphan.
    pub(super) fn next_orphan(self) -> u32 {
        word(self.0, 0x14)
    }

    pub(super) fn generation(self) -> u32 {
        word(self.0, 0x64)
    }

    pub(super) fn content(self, ino: u32, journal: Option<u32>) -> Content {
        let flags = word(self.0, 0x20);
        let special = Some(ino) == journal || flags & FLAG_EA_INODE != 0;
        match half(self.0, 0) & FORMAT_MASK {
            _ if special => Content::Special,
            FORMAT_REGULAR | FORMAT_LINK if ino >= FIRST_INODE || (3..=4).contains(&ino) => {
                Content::Data
            }
            FORMAT_DIRECTORY => Content::Directory,
            _ => Content::Special,
        }
    }

    /// The size in blocks, for files in which no written block may lie beyond it.
    pub(super) fn size_blocks(self, ino: u32, block_bytes: u64) -> Option<u64> {
        let flags = word(self.0, 0x20);
        let plain = half(self.0, 0) & FORMAT_MASK == FORMAT_REGULAR
            && ino >= FIRST_INODE
            && flags & (FLAG_VERITY | FLAG_EOFBLOCKS | FLAG_EA_INODE) == 0;
        let size = u64::from(word(self.0, 0x6c)) << 32 | u64::from(word(self.0, 0x4));
        plain.then(|| size.div_ceil(block_bytes))
    }

    /// `i_blocks` in blocks of the file system.
    pub(super) fn block_count(self, block_bytes: u64) -> u64 {
        let count = u64::from(half(self.0, 0x74)) << 32 | u64::from(word(self.0, 0x1c));
        if word(self.0, 0x20) & FLAG_HUGE_FILE != 0 { count } else { count * 512 / block_bytes }
    }

    pub(super) fn has_xattr_block(self) -> bool {
        word(self.0, 0x68) != 0 || half(self.0, 0x76) != 0
    }

    pub(super) fn root(self) -> &'a [u8] {
        self.0.get(0x28..0x64).unwrap_or_default()
    }
}

/// An entry of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) lblk: u32,
    pub(super) len: u32,
    pub(super) pblk: u64,
    pub(super) written: bool,
}

/// A node of an extent tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node<'a> {
    pub(super) depth: u16,
    entries: &'a [u8],
}

impl<'a> Node<'a> {
    /// `Err` says why the bytes are no node.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Node<'a>, String> {
        let (magic, count, max, depth) =
            (half(bytes, 0), half(bytes, 2), half(bytes, 4), half(bytes, 6));
        if magic != MAGIC {
            return Err(format!("its extent node has magic {magic:#06x}"));
        }
        let room = bytes.len().saturating_sub(HEADER_BYTES) / 12;
        if count > max || usize::from(max) > room || depth > DEPTH_MAX {
            return Err(format!("its extent node has {count} of {max} entries at depth {depth}"));
        }
        let end = HEADER_BYTES + usize::from(count) * 12;
        Ok(Node { depth, entries: bytes.get(HEADER_BYTES..end).unwrap_or_default() })
    }

    /// Whether the bytes start as a node does.
    pub(super) fn is_likely(bytes: &[u8]) -> bool {
        half(bytes, 0) == MAGIC && half(bytes, 4) > 0 && Node::parse(bytes).is_ok()
    }

    pub(super) fn extents(self) -> impl Iterator<Item = Extent> + 'a {
        let leaf = if self.depth == 0 { self.entries } else { &[] };
        leaf.chunks_exact(12).map(|entry| {
            let stored = u32::from(half(entry, 4));
            let written = stored <= WRITTEN_LEN_MAX;
            Extent {
                lblk: word(entry, 0),
                len: if written { stored } else { stored - WRITTEN_LEN_MAX },
                pblk: u64::from(half(entry, 6)) << 32 | u64::from(word(entry, 8)),
                written,
            }
        })
    }

    /// First logical block and place of each child.
    pub(super) fn children(self) -> impl Iterator<Item = (u32, u64)> + 'a {
        let index = if self.depth == 0 { &[] } else { self.entries };
        index.chunks_exact(12).map(|entry| {
            (word(entry, 0), u64::from(half(entry, 8)) << 32 | u64::from(word(entry, 4)))
        })
    }

    /// What cannot be, if anything: blocks outside `first..end`, empty, unsorted or overlapping
    /// entries.
    pub(super) fn fault(self, first: u64, end: u64) -> Option<String> {
        let mut next = 0_u64;
        for extent in self.extents() {
            let Extent { lblk, len, pblk, .. } = extent;
            let last = u64::from(lblk) + u64::from(len);
            if len == 0 || last > 1 << 32 {
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
        for (lblk, pblk) in self.children() {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn node(depth: u16, entries: &[(u32, u16, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        for (at, half) in [MAGIC, entries.len() as u16, 84, depth].into_iter().enumerate() {
            bytes[at * 2..at * 2 + 2].copy_from_slice(&half.to_le_bytes());
        }
        for (raw, (lblk, middle, low)) in bytes[12..].chunks_exact_mut(12).zip(entries) {
            raw[..4].copy_from_slice(&lblk.to_le_bytes());
            raw[4..6].copy_from_slice(&middle.to_le_bytes());
            raw[8..].copy_from_slice(&low.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn each_impossible_node_is_named() {
        let sound = node(0, &[(0, 10, 100), (10, 32_769, 200)]);
        let parsed = Node::parse(&sound).unwrap();
        assert_eq!(parsed.fault(1, 1000), None);
        assert_eq!(
            parsed.extents().map(|extent| extent.written).collect::<Vec<_>>(),
            [true, false]
        );
        for (entries, word) in [
            (&[(0, 10, 995)][..], "maps blocks"),
            (&[(0, 0, 5)], "has 0 blocks"),
            (&[(5, 10, 100), (14, 1, 200)], "begins before"),
            (&[(u32::MAX, 2, 100)], "has 2 blocks"),
        ] {
            let bytes = node(0, entries);
            let fault = Node::parse(&bytes).unwrap().fault(1, 1000).unwrap();
            assert!(fault.contains(word), "{fault}");
        }
        assert!(Node::parse(&node(6, &[])).is_err());
        assert!(Node::parse(&[0; 60]).is_err());
        assert!(Node::parse(&[]).is_err());
    }
}
