//! The instructions: what one thread can do at once.
//!
//! In: nothing. Out: [`Instr`], which of them end a step, and where each may jump to.
//! Must not know: how instructions change a state.

use super::{Drop, Label, Need};
use crate::geometry::Set;
use crate::state::{Content, Errno, Mode, Rwsem};

/// One atomic instruction. Those marked *silent* never end a step.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Instr {
    /// The thread is done.
    End,
    /// Silent: the operation with this number starts, or the last one is over.
    Begin(u8),
    /// Silent: go on elsewhere.
    Jump(Label),
    /// Silent: go elsewhere if the operation has failed.
    IfErr(Label),
    /// Silent: go elsewhere if it failed for this reason.
    IfErrno(Errno, Label),
    /// Silent: forget the failure.
    ClearErr,
    /// Silent: fail.
    Fail(Errno),
    /// Silent: work on `first..end`.
    Range(u8, u8),
    /// Silent: go on behind the mapping at hand; jump if something is left.
    Advance(Label),
    /// Silent: next block; jump if something is left.
    NextBlock(Label),
    /// Silent: jump if the mapping at hand has a physical block.
    IfMapped(Label),
    /// Silent: jump if the mapping at hand is all that is needed.
    IfSatisfied(Need, Label),
    /// Silent: jump if the buffer of the block is mapped.
    IfBuffer(Label),
    /// Silent: jump if the file is inline.
    IfInline(Label),
    /// Silent: jump if the file has this size already.
    IfSizeCovers(u32, Label),
    /// Silent: jump if it has this size on disk too (not `ext4_extending_io`).
    IfDisksizeReaches(u32, Label),
    /// Silent: `file_modified` finds nothing to take away, and notes that.
    Modified,
    /// Silent: jump unless that has been noted (`IS_NOSEC`).
    IfUnmodified(Label),

    /// Take a semaphore.
    Lock(Rwsem, Mode),
    /// Silent: give it back.
    Unlock(Rwsem, Mode),
    /// Join the running transaction.
    HandleStart,
    /// Silent: join it with credits reserved before, which never waits.
    HandleJoin,
    /// Silent: leave it.
    HandleStop,
    /// Silent: jump if the file system has too little space for delayed allocation, or is
    /// mounted without (`ext4_nonda_switch`).
    IfNonda(Label),

    /// Look the block up in the extent status tree for `ext4_map_blocks`.
    EsLookup {
        /// What for.
        need: Need,
        /// Where to go with the answer.
        hit: Label,
        /// Where to go when the tree says that nothing is allocated.
        gap: Label,
    },
    /// Read the extent leaf if it is not in memory. Silent if it is, and skips [`Instr::LeafCache`].
    LeafRead,
    /// Put the extents of the leaf just read into the extent status tree.
    LeafCache {
        /// `EXT4_EX_NOCACHE`.
        nocache: bool,
    },
    /// Walk the extent tree.
    Walk {
        /// Blocks are read from a file mapped by indirect blocks without regard to delayed ones.
        untrimmed: bool,
    },
    /// Put what the walk found into the extent status tree.
    CacheFound,
    /// Silent: walk to a block for another reason than to map it.
    FindExtent,
    /// Read the block bitmap if allocation needs it. Silent if not.
    BitmapRead,
    /// Allocate, split or convert in the extent tree.
    Allocate(Need),
    /// Release the reservation of what was allocated (kernels where insertion does not).
    UpdateReserve(Need),
    /// Put the result of [`Instr::Allocate`] into the extent status tree.
    InsertAllocated(Need),

    /// Look the block up in the extent status tree for `ext4_da_map_blocks`.
    DaLookup {
        /// It is delayed already.
        delayed: Label,
        /// It is allocated.
        mapped: Label,
        /// It is a known hole.
        hole: Label,
    },
    /// Look again under `i_data_sem` W.
    DaRecheck {
        /// It is delayed meanwhile.
        delayed: Label,
        /// It is allocated meanwhile.
        mapped: Label,
        /// It is still a hole.
        hole: Label,
    },
    /// `ext4_da_reserve_space`, or the finding that the cluster has its space.
    Reserve,
    /// `ext4_es_insert_delayed_block`.
    InsertDelayed,

    /// Lock the folio, making it if it is not there.
    FolioCreate,
    /// Lock the folio; fail if it is not there or beyond the end of the file.
    FolioLock,
    /// Silent: unlock the folios.
    FolioUnlock,
    /// Silent: set the buffer's bits from the mapping at hand.
    BufferMap,
    /// Silent: set the buffer's bits for a delayed block.
    BufferDelay,
    /// Bring the block's data into the cache: from the device if it is written, else zeroes.
    /// Silent if it is there.
    Fill,
    /// Take what the device has read into the cache.
    Filled,
    /// Silent: the range ends where the file does; jump if nothing is left of it.
    ClipToSize(Label),
    /// Silent: the folio's blocks behind the end of the file hold zeroes, without being looked up.
    ZeroTail,
    /// Jump if a reader finds what it needs of the folio up to date.
    IfCached {
        /// Blocks needed.
        needed: Set,
        /// Where to go.
        skip: Label,
    },
    /// Silent: jump if the folio at hand has buffers.
    IfBuffers(Label),
    /// Silent: jump if the block is up to date.
    IfUptodate(Label),
    /// Copy user data to the folio's part of `first..end`, up to `size` bytes of file.
    Store {
        /// First block.
        first: u8,
        /// Behind the last block.
        end: u8,
        /// What is written.
        content: Content,
        /// Size that the file has at least afterwards; 0 for a store through a mapping.
        size: u32,
    },
    /// Store through a mapping to the bytes of a block that lie behind the end of the file.
    StoreBehindEof(u8),
    /// Silent: what lay behind the end of the file and no longer does is zeroed.
    ZeroEof,
    /// Silent: jump unless a write's end lies in an allocated block beyond `i_disksize`.
    IfDisksizeCovers {
        /// Size after the write, in bytes.
        size: u32,
        /// Last block written.
        last: u8,
        /// Where to go.
        skip: Label,
    },
    /// Remove the folios of a set of blocks from the cache, and zero parts of the edges.
    DropFolios {
        /// Blocks that go away.
        blocks: Set,
        /// Why.
        why: Drop,
    },
    /// Silent: the folios dropped may come back.
    Unguard,
    /// Wait for writeback of blocks.
    WaitWriteback(Set),

    /// Find the next dirty folio below the end; jump if there is none.
    WbFind(Label),
    /// Lock it; jump if it is clean by now.
    WbLock(Label),
    /// Wait for its writeback. Silent if there is none.
    WbWait,
    /// Silent: next run of delayed or unwritten dirty buffers of the folio; jump if none is left.
    WbExtent(Label),
    /// Silent: buffers of the mapping at hand are mapped now.
    WbFix,
    /// Silent: remember the written mapping for its conversion; jump if it needs none.
    IfWritten(Label),
    /// Submit the folio's mapped dirty buffers and unlock it.
    WbSubmit {
        /// The mapping loop was left early: the folio stays dirty.
        partial: bool,
    },
    /// Silent: next folio.
    WbNext(Label),
    /// Silent: jump unless `i_disksize` is behind what was written back.
    IfDisksizeBehind(Label),
    /// `i_disksize` moves up to the end of what was written back, at most to `i_size`.
    WbDisksize,
    /// Give up on the folio: its delayed blocks leave the extent status tree.
    WbGiveUp,
    /// Give up on the folio: its buffers are invalidated.
    WbInvalidate,
    /// Wait until a data write needs its end, and take it over.
    EndIoWait,
    /// Silent: next run to convert; jump if none is left, or if it must not be converted.
    EndIoNext(Label),
    /// End writeback of the folios.
    EndIoFinish,

    /// Set `i_size`, and `i_disksize` if asked.
    SetSize {
        /// New size.
        size: u32,
        /// Whether `i_disksize` moves too.
        disksize: bool,
        /// Only ever up.
        grow: bool,
    },
    /// Silent: jump unless punch of these bytes has to move `i_disksize` up.
    IfPunchCovers(u32, u32, Label),
    /// `i_disksize` moves up to `size` or `i_size`, whichever is less.
    PunchDisksize(u32),
    /// Silent: jump if the file is not longer than `size`.
    IfNotBeyond(u32, Label),
    /// Remove the range from the extent status tree, releasing reservations.
    EsRemove(u8, u8),
    /// Remove from the extent tree the part of the range that one leaf describes.
    RemoveLeaf {
        /// Leaf.
        leaf: u8,
        /// First block removed.
        first: u8,
        /// Behind the last one.
        end: u8,
        /// Where to go if the handle cannot be extended: `i_data_sem` is dropped.
        restart: Label,
    },
    /// Silent: look the path up again after `i_data_sem` was dropped.
    RefreshPath,
    /// The hole goes into the extent status tree.
    InsertHole(u8, u8),
    /// Move the extents behind `first` by some blocks.
    Shift {
        /// First block that moves.
        first: u8,
        /// By how many blocks, down if negative.
        by: i8,
    },
    /// Add to or remove from the orphan list.
    Orphan(bool),
    /// Cut an orphan off behind its size, and take it off the list.
    CutOrphan,
    /// Turn delayed allocation off.
    Remount,

    /// Wait for direct I/O in flight.
    DioDrain,
    /// Silent: direct I/O is in flight.
    DioBegin,
    /// Silent: it is not.
    DioEnd,
    /// Silent: a direct write was not converted.
    DioLost,
    /// Silent: the user has been told of a failure, and any data may be read of these blocks.
    Undecided(Set),
    /// Submit a direct write of the mapping at hand.
    DioWrite(Content),
    /// Submit a direct read of the mapping at hand. Silent if nothing is mapped.
    DioRead,

    /// Close the running transaction to new handles.
    CommitLock,
    /// Wait for the last handle, and write the log.
    CommitLog,
    /// The transaction is durable.
    CommitDone,

    /// All entries that may go leave the extent status tree (`EXT4_IOC_CLEAR_ES_CACHE`).
    ClearEs,
    /// Report holes as FIEMAP and `SEEK_DATA` do, from the mapping at hand.
    ReportHole,
    /// Memory reclaim looks at a folio.
    Reclaim(u8),
    /// Wait until every other thread is done.
    EvictWait,
    /// Silent: jump if the inode owns no blocks.
    IfNoBlocks(Label),
    /// The inode goes away.
    Evict,
}

impl Instr {
    /// Whether it never ends a step.
    #[inline]
    pub(crate) const fn silent(self) -> bool {
        matches!(
            self,
            Instr::Begin(_)
                | Instr::Jump(_)
                | Instr::IfErr(_)
                | Instr::IfErrno(..)
                | Instr::ClearErr
                | Instr::Fail(_)
                | Instr::Range(..)
                | Instr::Advance(_)
                | Instr::NextBlock(_)
                | Instr::IfMapped(_)
                | Instr::IfBuffer(_)
                | Instr::EndIoNext(_)
                | Instr::IfNoBlocks(_)
                | Instr::IfNotBeyond(..)
                | Instr::IfNonda(_)
                | Instr::HandleJoin
                | Instr::IfSizeCovers(..)
                | Instr::IfDisksizeReaches(..)
                | Instr::Modified
                | Instr::ZeroEof
                | Instr::IfUnmodified(_)
                | Instr::IfInline(_)
                | Instr::IfSatisfied(..)
                | Instr::Unlock(..)
                | Instr::HandleStop
                | Instr::FolioUnlock
                | Instr::ClipToSize(_)
                | Instr::IfUptodate(_)
                | Instr::IfBuffers(_)
                | Instr::ZeroTail
                | Instr::BufferMap
                | Instr::BufferDelay
                | Instr::IfDisksizeCovers { .. }
                | Instr::Unguard
                | Instr::WbExtent(_)
                | Instr::WbFix
                | Instr::IfWritten(_)
                | Instr::WbNext(_)
                | Instr::IfDisksizeBehind(_)
                | Instr::IfPunchCovers(..)
                | Instr::RefreshPath
                | Instr::DioBegin
                | Instr::DioEnd
                | Instr::DioLost
                | Instr::FindExtent
                | Instr::Undecided(_)
        )
    }

    /// Calls `f` on each place that the instruction may jump to.
    pub(crate) fn each_target(&mut self, mut f: impl FnMut(&mut Label)) {
        match self {
            Instr::Jump(to)
            | Instr::IfErr(to)
            | Instr::IfErrno(_, to)
            | Instr::Advance(to)
            | Instr::NextBlock(to)
            | Instr::IfMapped(to)
            | Instr::IfBuffer(to)
            | Instr::IfSatisfied(_, to)
            | Instr::IfInline(to)
            | Instr::IfSizeCovers(_, to)
            | Instr::IfDisksizeReaches(_, to)
            | Instr::IfUnmodified(to)
            | Instr::IfNonda(to)
            | Instr::IfCached { skip: to, .. }
            | Instr::IfUptodate(to)
            | Instr::IfBuffers(to)
            | Instr::ClipToSize(to)
            | Instr::IfDisksizeCovers { skip: to, .. }
            | Instr::WbFind(to)
            | Instr::WbLock(to)
            | Instr::WbExtent(to)
            | Instr::IfWritten(to)
            | Instr::WbNext(to)
            | Instr::IfDisksizeBehind(to)
            | Instr::EndIoNext(to)
            | Instr::IfPunchCovers(_, _, to)
            | Instr::IfNotBeyond(_, to)
            | Instr::IfNoBlocks(to)
            | Instr::RemoveLeaf { restart: to, .. } => f(to),
            Instr::EsLookup { hit, gap, .. } => {
                f(hit);
                f(gap);
            }
            Instr::DaLookup { delayed, mapped, hole }
            | Instr::DaRecheck { delayed, mapped, hole } => {
                f(delayed);
                f(mapped);
                f(hole);
            }
            _ => {}
        }
    }
}
