//! Mutants: historical bugs, each one flag (or a fix and what it needed) turned back.
//!
//! In: a mutant's name. Out: the kernel to start from, the flags to turn back, the scenario that
//! shows it, and the invariants that catch it, as the catalogue has them.
//! Must not know: states.
//!
//! Not here, of the catalogue, and why:
//! - inline data beyond one flag is not modelled: M06, M07, M37, M38, M40;
//! - nor are crashes and the order on the wire, which the shadow judges: M29, M31;
//! - nor a second inode and the leaves of two files: M47, M48 (its `m_seq` half is M48s);
//! - nor a failure of the journal, of quota or of a partial copy: M10, M18, M27;
//! - nor zeroing in place of a split: M21;
//! - nor mapped writes to half a page: M23; nor tags of the page cache: M43;
//! - memory safety is no state: M13;
//! - nothing here changes mount options but `delalloc`: M34;
//! - the switch away from delayed allocation near the end of space zeroes whole blocks: M26;
//! - a direct write that falls back to the page cache is another operation here: M39;
//! - M41 is M32 with faults in place of reads; M46 needs two failures in one update.

use std::fmt;

use crate::invariant::Invariant::{
    self, A1, A2, A3, A4, A5, A7, A9, B1, C1, D1, D2, D3, G1, G2, G3, G4,
};
use crate::kernel::Flag;

/// One historical bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mutant {
    /// Name in the catalogue.
    pub id: &'static str,
    /// What upstream called the fix.
    pub subject: &'static str,
    /// Kernel that it is taken out of.
    pub base: &'static str,
    /// The fix.
    pub flag: Flag,
    /// What the bug could only happen without, and later kernels have: not the bug itself.
    pub also: &'static [Flag],
    /// Scenario that shows it.
    pub scenario: &'static str,
    /// Invariants that catch it.
    pub caught_by: &'static [Invariant],
}

/// The mutants known, in the order of the catalogue.
pub fn mutants() -> &'static [Mutant] {
    MUTANTS
}

impl Mutant {
    /// The mutant called `id`, or the list of what exists.
    pub fn find(id: &str) -> Result<&'static Mutant, UnknownMutant> {
        MUTANTS
            .iter()
            .find(|mutant| mutant.id.eq_ignore_ascii_case(id))
            .ok_or_else(|| UnknownMutant { id: id.to_owned() })
    }

    /// All flags to turn back.
    pub fn flags(&self) -> Vec<Flag> {
        let mut flags = self.also.to_vec();
        flags.push(self.flag);
        flags
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}

/// No mutant of that name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown mutant `{id}`; known: {}", MUTANTS.iter().map(|m| m.id).collect::<Vec<_>>().join(", "))]
pub struct UnknownMutant {
    /// What was asked for.
    pub id: String,
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        id: "M01",
        subject: "ext4: check the extent status again before inserting delalloc block",
        base: "linux-5.10.262",
        flag: Flag::EsRecheck,
        also: &[],
        scenario: "mkwrite-fallocate",
        caught_by: &[A1, A3, A4, C1],
    },
    Mutant {
        id: "M01s",
        subject: "(mutant only) look at extent status again, but not at the tree when it is gone",
        base: "linux-6.12.107",
        flag: Flag::TreeRecheck,
        also: &[],
        scenario: "mkwrite-fallocate-shrinker",
        caught_by: &[A1, A3, A4],
    },
    Mutant {
        id: "M02",
        subject: "ext4: convert to exclusive lock while inserting delalloc extents",
        base: "linux-6.1.192",
        flag: Flag::InsertExclusive,
        also: &[],
        scenario: "mkwrite-read",
        caught_by: &[A2, A4, C1],
    },
    Mutant {
        id: "M03",
        subject: "ext4: correct the hole length returned by ext4_map_blocks()",
        base: "linux-6.12.107",
        flag: Flag::HoleTrimmed,
        also: &[],
        scenario: "delayed-beside-hole",
        caught_by: &[A2, A4],
    },
    Mutant {
        id: "M04",
        subject: "ext4: fix reserved space counter leakage",
        base: "linux-5.10.262",
        flag: Flag::ReserveUndone,
        also: &[Flag::EsNofail],
        scenario: "delayed-insert-enomem",
        caught_by: &[A3, B1],
    },
    Mutant {
        id: "M05",
        subject: "ext4: fix extent status tree race in writeback error recovery path",
        base: "linux-7.3.4",
        flag: Flag::ErrorPathLocked,
        also: &[],
        scenario: "writeback-error-bigalloc",
        caught_by: &[A4, A5],
    },
    Mutant {
        id: "M08",
        subject: "ext4: fix reserved cluster accounting in __es_remove_extent()",
        base: "linux-6.12.107",
        flag: Flag::FrontTrimCounted,
        also: &[],
        scenario: "punch-delayed-front",
        caught_by: &[A3, C1],
    },
    Mutant {
        id: "M09",
        subject: "ext4: correct the start block of counting reserved clusters",
        base: "linux-6.12.107",
        flag: Flag::CountFromEntry,
        also: &[],
        scenario: "punch-before-delayed",
        caught_by: &[A3],
    },
    Mutant {
        id: "M11",
        subject: "ext4: using nofail preallocation in ext4_es_remove_extent()",
        base: "linux-6.12.107",
        flag: Flag::EsNofail,
        also: &[],
        scenario: "punch-delayed-enomem",
        caught_by: &[A3, A4],
    },
    Mutant {
        id: "M12",
        subject: "ext4: make sure allocate pending entry not fail",
        base: "linux-6.1.192",
        flag: Flag::PendingNofail,
        also: &[],
        scenario: "pending-enomem",
        caught_by: &[A5],
    },
    Mutant {
        id: "M14",
        subject: "ext4: fix inode tree inconsistency caused by ENOMEM",
        base: "linux-5.10.262",
        flag: Flag::SplitRestores,
        also: &[],
        scenario: "dio-split-enomem",
        caught_by: &[D1, A1, A3],
    },
    Mutant {
        id: "M15",
        subject: "ext4: prevent stale extent cache entries caused by concurrent get es_cache",
        base: "linux-7.3.4",
        flag: Flag::PrecacheLocked,
        also: &[],
        scenario: "truncate-precache",
        caught_by: &[A1],
    },
    Mutant {
        id: "M16",
        subject: "ext4: prevent stale extent cache entries caused by concurrent I/O writeback",
        base: "linux-7.3.4",
        flag: Flag::WritebackNocache,
        also: &[],
        scenario: "truncate-writeback",
        caught_by: &[A1],
    },
    Mutant {
        id: "M17",
        subject: "ext4: prevent stale extent cache entries caused by concurrent fiemap",
        base: "linux-7.3.4",
        flag: Flag::FiemapLocked,
        also: &[],
        scenario: "truncate-fiemap",
        caught_by: &[A1],
    },
    Mutant {
        id: "M19",
        subject: "ext4: increase i_disksize to offset + len in ext4_update_disksize_before_punch()",
        base: "linux-6.12.107",
        flag: Flag::PunchDisksize,
        also: &[],
        scenario: "punch-mkwrite-nonda",
        caught_by: &[D2],
    },
    Mutant {
        id: "M20",
        subject: "ext4: don't set EXT4_GET_BLOCKS_CONVERT when splitting before submitting I/O",
        base: "linux-6.1.192",
        flag: Flag::SplitPlain,
        also: &[],
        scenario: "dio-split-enospc",
        caught_by: &[A1, D3],
    },
    Mutant {
        id: "M22",
        subject: "ext4: drop extent cache when splitting extent fails",
        base: "linux-6.1.192",
        flag: Flag::FailedSplitDropsEs,
        also: &[],
        scenario: "dio-split-second",
        caught_by: &[A1],
    },
    Mutant {
        id: "M24",
        subject: "ext4: fix stale data if it bail out of the extents mapping loop",
        base: "linux-7.3.4",
        flag: Flag::PartialSubmit,
        also: &[],
        scenario: "writeback-bails-out",
        caught_by: &[D2, D3, G1],
    },
    Mutant {
        id: "M25",
        subject: "ext4: partial zero eof block on unaligned inode size extension",
        base: "linux-6.12.107",
        flag: Flag::EofZeroed,
        also: &[],
        scenario: "truncate-behind-eof",
        caught_by: &[G2],
    },
    Mutant {
        id: "M28",
        subject: "ext4: handle redirtying in ext4_bio_write_page()",
        base: "linux-6.1.192",
        flag: Flag::RedirtyKept,
        also: &[],
        scenario: "reclaim-half-mapped",
        caught_by: &[G1],
    },
    Mutant {
        id: "M30",
        subject: "ext4: do not convert the unwritten extents if data writeback fails",
        base: "linux-6.12.107",
        flag: Flag::NoConvertAfterError,
        also: &[],
        scenario: "writeback-eio",
        caught_by: &[D3],
    },
    Mutant {
        id: "M32",
        subject: "ext4: Fix stale data exposure when read races with hole punch (2021 series)",
        base: "linux-6.1.192",
        flag: Flag::ReadsLockInvalidate,
        also: &[],
        scenario: "punch-read",
        caught_by: &[G3, A7],
    },
    Mutant {
        id: "M33",
        subject: "ext4: prevent delalloc to nodelalloc on remount",
        base: "linux-7.3.4",
        flag: Flag::RemountRefused,
        also: &[],
        scenario: "remount-nodelalloc",
        caught_by: &[A3, B1, C1, D1],
    },
    Mutant {
        id: "M35",
        subject: "ext4: fix data corruption caused by unwritten and delayed extents",
        base: "linux-6.1.192",
        flag: Flag::ConvertDropsDelayed,
        also: &[],
        scenario: "fallocate-over-delayed",
        caught_by: &[A1, G1],
    },
    Mutant {
        id: "M36",
        subject: "ext4: remove extent cache entries when truncating inline data",
        base: "linux-6.1.192",
        flag: Flag::InlineTruncateEs,
        also: &[],
        scenario: "truncate-inline",
        caught_by: &[A4, C1],
    },
    Mutant {
        id: "M42",
        subject: "ext4: don't report delalloc data as a hole on indirect-mapped inodes",
        base: "linux-7.3.4",
        flag: Flag::IndirectTrimmed,
        also: &[],
        scenario: "indirect-seek-data",
        caught_by: &[A2, G4],
    },
    Mutant {
        id: "M44",
        subject: "ext4: refresh the ext4_ext_path struct after dropping i_data_sem",
        base: "linux-7.3.4",
        flag: Flag::PathRefreshed,
        also: &[],
        scenario: "truncate-restart-writeback",
        caught_by: &[A1, D1],
    },
    Mutant {
        id: "M45",
        subject: "ext4: process folios writeback in bytes",
        base: "linux-7.3.4",
        flag: Flag::GiveUpWholeFolio,
        also: &[],
        scenario: "writeback-gives-up",
        caught_by: &[A4],
    },
    Mutant {
        id: "M48s",
        subject: "(mutant only) ext4_es_insert_extent() leaves i_es_seq as it was",
        base: "linux-7.3.4",
        flag: Flag::InsertNewSeq,
        also: &[],
        scenario: "writeback-fallocate",
        caught_by: &[A9],
    },
];
