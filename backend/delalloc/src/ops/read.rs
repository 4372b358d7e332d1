//! Buffered read, FIEMAP, the extent status dump and precaching.

use super::Range;
use super::map::map_blocks;
use crate::kernel::Flag;
use crate::program::{Asm, Instr, Label, Need};
use crate::state::{Mode, Rwsem};

/// `filemap_read` and the read half of `filemap_fault`: fills the folios that are missing.
pub fn buffered(a: &mut Asm, range: Range) {
    let locked = a.has(Flag::ReadsLockInvalidate);
    for folio in a.geo.folio(range.at)..=a.geo.folio(range.end() - 1) {
        let (done, out, tail) = (a.label(), a.label(), a.label());
        let (first, end) =
            (a.geo.folio_first(folio), a.geo.folio_first(folio + 1).min(a.geo.blocks));
        a.emit(Instr::Range(first, end));
        // block_is_partially_uptodate: a part of a folio can be read before the rest is there.
        let needed = range.set() & a.geo.folio_blocks(folio);
        a.emit(Instr::IfCached { needed, skip: done });
        if locked {
            a.lock(Rwsem::Invalidate, Mode::Read);
        }
        a.emit(Instr::FolioCreate);
        a.emit(Instr::ClipToSize(out));
        let buffers = a.label();
        if end - first > 1 {
            a.emit(Instr::IfBuffers(buffers));
        }
        // ext4_mpage_readpages: each lookup reaches to the end.
        fill(a, out);
        if end - first > 1 {
            a.emit(Instr::Jump(tail));
            // block_read_full_folio: one lookup a buffer.
            a.place(buffers);
            for block in first..end {
                a.emit(Instr::Range(block, block + 1));
                a.emit(Instr::ClipToSize(tail));
                fill(a, out);
            }
        }
        a.place(tail);
        a.emit(Instr::ZeroTail);
        a.place(out);
        a.emit(Instr::FolioUnlock);
        if locked {
            a.unlock(Rwsem::Invalidate, Mode::Read);
        }
        a.place(done);
    }
}

/// Brings the blocks of the range into the cache that are not there.
fn fill(a: &mut Asm, failed: Label) {
    let (again, next) = (a.here(), a.label());
    a.emit(Instr::IfUptodate(next));
    map_blocks(a, Need::Lookup, false);
    a.emit(Instr::IfErr(failed));
    a.emit(Instr::Fill);
    a.emit(Instr::Filled);
    a.emit(Instr::IfErr(failed));
    a.place(next);
    a.emit(Instr::NextBlock(again));
}

/// `iomap_fiemap` and `SEEK_HOLE`: lookups, and a report of what is a hole.
pub fn fiemap(a: &mut Asm, range: Range) {
    let locked = a.has(Flag::FiemapLocked);
    if locked {
        a.lock(Rwsem::Inode, Mode::Read);
    }
    a.emit(Instr::Range(range.at, range.end()));
    let (again, out) = (a.here(), a.label());
    map_blocks(a, Need::Lookup, false);
    a.emit(Instr::IfErr(out));
    a.emit(Instr::ReportHole);
    a.emit(Instr::Advance(again));
    a.place(out);
    if locked {
        a.unlock(Rwsem::Inode, Mode::Read);
    }
}

/// `ext4_get_es_cache` without precaching: one look at each entry, which sets its R bit.
pub fn get_es_cache(a: &mut Asm, range: Range) {
    a.emit(Instr::Range(range.at, range.end()));
    let again = a.here();
    let missed = a.label();
    a.emit(Instr::EsLookup { need: Need::Lookup, hit: missed, gap: missed });
    a.place(missed);
    a.emit(Instr::Advance(again));
}

/// `ext4_ext_precache`: every extent of every leaf goes into extent status.
pub fn precache(a: &mut Asm) {
    let locked = a.has(Flag::PrecacheLocked);
    if locked {
        a.lock(Rwsem::Inode, Mode::Read);
    }
    let (leaves, out) = (a.geo.leaf(a.geo.blocks - 1) + 1, a.label());
    a.lock(Rwsem::Data, Mode::Read);
    for leaf in 0..leaves {
        let first = a.geo.leaf_set(leaf).trailing_zeros() as u8;
        a.emit(Instr::Range(first, first + 1));
        a.emit(Instr::LeafRead);
        a.emit(Instr::LeafCache { nocache: true });
        a.emit(Instr::IfErr(out));
        // EXT4_EX_FORCE_CACHE: also what was in memory before.
        a.emit(Instr::LeafCache { nocache: false });
    }
    a.place(out);
    a.unlock(Rwsem::Data, Mode::Read);
    if locked {
        a.unlock(Rwsem::Inode, Mode::Read);
    }
}
