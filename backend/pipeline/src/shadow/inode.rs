//! Inodes, read for checking: nothing is left out that cannot be.
//!
//! In: bytes of an inode. Out: fields as they are stored.
//! Must not know: which of them are right.

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
