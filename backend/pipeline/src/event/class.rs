//! Classes as JSON: one flat object each.
//!
//! In: [`Span`] and [`Class`]. Out: records with a field for each thing known, and back.
//! Must not know: requests, events.
//!
//! `{"class":"journal_copy","tid":7,"of":{"class":"block_bitmap","group":0}}`

use ext4_layout::{Class, Home, Kind, Span, Written};
use serde::{Deserialize, Serialize};

/// A run of sectors and its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanRecord {
    /// First 512-byte sector of the device.
    pub sector: u64,
    /// Length in 512-byte sectors.
    pub sectors: u64,
    /// What the run is.
    #[serde(flatten)]
    pub class: ClassRecord,
}

/// A class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassRecord {
    /// The class, or for blocks of the log its name alone.
    #[serde(flatten)]
    pub home: HomeRecord,
    /// Transaction, for blocks of the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tid: Option<u32>,
    /// What a log copy is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<HomeRecord>,
}

/// The name of a class with the fields that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each field is documented at the variant of `Home` it comes from")]
pub struct HomeRecord {
    pub class: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_inode: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_inode: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_lblk: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_lblk: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Written>,
}

impl HomeRecord {
    const fn named(class: Kind) -> HomeRecord {
        HomeRecord {
            class,
            backup: None,
            group: None,
            inode: None,
            first_inode: None,
            last_inode: None,
            depth: None,
            first_lblk: None,
            last_lblk: None,
            state: None,
        }
    }

    /// The class again; `None` if a field that it must have is missing, or for a class of the
    /// log.
    pub fn to_home(&self) -> Option<Home> {
        Some(match self.class {
            Kind::Superblock => Home::Superblock { backup: self.backup? },
            Kind::GroupDescriptors => Home::GroupDescriptors { backup: self.backup? },
            Kind::ReservedGdt => Home::ReservedGdt,
            Kind::BlockBitmap => Home::BlockBitmap { group: self.group? },
            Kind::InodeBitmap => Home::InodeBitmap { group: self.group? },
            Kind::InodeTable => Home::InodeTable {
                group: self.group?,
                first_inode: self.first_inode?,
                last_inode: self.last_inode?,
            },
            Kind::ExtentNode => Home::ExtentNode { inode: self.inode?, depth: self.depth? },
            Kind::IndirectBlock => Home::IndirectBlock { inode: self.inode? },
            Kind::Directory => Home::Directory { inode: self.inode? },
            Kind::Xattr => Home::Xattr { inode: self.inode? },
            Kind::FileData => Home::FileData {
                inode: self.inode?,
                first_lblk: self.first_lblk?,
                last_lblk: self.last_lblk?,
                state: self.state?,
            },
            Kind::OrphanFile => Home::OrphanFile,
            Kind::Mmp => Home::Mmp,
            Kind::Free => Home::Free,
            Kind::Unknown => Home::Unknown,
            Kind::JournalSuperblock
            | Kind::JournalDescriptor
            | Kind::JournalCopy
            | Kind::JournalCommit
            | Kind::JournalRevoke
            | Kind::JournalFastCommit
            | Kind::JournalIdle => return None,
        })
    }
}

impl From<Home> for HomeRecord {
    fn from(home: Home) -> HomeRecord {
        let mut record = HomeRecord::named(home.kind());
        match home {
            Home::Superblock { backup } | Home::GroupDescriptors { backup } => {
                record.backup = Some(backup);
            }
            Home::BlockBitmap { group } | Home::InodeBitmap { group } => {
                record.group = Some(group);
            }
            Home::InodeTable { group, first_inode, last_inode } => {
                record.group = Some(group);
                record.first_inode = Some(first_inode);
                record.last_inode = Some(last_inode);
            }
            Home::ExtentNode { inode, depth } => {
                record.inode = Some(inode);
                record.depth = Some(depth);
            }
            Home::IndirectBlock { inode } | Home::Directory { inode } | Home::Xattr { inode } => {
                record.inode = Some(inode);
            }
            Home::FileData { inode, first_lblk, last_lblk, state } => {
                record.inode = Some(inode);
                record.first_lblk = Some(first_lblk);
                record.last_lblk = Some(last_lblk);
                record.state = Some(state);
            }
            Home::ReservedGdt | Home::OrphanFile | Home::Mmp | Home::Free | Home::Unknown => {}
        }
        record
    }
}

impl ClassRecord {
    /// The class again; `None` if a field that it must have is missing.
    pub fn to_class(&self) -> Option<Class> {
        Some(match self.home.class {
            Kind::JournalSuperblock => Class::JournalSuperblock,
            Kind::JournalDescriptor => Class::JournalDescriptor { tid: self.tid? },
            Kind::JournalCopy => {
                Class::JournalCopy { tid: self.tid?, of: self.of.as_ref()?.to_home()? }
            }
            Kind::JournalCommit => Class::JournalCommit { tid: self.tid? },
            Kind::JournalRevoke => Class::JournalRevoke { tid: self.tid? },
            Kind::JournalFastCommit => Class::JournalFastCommit,
            Kind::JournalIdle => Class::JournalIdle,
            _ => Class::Home(self.home.to_home()?),
        })
    }
}

impl From<Class> for ClassRecord {
    fn from(class: Class) -> ClassRecord {
        let (home, of) = match class {
            Class::Home(home) => (home.into(), None),
            Class::JournalCopy { of, .. } => (HomeRecord::named(class.kind()), Some(of.into())),
            _ => (HomeRecord::named(class.kind()), None),
        };
        ClassRecord { home, tid: class.tid(), of }
    }
}

impl SpanRecord {
    /// The run again; `None` if a field that its class must have is missing.
    pub fn to_span(&self) -> Option<Span> {
        Some(Span {
            first_sector: self.sector,
            sectors: self.sectors,
            class: self.class.to_class()?,
        })
    }
}

impl From<Span> for SpanRecord {
    fn from(span: Span) -> SpanRecord {
        SpanRecord { sector: span.first_sector, sectors: span.sectors, class: span.class.into() }
    }
}
