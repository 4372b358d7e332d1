//! Buffered write and `page_mkwrite`, with and without delayed allocation.

use super::Range;
use super::map::{da_map_blocks, map_blocks};
use crate::kernel::Flag;
use crate::program::{Asm, Instr, Need};
use crate::state::{Content, Mode, Rwsem};

/// `ext4_buffered_write_iter`: one folio after the other under `i_rwsem`.
pub fn buffered(a: &mut Asm, range: Range, data: Content, partial: bool) {
    a.lock(Rwsem::Inode, Mode::Write);
    if a.has(Flag::WriteDrainsDio) {
        a.emit(Instr::DioDrain);
    }
    a.modified();
    let out = a.label();
    for folio in a.geo.folio(range.at)..=a.geo.folio(range.end() - 1) {
        let blocks = a.geo.folio_blocks(folio) & range.set();
        let part = Range { at: blocks.trailing_zeros() as u8, len: blocks.count_ones() as u8 };
        write_folio(a, part, data, partial, out);
    }
    a.place(out);
    a.unlock(Rwsem::Inode, Mode::Write);
}

fn write_folio(a: &mut Asm, part: Range, data: Content, partial: bool, out: u16) {
    let (nonda, done) = (a.label(), a.label());
    let size = a.geo.bytes(part.end());
    a.emit(Instr::IfNonda(nonda));
    // Delayed: 5.10 holds a handle throughout.
    let handle = a.has(Flag::WriteHandle);
    if handle {
        a.emit(Instr::HandleStart);
    }
    let failed = a.label();
    instantiate(a, part, partial, failed, da_map_blocks);
    a.emit(store(part, data, partial, size));
    a.zero_eof();
    disksize(a, part, size);
    a.place(failed);
    a.emit(Instr::FolioUnlock);
    if handle {
        a.emit(Instr::HandleStop);
    }
    a.emit(Instr::IfErr(out));
    a.emit(Instr::Jump(done));

    a.place(nonda);
    let failed = a.label();
    a.emit(Instr::HandleStart);
    instantiate(a, part, partial, failed, allocate_now);
    a.emit(store(part, data, partial, size));
    a.zero_eof();
    let covered = a.label();
    a.emit(Instr::IfDisksizeCovers { size, last: part.end() - 1, skip: covered });
    set_disksize(a, size);
    a.place(covered);
    a.place(failed);
    a.emit(Instr::FolioUnlock);
    a.emit(Instr::HandleStop);
    a.emit(Instr::IfErr(out));
    a.place(done);
}

fn store(part: Range, content: Content, partial: bool, size: u32) -> Instr {
    let end = if partial { part.at } else { part.end() };
    Instr::Store { first: part.at, end, content, size }
}

/// Locks the folio and gives each block of the range a buffer, by `map`.
fn instantiate(a: &mut Asm, part: Range, fill: bool, failed: u16, map: impl Fn(&mut Asm)) {
    a.emit(Instr::Range(part.at, part.end()));
    a.emit(Instr::FolioCreate);
    let (again, next) = (a.here(), a.label());
    a.emit(Instr::IfBuffer(next));
    map(a);
    a.emit(Instr::IfErr(failed));
    if fill {
        a.emit(Instr::Fill);
        a.emit(Instr::Filled);
        a.emit(Instr::IfErr(failed));
    }
    a.place(next);
    a.emit(Instr::NextBlock(again));
}

/// `ext4_get_block` or `ext4_get_block_unwritten`: no delay.
fn allocate_now(a: &mut Asm) {
    let need = if a.geo.dioread_nolock { Need::Unwritten } else { Need::Written };
    map_blocks(a, need, false);
    let out = a.label();
    a.emit(Instr::IfErr(out));
    a.emit(Instr::BufferMap);
    a.place(out);
}

/// `ext4_da_write_end`: `i_disksize` moves only if the write ends in an allocated block.
fn disksize(a: &mut Asm, part: Range, size: u32) {
    let covered = a.label();
    a.emit(Instr::IfDisksizeCovers { size, last: part.end() - 1, skip: covered });
    set_disksize(a, size);
    a.place(covered);
}

fn set_disksize(a: &mut Asm, size: u32) {
    a.lock(Rwsem::Data, Mode::Write);
    a.emit(Instr::SetSize { size, disksize: true, grow: true });
    a.unlock(Rwsem::Data, Mode::Write);
}

/// `ext4_page_mkwrite`, then the store. The page was faulted in before.
pub fn page_mkwrite(a: &mut Asm, at: u8, data: Content, behind_eof: bool) {
    let (nonda, out) = (a.label(), a.label());
    let folio = a.geo.folio(at);
    let (first, end) = (a.geo.folio_first(folio), a.geo.folio_first(folio + 1));
    let store = if behind_eof {
        Instr::StoreBehindEof(at)
    } else {
        Instr::Store { first: at, end: at + 1, content: data, size: 0 }
    };
    a.lock(Rwsem::Invalidate, Mode::Read);
    a.emit(Instr::Range(first, end));
    a.emit(Instr::IfNonda(nonda));
    make_writable(a, out, da_map_blocks);
    a.emit(store);
    a.emit(Instr::Jump(out));

    a.place(nonda);
    a.emit(Instr::HandleStart);
    let failed = a.label();
    make_writable(a, failed, allocate_now);
    a.emit(store);
    a.place(failed);
    a.emit(Instr::FolioUnlock);
    a.emit(Instr::HandleStop);

    a.place(out);
    a.emit(Instr::FolioUnlock);
    a.unlock(Rwsem::Invalidate, Mode::Read);
}

fn make_writable(a: &mut Asm, failed: u16, map: impl Fn(&mut Asm)) {
    a.emit(Instr::FolioLock);
    a.emit(Instr::IfErr(failed));
    let (again, next) = (a.here(), a.label());
    a.emit(Instr::IfBuffer(next));
    map(a);
    a.emit(Instr::IfErr(failed));
    a.place(next);
    a.emit(Instr::NextBlock(again));
}
