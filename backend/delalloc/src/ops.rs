//! Operations: what users, the flusher and memory reclaim do to a file.
//!
//! In: an [`Op`] and a kernel. Out: instructions. One family of operations per file; the
//! sub-procedures that they share (`ext4_map_blocks`, `ext4_da_map_blocks`, removal of a range)
//! are in [`map`] and [`free`].
//! All offsets and lengths are whole blocks.

use serde::Deserialize;

use crate::geometry::{Set, span};
use crate::program::{Asm, Instr};
use crate::state::Content;

pub mod dio;
pub mod fallocate;
pub mod free;
pub mod maintenance;
pub mod map;
pub mod read;
pub mod sync;
pub mod truncate;
pub mod write;
pub mod writepages;

/// Blocks `at..at + len` of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// First block.
    pub at: u8,
    /// Number of blocks, at least 1.
    pub len: u8,
}

impl Range {
    /// Behind the last block.
    pub const fn end(self) -> u8 {
        self.at.saturating_add(self.len)
    }

    /// The blocks.
    pub const fn set(self) -> Set {
        span(self.at, self.end())
    }
}

/// One operation of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Deserialize)]
#[serde(
    tag = "op",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
pub enum Op {
    /// `write(2)` into the page cache.
    Write {
        /// First block.
        at: u8,
        /// Number of blocks.
        len: u8,
        /// What is written, 1 to 13.
        data: Content,
        /// Only part of the block changes (to what it held before, as far as the model sees): the
        /// rest has to be read or zeroed first.
        #[serde(default)]
        partial: bool,
    },
    /// A store through a shared mapping: `ext4_page_mkwrite`, then the store.
    Mkwrite {
        /// Block stored to.
        at: u8,
        /// What is stored, 1 to 13.
        data: Content,
        /// Store to the bytes of the block that lie behind the end of the file, if it ends there.
        #[serde(default)]
        behind_eof: bool,
    },
    /// `read(2)` or a read fault.
    Read {
        /// First block.
        at: u8,
        /// Number of blocks.
        len: u8,
    },
    /// `fallocate(0)` or `FALLOC_FL_KEEP_SIZE`.
    Fallocate {
        /// First block.
        at: u8,
        /// Number of blocks.
        len: u8,
        /// `FALLOC_FL_KEEP_SIZE`.
        #[serde(default)]
        keep_size: bool,
    },
    /// `FALLOC_FL_ZERO_RANGE`.
    ZeroRange {
        /// First block.
        at: u8,
        /// Number of blocks.
        len: u8,
        /// `FALLOC_FL_KEEP_SIZE`.
        #[serde(default)]
        keep_size: bool,
    },
    /// `FALLOC_FL_PUNCH_HOLE`.
    PunchHole {
        /// First block.
        at: u8,
        /// Number of blocks.
        len: u8,
    },
    /// `FALLOC_FL_COLLAPSE_RANGE`.
    CollapseRange {
        /// First block.
        at: u8,
        /// Number of blocks.
        len: u8,
    },
    /// `FALLOC_FL_INSERT_RANGE`.
    InsertRange {
        /// First block.
        at: u8,
        /// Number of blocks.
        len: u8,
    },
    /// `ftruncate(2)`, either way.
    Truncate {
        /// New size in blocks.
        size: u8,
    },
    /// `write(2)` with `O_DIRECT`.
    DioWrite {
        /// First block.
        at: u8,
        /// Number of blocks.
        len: u8,
        /// What is written, 1 to 13.
        data: Content,
    },
    /// `read(2)` with `O_DIRECT`.
    DioRead {
        /// First block.
        at: u8,
        /// Number of blocks.
        len: u8,
    },
    /// The flusher writes a range back.
    Writepages {
        /// First block.
        at: u8,
        /// Number of blocks.
        len: u8,
    },
    /// `fsync(2)`.
    Fsync,
    /// A journal commit by somebody else.
    Commit,
    /// FIEMAP, or `SEEK_HOLE`/`SEEK_DATA`.
    Fiemap {
        /// First block.
        at: u8,
        /// Number of blocks.
        len: u8,
    },
    /// `EXT4_IOC_GET_ES_CACHE`.
    GetEsCache {
        /// First block.
        at: u8,
        /// Number of blocks.
        len: u8,
    },
    /// `EXT4_IOC_PRECACHE_EXTENTS`, or `EXT4_IOC_GET_ES_CACHE` with `FIEMAP_FLAG_CACHE`.
    PrecacheExtents,
    /// `EXT4_IOC_CLEAR_ES_CACHE`.
    ClearEsCache,
    /// Memory reclaim looks at one folio.
    Reclaim {
        /// Folio.
        folio: u8,
    },
    /// `mount -o remount,nodelalloc`.
    RemountNodelalloc,
    /// The last link and the last user are gone.
    Evict,
}

impl Op {
    /// The kernel's or the system call's name, with the range.
    pub fn label(&self) -> String {
        match *self {
            Op::Write { at, len, .. } => format!("write({at}, {len})"),
            Op::Mkwrite { at, behind_eof: true, .. } => format!("page_mkwrite({at}, behind EOF)"),
            Op::Mkwrite { at, .. } => format!("page_mkwrite({at})"),
            Op::Read { at, len } => format!("read({at}, {len})"),
            Op::Fallocate { at, len, keep_size } if keep_size => {
                format!("fallocate(KEEP_SIZE, {at}, {len})")
            }
            Op::Fallocate { at, len, .. } => format!("fallocate(0, {at}, {len})"),
            Op::ZeroRange { at, len, .. } => format!("fallocate(ZERO_RANGE, {at}, {len})"),
            Op::PunchHole { at, len } => format!("fallocate(PUNCH_HOLE, {at}, {len})"),
            Op::CollapseRange { at, len } => format!("fallocate(COLLAPSE_RANGE, {at}, {len})"),
            Op::InsertRange { at, len } => format!("fallocate(INSERT_RANGE, {at}, {len})"),
            Op::Truncate { size } => format!("ftruncate({size})"),
            Op::DioWrite { at, len, .. } => format!("write(O_DIRECT, {at}, {len})"),
            Op::DioRead { at, len } => format!("read(O_DIRECT, {at}, {len})"),
            Op::Writepages { at, len } => format!("writepages({at}, {len})"),
            Op::Fsync => "fsync".into(),
            Op::Commit => "commit".into(),
            Op::Fiemap { at, len } => format!("fiemap({at}, {len})"),
            Op::GetEsCache { at, len } => format!("GET_ES_CACHE({at}, {len})"),
            Op::PrecacheExtents => "PRECACHE_EXTENTS".into(),
            Op::ClearEsCache => "CLEAR_ES_CACHE".into(),
            Op::Reclaim { folio } => format!("reclaim(folio {folio})"),
            Op::RemountNodelalloc => "remount(nodelalloc)".into(),
            Op::Evict => "evict".into(),
        }
    }

    /// The blocks named, if any.
    pub fn range(&self) -> Option<Range> {
        match *self {
            Op::Write { at, len, .. }
            | Op::Read { at, len }
            | Op::Fallocate { at, len, .. }
            | Op::ZeroRange { at, len, .. }
            | Op::PunchHole { at, len }
            | Op::CollapseRange { at, len }
            | Op::InsertRange { at, len }
            | Op::DioWrite { at, len, .. }
            | Op::DioRead { at, len }
            | Op::Writepages { at, len }
            | Op::Fiemap { at, len }
            | Op::GetEsCache { at, len } => Some(Range { at, len }),
            Op::Mkwrite { at, .. } => Some(Range { at, len: 1 }),
            Op::Truncate { .. }
            | Op::Fsync
            | Op::Commit
            | Op::PrecacheExtents
            | Op::ClearEsCache
            | Op::Reclaim { .. }
            | Op::RemountNodelalloc
            | Op::Evict => None,
        }
    }

    /// What is written, if anything.
    pub fn data(&self) -> Option<Content> {
        match *self {
            Op::Write { data, .. } | Op::Mkwrite { data, .. } | Op::DioWrite { data, .. } => {
                Some(data)
            }
            _ => None,
        }
    }

    /// Emits the operation as the `number`-th of its thread.
    pub fn emit(&self, a: &mut Asm, number: u8) {
        a.emit(Instr::Begin(number));
        self.emit_body(a);
    }

    /// Emits the operation alone: its failure can be read when it is over.
    pub(crate) fn emit_body(self, a: &mut Asm) {
        let range = self.range().unwrap_or(Range { at: 0, len: 0 });
        match self {
            Op::Write { data, partial, .. } => write::buffered(a, range, data, partial),
            Op::Mkwrite { at, data, behind_eof } => write::page_mkwrite(a, at, data, behind_eof),
            Op::Read { .. } => read::buffered(a, range),
            Op::Fallocate { keep_size, .. } => fallocate::allocate(a, range, keep_size),
            Op::ZeroRange { keep_size, .. } => fallocate::zero_range(a, range, keep_size),
            Op::PunchHole { .. } => fallocate::punch_hole(a, range),
            Op::CollapseRange { .. } => fallocate::collapse_range(a, range),
            Op::InsertRange { .. } => fallocate::insert_range(a, range),
            Op::Truncate { size } => truncate::setattr_size(a, size),
            Op::DioWrite { data, .. } => dio::write(a, range, data),
            Op::DioRead { .. } => dio::read(a, range),
            Op::Writepages { .. } => writepages::range(a, range),
            Op::Fsync => sync::fsync(a),
            Op::Commit => sync::commit(a),
            Op::Fiemap { .. } => read::fiemap(a, range),
            Op::GetEsCache { .. } => read::get_es_cache(a, range),
            Op::PrecacheExtents => read::precache(a),
            Op::ClearEsCache => a.emit(Instr::ClearEs),
            Op::Reclaim { folio } => a.emit(Instr::Reclaim(folio)),
            Op::RemountNodelalloc => a.emit(Instr::Remount),
            Op::Evict => maintenance::evict(a),
        }
    }
}
