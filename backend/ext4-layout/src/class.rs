//! What a block of the disk is to ext4.
//!
//! In: nothing. Out: [`Class`], the label every request carries, and [`Kind`], its name in rules.
//! Must not know: requests, rules, how the label was found.
//!
//! A label states what the device knew when it was asked: a block that no durable metadata
//! claims yet is [`Home::Free`], one that cannot be told is [`Home::Unknown`]; nothing is guessed.

use serde::{Deserialize, Serialize};

/// An inode number (`i_ino`); 1-based, as on disk.
pub type Ino = u32;
/// A block group number.
pub type Group = u32;
/// A journal transaction ID (`h_sequence`).
pub type Tid = u32;

/// Whether the blocks of an extent hold data (`ee_len` up to 32768) or read as zero until
/// written (`ee_len` above 32768).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Written {
    /// The extent is initialised: its blocks are what a read returns.
    Written,
    /// The extent is unwritten: a read returns zeroes whatever the blocks hold.
    Unwritten,
}

/// What a block is, outside the journal's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Home {
    /// The superblock or one of its backups.
    Superblock {
        /// A backup copy.
        backup: bool,
    },
    /// Group descriptor blocks, primary or backup, meta_bg included.
    GroupDescriptors {
        /// A backup copy.
        backup: bool,
    },
    /// Blocks reserved for descriptors after a resize (`s_reserved_gdt_blocks`).
    ReservedGdt,
    /// The block bitmap of one group.
    BlockBitmap {
        /// The group it describes.
        group: Group,
    },
    /// The inode bitmap of one group.
    InodeBitmap {
        /// The group it describes.
        group: Group,
    },
    /// Blocks of an inode table.
    InodeTable {
        /// The group of the table.
        group: Group,
        /// First inode number stored in the range.
        first_inode: Ino,
        /// Last inode number stored in the range.
        last_inode: Ino,
    },
    /// An extent tree block outside the inode (leaf: depth 0).
    ExtentNode {
        /// Owner.
        inode: Ino,
        /// `eh_depth` of the block.
        depth: u16,
    },
    /// An indirect, double or triple indirect block of a block-mapped inode.
    IndirectBlock {
        /// Owner.
        inode: Ino,
    },
    /// A directory block.
    Directory {
        /// Owner.
        inode: Ino,
    },
    /// An extended attribute block (`i_file_acl`), or a block of an EA inode (feature `ea_inode`).
    Xattr {
        /// Lowest inode known to refer to it (xattr blocks may be shared), or the EA inode.
        inode: Ino,
    },
    /// Data of a regular file, a long symbolic link, or a quota file.
    FileData {
        /// Owner.
        inode: Ino,
        /// First logical block of the range, in file-system blocks.
        first_lblk: u32,
        /// Last logical block of the range, in file-system blocks.
        last_lblk: u32,
        /// State of the extent that maps it.
        state: Written,
    },
    /// A block of the orphan file (feature `orphan_file`).
    OrphanFile,
    /// The multi-mount protection block.
    Mmp,
    /// Not in use according to the block bitmap.
    Free,
    /// Not ext4, outside the file system, or in use with no owner known.
    Unknown,
}

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// A block at its own place.
    Home(Home),
    /// The journal's superblock.
    JournalSuperblock,
    /// A journal descriptor block.
    JournalDescriptor {
        /// Transaction.
        tid: Tid,
    },
    /// The log copy of a block.
    JournalCopy {
        /// Transaction.
        tid: Tid,
        /// What the copy is of, from the descriptor's tag.
        of: Home,
    },
    /// A commit record.
    JournalCommit {
        /// Transaction.
        tid: Tid,
    },
    /// A revoke record.
    JournalRevoke {
        /// Transaction.
        tid: Tid,
    },
    /// The fast-commit area at the end of the journal (jbd2 feature `FAST_COMMIT`).
    JournalFastCommit,
    /// A block of the log about which no live descriptor says anything.
    JournalIdle,
}

/// The name of a class, as rules, event logs and reports spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
#[allow(missing_docs, reason = "each is documented at the variant of `Home` or `Class` it names")]
pub enum Kind {
    Superblock,
    GroupDescriptors,
    ReservedGdt,
    BlockBitmap,
    InodeBitmap,
    InodeTable,
    ExtentNode,
    IndirectBlock,
    Directory,
    Xattr,
    FileData,
    OrphanFile,
    Mmp,
    Free,
    Unknown,
    JournalSuperblock,
    JournalDescriptor,
    JournalCopy,
    JournalCommit,
    JournalRevoke,
    JournalFastCommit,
    JournalIdle,
}

impl Kind {
    /// Every kind, in the order of their discriminants.
    pub const ALL: [Kind; 22] = [
        Kind::Superblock,
        Kind::GroupDescriptors,
        Kind::ReservedGdt,
        Kind::BlockBitmap,
        Kind::InodeBitmap,
        Kind::InodeTable,
        Kind::ExtentNode,
        Kind::IndirectBlock,
        Kind::Directory,
        Kind::Xattr,
        Kind::FileData,
        Kind::OrphanFile,
        Kind::Mmp,
        Kind::Free,
        Kind::Unknown,
        Kind::JournalSuperblock,
        Kind::JournalDescriptor,
        Kind::JournalCopy,
        Kind::JournalCommit,
        Kind::JournalRevoke,
        Kind::JournalFastCommit,
        Kind::JournalIdle,
    ];

    /// The spelling in rules, logs and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Superblock => "superblock",
            Kind::GroupDescriptors => "group_descriptors",
            Kind::ReservedGdt => "reserved_gdt",
            Kind::BlockBitmap => "block_bitmap",
            Kind::InodeBitmap => "inode_bitmap",
            Kind::InodeTable => "inode_table",
            Kind::ExtentNode => "extent_node",
            Kind::IndirectBlock => "indirect_block",
            Kind::Directory => "directory",
            Kind::Xattr => "xattr",
            Kind::FileData => "file_data",
            Kind::OrphanFile => "orphan_file",
            Kind::Mmp => "mmp",
            Kind::Free => "free",
            Kind::Unknown => "unknown",
            Kind::JournalSuperblock => "journal_superblock",
            Kind::JournalDescriptor => "journal_descriptor",
            Kind::JournalCopy => "journal_copy",
            Kind::JournalCommit => "journal_commit",
            Kind::JournalRevoke => "journal_revoke",
            Kind::JournalFastCommit => "journal_fast_commit",
            Kind::JournalIdle => "journal_idle",
        }
    }

    /// The kind with that spelling.
    pub fn parse(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The set of the kinds of blocks of the log, its superblock included, that hold transactions.
    pub const LOG: u32 = Kind::JournalSuperblock.bit()
        | Kind::JournalDescriptor.bit()
        | Kind::JournalCopy.bit()
        | Kind::JournalCommit.bit()
        | Kind::JournalRevoke.bit()
        | Kind::JournalIdle.bit();

    /// The kind as a bit of a set of kinds.
    pub const fn bit(self) -> u32 {
        1 << self as u8
    }
}

impl Home {
    /// The name of the class.
    pub const fn kind(self) -> Kind {
        match self {
            Home::Superblock { .. } => Kind::Superblock,
            Home::GroupDescriptors { .. } => Kind::GroupDescriptors,
            Home::ReservedGdt => Kind::ReservedGdt,
            Home::BlockBitmap { .. } => Kind::BlockBitmap,
            Home::InodeBitmap { .. } => Kind::InodeBitmap,
            Home::InodeTable { .. } => Kind::InodeTable,
            Home::ExtentNode { .. } => Kind::ExtentNode,
            Home::IndirectBlock { .. } => Kind::IndirectBlock,
            Home::Directory { .. } => Kind::Directory,
            Home::Xattr { .. } => Kind::Xattr,
            Home::FileData { .. } => Kind::FileData,
            Home::OrphanFile => Kind::OrphanFile,
            Home::Mmp => Kind::Mmp,
            Home::Free => Kind::Free,
            Home::Unknown => Kind::Unknown,
        }
    }

    /// The block group that the class is about, for bitmaps and inode tables.
    pub const fn group(self) -> Option<Group> {
        match self {
            Home::BlockBitmap { group }
            | Home::InodeBitmap { group }
            | Home::InodeTable { group, .. } => Some(group),
            _ => None,
        }
    }

    /// Whether the class concerns that inode: its own blocks, or the part of the inode table
    /// that stores it.
    pub const fn concerns_inode(self, ino: Ino) -> bool {
        match self {
            Home::InodeTable { first_inode, last_inode, .. } => {
                first_inode <= ino && ino <= last_inode
            }
            Home::ExtentNode { inode, .. }
            | Home::IndirectBlock { inode }
            | Home::Directory { inode }
            | Home::Xattr { inode }
            | Home::FileData { inode, .. } => inode == ino,
            _ => false,
        }
    }
}

impl Class {
    /// The name of the class.
    pub const fn kind(self) -> Kind {
        match self {
            Class::Home(home) => home.kind(),
            Class::JournalSuperblock => Kind::JournalSuperblock,
            Class::JournalDescriptor { .. } => Kind::JournalDescriptor,
            Class::JournalCopy { .. } => Kind::JournalCopy,
            Class::JournalCommit { .. } => Kind::JournalCommit,
            Class::JournalRevoke { .. } => Kind::JournalRevoke,
            Class::JournalFastCommit => Kind::JournalFastCommit,
            Class::JournalIdle => Kind::JournalIdle,
        }
    }

    /// What the class is about: itself at home, the copied block for a log copy, else nothing.
    pub const fn subject(self) -> Option<Home> {
        match self {
            Class::Home(home) | Class::JournalCopy { of: home, .. } => Some(home),
            _ => None,
        }
    }

    /// The transaction, for blocks of the log.
    pub const fn tid(self) -> Option<Tid> {
        match self {
            Class::JournalDescriptor { tid }
            | Class::JournalCopy { tid, .. }
            | Class::JournalCommit { tid }
            | Class::JournalRevoke { tid } => Some(tid),
            _ => None,
        }
    }
}

/// A run of 512-byte sectors of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// First sector of the device, 512 bytes each.
    pub first_sector: u64,
    /// Length in sectors; never 0.
    pub sectors: u64,
    /// What the run is.
    pub class: Class,
}
