//! Kernel versions as data: what each does on the delayed-allocation path.
//!
//! In: a version's name. Out: [`Kernel`], a set of [`Flag`]s that the operations consult while
//! their programs are assembled (and, rarely, while they run).
//! A flag that is a bug fix is on where the fix is in; turning it back is the bug.
//! Must not know: states, searches, scenarios.

use std::fmt;

/// Declares the flags with their names and the versions that have them, in the order of
/// [`Kernel::NAMES`].
macro_rules! flags {
    ($($(#[$doc:meta])* $flag:ident = $name:literal [$a:literal $b:literal $c:literal $d:literal $e:literal],)*) => {
        /// One thing that kernels do differently.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Flag { $($(#[$doc])* $flag,)* }

        impl Flag {
            /// Every flag.
            pub const ALL: &[Flag] = &[$(Flag::$flag,)*];

            /// Name as printed, in kebab case.
            pub const fn name(self) -> &'static str {
                match self { $(Flag::$flag => $name,)* }
            }

            /// Whether each of [`Kernel::NAMES`] has it.
            const fn in_versions(self) -> [u8; 5] {
                match self { $(Flag::$flag => [$a, $b, $c, $d, $e],)* }
            }
        }
    };
}

flags! {
    // Structure: how a version is built.
    /// An extent-status entry has exactly one of W, U, D, H; older kernels allow U+D.
    ExclusiveTypes = "exclusive-types" [0 0 0 1 1],
    /// `ext4_es_insert_extent` releases the reservation of the delayed blocks that it replaces;
    /// older kernels call `ext4_da_update_reserve_space` from `ext4_ext_map_blocks`.
    InsertReleases = "insert-releases" [0 0 0 1 1],
    /// Writeback learns from the extent status tree that a block is delayed, not from `BH_Delay`.
    ReserveFromEs = "reserve-from-es" [0 0 0 1 1],
    /// `ext4_da_write_begin` runs under a handle.
    WriteHandle = "write-handle" [1 1 0 0 0],
    /// A buffered write waits for direct I/O in flight.
    WriteDrainsDio = "write-drains-dio" [0 0 1 0 1],
    /// A direct write inside the file looks its first blocks up before it writes anything back
    /// (`ext4_overwrite_io`), even if it lies behind `i_disksize`, or is the first to write to the
    /// inode.
    DioLooksFirst = "dio-looks-first" [0 0 0 1 1],
    /// A lookup's result goes through `ext4_es_cache_extent`, which never changes a type.
    CacheKeepsType = "cache-keeps-type" [0 0 0 0 1],
    /// Punch writes the dirty range back before it takes any lock.
    PunchFlushesFirst = "punch-flushes-first" [1 1 1 0 0],
    /// Punch beyond the end of the file goes on to the end of the page with the byte behind the
    /// last one; newer kernels do not start a page for that.
    PunchesNextPage = "punches-next-page" [1 1 1 0 0],
    /// Punch puts the hole into the extent status tree.
    HoleAfterPunch = "hole-after-punch" [0 0 0 1 1],
    /// Zero range keeps the invalidate lock until its partial edges are zeroed.
    ZeroKeepsInvalidate = "zero-keeps-invalidate" [0 0 0 1 1],
    /// An unwritten extent is split before the write is submitted (`EXT4_GET_BLOCKS_PRE_IO`).
    SplitBeforeIo = "split-before-io" [1 1 1 1 0],
    /// The leaf that extents move to when they outgrow the inode counts as looked at.
    NewLeafVerified = "new-leaf-verified" [0 0 1 1 1],
    /// dioread_nolock is the default also with blocks smaller than a page.
    NolockSmallBlocks = "nolock-small-blocks" [0 0 0 1 1],
    /// Memory reclaim may call `->writepage`.
    ReclaimWritepage = "reclaim-writepage" [1 1 1 0 0],
    /// Every change of extent status takes a new number (`i_es_seq`), and a mapping carries the
    /// number at which it was made (`m_seq`).
    EsSeq = "es-seq" [0 0 0 0 1],
    /// A direct write that extends the file zeroes what lies behind its end (`ext4_write_checks`).
    DioZeroesEof = "dio-zeroes-eof" [0 0 0 0 1],

    // Fixes: each has a mutant.
    /// M01: the extent status is looked up again under `i_data_sem` W before a delayed insert.
    EsRecheck = "es-recheck" [0 1 1 1 1],
    /// M01s: that lookup walks the extent tree when the entry is gone.
    TreeRecheck = "tree-recheck" [1 1 1 1 1],
    /// M02: delayed blocks are inserted under `i_data_sem` W.
    InsertExclusive = "insert-exclusive" [1 1 1 1 1],
    /// M03: a cached hole ends where a delayed extent starts.
    HoleTrimmed = "hole-trimmed" [1 1 1 1 1],
    /// M04: a reservation is given back when the delayed insert fails.
    ReserveUndone = "reserve-undone" [1 1 1 1 1],
    /// M05: writeback's error path removes extent status under `i_data_sem` W.
    ErrorPathLocked = "error-path-locked" [1 1 1 1 1],
    /// M08: removing the front of an entry counts its reserved clusters.
    FrontTrimCounted = "front-trim-counted" [1 1 1 1 1],
    /// M09: reserved clusters are counted from the start of the entry, not of the range.
    CountFromEntry = "count-from-entry" [1 1 1 1 1],
    /// M11: extent-status updates that touch delayed entries cannot fail.
    EsNofail = "es-nofail" [1 1 1 1 1],
    /// M12: recording a pending cluster cannot fail.
    PendingNofail = "pending-nofail" [1 1 1 1 1],
    /// M14: a split that runs out of memory leaves the extent at its full length.
    SplitRestores = "split-restores" [0 1 1 1 1],
    /// M15: precaching of extents (`EXT4_IOC_GET_ES_CACHE` and its kin) holds `i_rwsem` shared.
    PrecacheLocked = "precache-locked" [0 1 0 0 1],
    /// M16: writeback does not cache its neighbours (`EXT4_EX_NOCACHE`).
    WritebackNocache = "writeback-nocache" [0 0 0 0 1],
    /// M17: FIEMAP holds `i_rwsem` shared.
    FiemapLocked = "fiemap-locked" [0 0 0 0 1],
    /// M19: punch moves `i_disksize` up to the end of the punched range.
    PunchDisksize = "punch-disksize" [0 1 1 1 1],
    /// M20: a split before I/O that cannot get a block does not convert anything.
    SplitPlain = "split-plain" [0 1 1 1 1],
    /// M22: a failed split drops the extent status of its range.
    FailedSplitDropsEs = "failed-split-drops-es" [0 1 1 1 1],
    /// M22, first part: walks in the middle of a split cache nothing (the new extent may still be
    /// missing from the tree, and would be taken for a hole).
    SplitNocache = "split-nocache" [0 1 1 1 1],
    /// M24: writeback that gives up half way submits what it has mapped.
    PartialSubmit = "partial-submit" [0 0 0 0 1],
    /// M25: whoever extends a file that ends inside a block zeroes the rest of that block.
    EofZeroed = "eof-zeroed" [0 0 0 1 1],
    /// M28: a page that keeps an unwritable dirty buffer stays dirty.
    RedirtyKept = "redirty-kept" [0 1 1 1 1],
    /// M30: unwritten extents are not converted when their data could not be written.
    NoConvertAfterError = "no-convert-after-error" [0 0 0 1 1],
    /// M32: reads hold the invalidate lock while they fill the page cache.
    ReadsLockInvalidate = "reads-lock-invalidate" [0 0 1 1 1],
    /// M33: remount refuses to turn delayed allocation off.
    RemountRefused = "remount-refused" [0 0 0 0 1],
    /// M35: converting an unwritten extent to written drops its delayed bit.
    ConvertDropsDelayed = "convert-drops-delayed" [1 1 1 1 1],
    /// M36: truncating inline data removes extent status.
    InlineTruncateEs = "inline-truncate-es" [0 0 1 1 1],
    /// M42: a hole of an indirect-mapped file ends where a delayed extent starts.
    IndirectTrimmed = "indirect-trimmed" [1 1 1 0 1],
    /// M44: the path is looked up again after `i_data_sem` was dropped.
    PathRefreshed = "path-refreshed" [1 1 1 1 1],
    /// M45: giving up on a folio removes the extent status of all of its blocks.
    GiveUpWholeFolio = "give-up-whole-folio" [0 0 0 0 1],
    /// M48s: `ext4_es_insert_extent` takes a new `i_es_seq`.
    InsertNewSeq = "insert-new-seq" [0 0 0 0 1],
}

/// A set of flags: one kernel's behaviour.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Kernel {
    name: &'static str,
    bits: u64,
}

impl Kernel {
    /// The versions known, oldest first.
    pub const NAMES: [&'static str; 5] =
        ["linux-5.10.223", "linux-5.10.262", "linux-6.1.192", "linux-6.12.107", "linux-7.3.4"];

    /// Every version, oldest first.
    pub fn all() -> [Kernel; 5] {
        std::array::from_fn(Kernel::nth)
    }

    fn nth(index: usize) -> Kernel {
        let bits = Flag::ALL
            .iter()
            .filter(|flag| flag.in_versions()[index] != 0)
            .fold(0, |bits, &flag| bits | 1 << flag as u8);
        Kernel { name: Kernel::NAMES[index], bits }
    }

    /// The version called `name`, or the list of what exists.
    pub fn find(name: &str) -> Result<Kernel, UnknownKernel> {
        Kernel::NAMES
            .iter()
            .position(|&known| known == name)
            .map(Kernel::nth)
            .ok_or_else(|| UnknownKernel { name: name.to_owned() })
    }

    /// The newest version known whose series is not newer than that of a release as `uname -r`
    /// gives it (`6.1.0-55-cloud-amd64`); `None` if it is older than all, or no release. The
    /// packager's release does not tell the fixes: only flags of structure are to be relied upon.
    pub fn of_release(release: &str) -> Option<Kernel> {
        let series = |text: &str| {
            let mut numbers = text.split(|c: char| !c.is_ascii_digit());
            Some((numbers.next()?.parse::<u32>().ok()?, numbers.next()?.parse::<u32>().ok()?))
        };
        let running = series(release)?;
        let known = |index: &usize| {
            let name = Kernel::NAMES[*index].trim_start_matches("linux-");
            series(name).is_some_and(|known| known <= running)
        };
        (0..Kernel::NAMES.len()).rev().find(known).map(Kernel::nth)
    }

    /// Name, e.g. `linux-5.10.223`.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Whether the flag is on.
    #[inline]
    pub const fn has(&self, flag: Flag) -> bool {
        self.bits & (1 << flag as u8) != 0
    }

    /// The same kernel with some fixes taken out.
    #[must_use]
    pub fn without(self, flags: &[Flag]) -> Kernel {
        Kernel {
            bits: flags.iter().fold(self.bits, |bits, &flag| bits & !(1 << flag as u8)),
            ..self
        }
    }

    /// Names of the flags that are on, in order of declaration.
    pub fn flags(&self) -> impl Iterator<Item = &'static str> + '_ {
        Flag::ALL.iter().filter(|&&flag| self.has(flag)).map(|flag| flag.name())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// No kernel version of that name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown variant `{name}`; known: {}", Kernel::NAMES.join(", "))]
pub struct UnknownKernel {
    /// What was asked for.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_of_the_newest_series_not_above_it() {
        let of = |release| Kernel::of_release(release).map(|kernel| kernel.name());
        assert_eq!(of("5.10.0-32-cloud-amd64"), Some("linux-5.10.262"));
        assert_eq!(of("6.1.0-55-cloud-amd64"), Some("linux-6.1.192"));
        assert_eq!(of("6.8.12"), Some("linux-6.1.192"));
        assert_eq!(of("6.12.107+deb13-cloud-amd64"), Some("linux-6.12.107"));
        assert_eq!(of("9.0-rc1"), Some("linux-7.3.4"));
        assert_eq!((of("4.19.0"), of(""), of("next")), (None, None, None));
    }
}
