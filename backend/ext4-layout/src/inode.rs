//! `struct ext4_inode`: whose blocks an inode's tree maps, and as what.
//!
//! In: the bytes of one inode. Out: an [`Inode`], or `None` for one that owns no blocks: never
//! used, deleted, a device, a fast symbolic link, data stored inline, a failed checksum.

use crate::bytes::{crc32c, crc32c_with_hole, u16_le, u32_le};
use crate::class::{Ino, Written};
use crate::extent;
use crate::geometry::Geometry;
use crate::indirect;
use crate::mapping::{Extent, Mapping, Tree};

/// Bytes of the part that every inode has (`EXT4_GOOD_OLD_INODE_SIZE`); all that is needed here.
pub(crate) const GOOD_OLD_BYTES: usize = 128;

const BAD_BLOCKS_INODE: Ino = 1;
const RESIZE_INODE: Ino = 7;

const FORMAT_MASK: u16 = 0xf000;
const FORMAT_DIRECTORY: u16 = 0x4000;
const FORMAT_REGULAR: u16 = 0x8000;
const FORMAT_LINK: u16 = 0xa000;

const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_EA_INODE: u32 = 0x20_0000;
const FLAG_INLINE_DATA: u32 = 0x1000_0000;

/// What the blocks that an inode maps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Data,
    Directory,
    /// The value of a large extended attribute.
    Xattr,
    /// The journal's log.
    Journal,
    OrphanFile,
    /// The resize inode: its double indirect block alone; what that block maps is known from
    /// geometry.
    Resize,
    /// Nothing is mapped; the inode has an extended attribute block.
    Nothing,
}

/// An inode in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) usage: Use,
    pub(crate) tree: Tree,
    pub(crate) generation: u32,
    pub(crate) root: Mapping,
    /// `i_file_acl`.
    pub(crate) xattr_block: Option<u64>,
}

impl Inode {
    /// Parses inode `ino`. The checksum is checked when `raw` holds the whole inode.
    pub(crate) fn parse(raw: &[u8], geometry: &Geometry, ino: Ino) -> Option<Inode> {
        let links = u16_le(raw, 0x1a)?;
        let deleted = u32_le(raw, 0x14)?;
        // An unlinked inode that is still open has no links and, in i_dtime, 0 or the number of
        // the next such inode; a deleted one has the time.
        if links == 0 && u64::from(deleted) > geometry.inodes_count() {
            return None;
        }
        let mode = u16_le(raw, 0)?;
        if (mode == 0 && ino != RESIZE_INODE)
            || (links == 0 && mode & FORMAT_MASK == 0)
            || ino == BAD_BLOCKS_INODE
            || !checksum_fits(raw, geometry, ino)
        {
            return None;
        }
        let flags = u32_le(raw, 0x20)?;
        let size = u64::from(u32_le(raw, 0x6c)?) << 32 | u64::from(u32_le(raw, 0x4)?);
        let i_block = raw.get(0x28..0x64)?;
        let tree = if flags & FLAG_EXTENTS != 0 { Tree::Extents } else { Tree::Indirect };
        let usage = match mode & FORMAT_MASK {
            _ if ino == RESIZE_INODE => Use::Resize,
            _ if flags & FLAG_INLINE_DATA != 0 => Use::Nothing,
            _ if geometry.journal_inode == Some(ino) => Use::Journal,
            _ if geometry.orphan_inode == Some(ino) => Use::OrphanFile,
            FORMAT_DIRECTORY => Use::Directory,
            FORMAT_REGULAR if flags & FLAG_EA_INODE != 0 => Use::Xattr,
            FORMAT_REGULAR => Use::Data,
            FORMAT_LINK if tree == Tree::Extents || size >= i_block.len() as u64 => Use::Data,
            _ => Use::Nothing,
        };
        let root = match (usage, tree) {
            (Use::Nothing, _) => Mapping::default(),
            (Use::Resize, _) => resize_root(i_block, geometry),
            (_, Tree::Extents) => extent::parse(i_block, geometry, None).unwrap_or_default(),
            (_, Tree::Indirect) => indirect::parse_root(i_block, geometry),
        };
        let xattr_block = u64::from(u16_le(raw, 0x76)?) << 32 | u64::from(u32_le(raw, 0x68)?);
        let xattr_block =
            (xattr_block != 0 && geometry.contains(xattr_block)).then_some(xattr_block);
        let owns_nothing =
            root.extents.is_empty() && root.children.is_empty() && xattr_block.is_none();
        (!owns_nothing).then(|| Inode {
            usage,
            tree,
            generation: u32_le(raw, 0x64).unwrap_or(0),
            root,
            xattr_block,
        })
    }
}

fn resize_root(i_block: &[u8], geometry: &Geometry) -> Mapping {
    let double = u32_le(i_block, 13 * 4).map_or(0, u64::from);
    let block = Extent { lblk: 0, len: 1, pblk: double, state: Written::Written };
    let extents = (double != 0 && geometry.contains(double)).then_some(block);
    Mapping { extents: extents.into_iter().collect(), children: Box::default() }
}

/// `ext4_inode_csum_verify`.
pub(crate) fn checksum_fits(raw: &[u8], geometry: &Geometry, ino: Ino) -> bool {
    let Some(seed) = geometry.checksum_seed else {
        return true;
    };
    if raw.len() < geometry.inode_bytes {
        return true;
    }
    let raw = &raw[..geometry.inode_bytes];
    let half = |at| u16_le(raw, at).unwrap_or(0);
    let seed = crc32c(crc32c(seed, &ino.to_le_bytes()), &raw[0x64..0x68]);
    let has_high = raw.len() > GOOD_OLD_BYTES && half(0x80) >= 4;
    let (old, extra) = raw.split_at(GOOD_OLD_BYTES);
    let sum = crc32c_with_hole(seed, old, 0x7c..0x7e);
    if has_high {
        let stored = u32::from(half(0x82)) << 16 | u32::from(half(0x7c));
        crc32c_with_hole(sum, extra, 2..4) == stored
    } else {
        crc32c(sum, extra) as u16 == half(0x7c)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::superblock::Superblock;
    use crate::superblock::tests::sample;

    fn geometry() -> Geometry {
        Superblock::parse(&sample(), 24_577 * 1024).unwrap().geometry
    }

    /// An inode whose first direct pointer is block 500.
    fn raw(mode: u16, flags: u32) -> Vec<u8> {
        let mut raw = vec![0; 256];
        raw[..2].copy_from_slice(&mode.to_le_bytes());
        raw[0x1a] = 1;
        raw[0x20..0x24].copy_from_slice(&flags.to_le_bytes());
        raw[0x28..0x2c].copy_from_slice(&500_u32.to_le_bytes());
        raw
    }

    fn usage(raw: &[u8], ino: Ino) -> Option<Use> {
        Inode::parse(raw, &geometry(), ino).map(|inode| inode.usage)
    }

    #[test]
    fn the_mode_says_what_the_blocks_are() {
        assert_eq!(usage(&raw(0x81a4, 0), 12), Some(Use::Data));
        assert_eq!(usage(&raw(0x41ed, 0), 2), Some(Use::Directory));
        assert_eq!(usage(&raw(0x8180, 0), 8), Some(Use::Journal));
        assert_eq!(usage(&raw(0x8180, FLAG_EA_INODE), 12), Some(Use::Xattr));
        assert_eq!(usage(&raw(0x2180, 0), 12), None, "a device number is no block");
        assert_eq!(usage(&raw(0x8180, FLAG_INLINE_DATA), 12), None);
    }

    #[test]
    fn short_links_have_no_blocks() {
        let mut link = raw(0xa1ff, 0);
        link[4] = 59;
        assert_eq!(usage(&link, 12), None);
        link[4] = 60;
        assert_eq!(usage(&link, 12), Some(Use::Data));
    }

    #[test]
    fn deleted_inodes_own_nothing_and_orphans_do() {
        let mut unlinked = raw(0x81a4, 0);
        unlinked[0x1a] = 0;
        assert_eq!(usage(&unlinked, 12), Some(Use::Data));
        unlinked[0x14] = 13;
        assert_eq!(usage(&unlinked, 12), Some(Use::Data), "13 is the next orphan");
        unlinked[0x17] = 0x65;
        assert_eq!(usage(&unlinked, 12), None, "a time");
    }

    #[test]
    fn a_wrong_checksum_makes_an_inode_unusable() {
        let mut geometry = geometry();
        geometry.checksum_seed = Some(7);
        assert!(Inode::parse(&raw(0x81a4, 0), &geometry, 12).is_none());
        assert!(Inode::parse(&raw(0x81a4, 0)[..128], &geometry, 12).is_some(), "a part has none");
    }
}
