//! Findings: what was wrong on the disk, with the evidence.
//!
//! In: what a checker saw. Out: values that serialise, and their one form for people.
//! Must not know: how a rule is checked, where findings go.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::request::{Nanos, RequestId};

/// A rule of the on-disk shadow. The identifiers are those of the findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// A mapped block is free in the block bitmap.
    MappedFree,
    /// Two inodes map a block.
    TwoOwners,
    /// An inode maps a bitmap, an inode table, the superblock or a descriptor.
    MapsMetadata,
    /// A block is in use, and nothing maps it.
    Leak,
    /// A descriptor's free count is not that of the bitmap.
    Counts,
    /// An extent tree's node cannot be.
    Tree,
    /// `i_blocks` is not what the inode maps.
    BlockCount,
    /// A written block beyond the size of a file that is not on the orphan list.
    PastSize,
    /// A block became written before its data was stored.
    StaleData,
    /// A block of metadata was allocated and has no content in the log.
    NoContent,
    /// A superblock that says "clean" and has wrong counts or an orphan.
    NotClean,
    /// Data is written to a block of which the log still has a copy.
    NotRevoked,
    /// A transaction revokes its own copy.
    RevokedCopy,
    /// Metadata written in place before its commit is durable.
    InPlaceEarly,
    /// Metadata written in place that no committed transaction has.
    NotCommitted,
    /// A commit record before the blocks that it covers.
    CommitOrder,
    /// The log's tail passes a block that is not stored in place.
    TailTooFar,
    /// A live block of the log is overwritten.
    LogOverwritten,
    /// A metadata write that outlives the metadata: in flight when the block is freed or reused,
    /// or made again after it.
    LateMetadata,
    /// A checksum of metadata does not fit.
    Checksum,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Rule; 20] = [
        Rule::MappedFree,
        Rule::TwoOwners,
        Rule::MapsMetadata,
        Rule::Leak,
        Rule::Counts,
        Rule::Tree,
        Rule::BlockCount,
        Rule::PastSize,
        Rule::StaleData,
        Rule::NoContent,
        Rule::NotClean,
        Rule::NotRevoked,
        Rule::RevokedCopy,
        Rule::InPlaceEarly,
        Rule::NotCommitted,
        Rule::CommitOrder,
        Rule::TailTooFar,
        Rule::LogOverwritten,
        Rule::LateMetadata,
        Rule::Checksum,
    ];

    /// The identifier in findings.
    pub const fn id(self) -> &'static str {
        match self {
            Rule::MappedFree => "D1-mapped-free",
            Rule::TwoOwners => "D1-two-owners",
            Rule::MapsMetadata => "D1-maps-metadata",
            Rule::Leak => "D1-leak",
            Rule::Counts => "D1-counts",
            Rule::Tree => "D1-tree",
            Rule::BlockCount => "D1-block-count",
            Rule::PastSize => "D2-past-size",
            Rule::StaleData => "D3-stale-data",
            Rule::NoContent => "D3-no-content",
            Rule::NotClean => "D4-not-clean",
            Rule::NotRevoked => "D6-not-revoked",
            Rule::RevokedCopy => "D6-revoked-copy",
            Rule::InPlaceEarly => "D7-in-place-early",
            Rule::NotCommitted => "D7-not-committed",
            Rule::CommitOrder => "D7-commit-order",
            Rule::TailTooFar => "D7-tail-too-far",
            Rule::LogOverwritten => "D7-log-overwritten",
            Rule::LateMetadata => "P1-late-metadata",
            Rule::Checksum => "C-checksum",
        }
    }

    /// What must hold.
    pub const fn meaning(self) -> &'static str {
        match self {
            Rule::MappedFree => "a mapped block is in use in the block bitmap",
            Rule::TwoOwners => "a block has one owner",
            Rule::MapsMetadata => "no inode maps the file system's own metadata",
            Rule::Leak => "a block in use has an owner",
            Rule::Counts => "a descriptor counts what its bitmap shows",
            Rule::Tree => "extents are sorted, disjoint and inside the file system",
            Rule::BlockCount => "i_blocks counts what the inode maps",
            Rule::PastSize => "no written block lies beyond the size, orphans aside",
            Rule::StaleData => "data is stored before the commit that makes its block written",
            Rule::NoContent => "new metadata blocks have a copy in the log",
            Rule::NotClean => "a clean superblock has exact counts and no orphan",
            Rule::NotRevoked => "a block's log copies are revoked before it is reused for data",
            Rule::RevokedCopy => "a transaction does not revoke what it has logged",
            Rule::InPlaceEarly => "metadata is written in place after its commit is durable",
            Rule::NotCommitted => "what is written in place is what was committed",
            Rule::CommitOrder => "a commit record is written after what it commits is durable",
            Rule::TailTooFar => "the log drops only what is durable in place",
            Rule::LogOverwritten => "the live part of the log is not written to",
            Rule::LateMetadata => "no metadata write outlives its block",
            Rule::Checksum => "checksums of metadata fit",
        }
    }
}

/// A point of a finding's story.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// When.
    pub at: Nanos,
    /// The request, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<RequestId>,
    /// What happened.
    pub what: String,
}

/// Something that must not be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which rule is broken: [`Rule::id`], or an invariant of another checker.
    pub rule: String,
    /// The inode concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u32>,
    /// First and last block of the file system concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<(u64, u64)>,
    /// First and last logical block of the inode, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lblks: Option<(u32, u32)>,
    /// The journal's transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tid: Option<u32>,
    /// What must hold.
    pub expected: String,
    /// What was seen.
    pub seen: String,
    /// The requests that show it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<RequestId>,
    /// What led to it, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Moment>,
}

impl Finding {
    /// A finding of a rule of the shadow, without its particulars.
    pub(super) fn of(rule: Rule, seen: String) -> Finding {
        Finding {
            rule: rule.id().to_owned(),
            expected: rule.meaning().to_owned(),
            seen,
            ..Finding::default()
        }
    }
}

/// Findings of one request or one transaction that are kept; a guest can break a rule for every
/// block that it has.
const KEPT_MAX: usize = 512;

/// The findings of one step.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    kept: Vec<Finding>,
    /// Findings beyond those.
    more: u64,
}

impl Findings {
    pub(super) fn push(&mut self, finding: Finding) {
        if self.kept.len() < KEPT_MAX {
            self.kept.push(finding);
        } else {
            self.more += 1;
        }
    }

    /// Those of another step as well.
    pub(super) fn append(&mut self, other: Findings) {
        self.more += other.more;
        other.kept.into_iter().for_each(|finding| self.push(finding));
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Finding> {
        self.kept.iter_mut()
    }

    /// What was kept, and how many more there were.
    pub(super) fn take(self) -> (Vec<Finding>, u64) {
        (self.kept, self.more)
    }
}

/// For people: one line, then the story, one line each.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rule)?;
        if (self.inode, self.lblks, self.blocks, self.tid) != (None, None, None, None) {
            f.write_str(":")?;
        }
        if let Some(inode) = self.inode {
            write!(f, " inode {inode}")?;
        }
        match self.lblks {
            Some((first, last)) if first == last => write!(f, " lblk {first}")?,
            Some((first, last)) => write!(f, " lblk {first} to {last}")?,
            None => {}
        }
        match self.blocks {
            Some((first, last)) if first == last => write!(f, " block {first}")?,
            Some((first, last)) => write!(f, " blocks {first} to {last}")?,
            None => {}
        }
        if let Some(tid) = self.tid {
            write!(f, " transaction {tid}")?;
        }
        write!(f, ": {} (must hold: {})", self.seen, self.expected)?;
        for moment in &self.timeline {
            let ms = moment.at.0 as f64 / 1e6;
            match moment.id {
                Some(id) => write!(f, "\n  {ms:>14.3} ms  #{:<8} {}", id.0, moment.what)?,
                None => write!(f, "\n  {ms:>14.3} ms            {}", moment.what)?,
            }
        }
        Ok(())
    }
}
