//! The modes of `fallocate(2)`.

use super::Range;
use super::free::{remove_extents, remove_space};
use super::map::map_blocks;
use super::writepages::write_and_wait;
use crate::kernel::Flag;
use crate::program::{Asm, Drop, Instr, Need};
use crate::state::{Errno, Mode, Rwsem};

/// `ext4_alloc_file_blocks`: one handle and one mapping a turn. No invalidate lock in any version,
/// so page faults run beside it.
fn alloc_file_blocks(a: &mut Asm, range: Range, need: Need) {
    let out = a.label();
    a.emit(Instr::Range(range.at, range.end()));
    let again = a.here();
    a.emit(Instr::HandleStart);
    map_blocks(a, need, false);
    a.emit(Instr::HandleStop);
    a.emit(Instr::IfErr(out));
    a.emit(Instr::Advance(again));
    a.place(out);
}

/// The size moves up to the end of what was allocated.
fn extend_size(a: &mut Asm, range: Range) {
    let (size, covered) = (a.geo.bytes(range.end()), a.label());
    a.emit(Instr::IfErr(covered));
    a.emit(Instr::IfDisksizeReaches(size, covered));
    a.emit(Instr::HandleStart);
    a.lock(Rwsem::Data, Mode::Write);
    a.emit(Instr::SetSize { size, disksize: true, grow: true });
    a.zero_eof();
    a.unlock(Rwsem::Data, Mode::Write);
    a.emit(Instr::HandleStop);
    a.place(covered);
}

/// `fallocate(0)` and `FALLOC_FL_KEEP_SIZE`.
pub fn allocate(a: &mut Asm, range: Range, keep_size: bool) {
    a.lock(Rwsem::Inode, Mode::Write);
    drain(a);
    a.modified();
    alloc_file_blocks(a, range, Need::Unwritten);
    if !keep_size {
        extend_size(a, range);
    }
    a.unlock(Rwsem::Inode, Mode::Write);
}

/// `inode_dio_wait`.
fn drain(a: &mut Asm) {
    a.emit(Instr::DioDrain);
}

/// `FALLOC_FL_ZERO_RANGE` of whole blocks.
pub fn zero_range(a: &mut Asm, range: Range, keep_size: bool) {
    a.lock(Rwsem::Inode, Mode::Write);
    drain(a);
    a.modified();
    a.lock(Rwsem::Invalidate, Mode::Write);
    disksize_before_punch(a, range);
    a.emit(Instr::DropFolios { blocks: range.set(), why: Drop::Remove });
    alloc_file_blocks(a, range, Need::ToUnwritten);
    let (failed, zeroed) = (a.label(), a.label());
    a.emit(Instr::IfErr(failed));
    a.emit(Instr::Jump(zeroed));
    a.place(failed);
    a.emit(Instr::Undecided(range.set()));
    a.place(zeroed);
    a.emit(Instr::Unguard);
    if !a.has(Flag::ZeroKeepsInvalidate) {
        a.unlock(Rwsem::Invalidate, Mode::Write);
    }
    if !keep_size {
        extend_size(a, range);
    }
    if a.has(Flag::ZeroKeepsInvalidate) {
        a.unlock(Rwsem::Invalidate, Mode::Write);
    }
    a.unlock(Rwsem::Inode, Mode::Write);
}

/// `ext4_update_disksize_before_punch`: data dropped from the cache no longer moves `i_disksize`
/// when it is written back.
fn disksize_before_punch(a: &mut Asm, range: Range) {
    let covered = a.label();
    let (from, to) = (a.geo.bytes(range.at), a.geo.bytes(range.end()));
    a.emit(Instr::IfPunchCovers(from, to, covered));
    a.emit(Instr::HandleStart);
    a.lock(Rwsem::Data, Mode::Write);
    a.emit(Instr::PunchDisksize(to));
    a.unlock(Rwsem::Data, Mode::Write);
    a.emit(Instr::HandleStop);
    a.place(covered);
}

/// `FALLOC_FL_PUNCH_HOLE` of whole blocks.
pub fn punch_hole(a: &mut Asm, range: Range) {
    if a.has(Flag::PunchFlushesFirst) {
        write_and_wait(a, range);
        a.emit(Instr::ClearErr);
    }
    let (inside, out) = (a.label(), a.label());
    a.lock(Rwsem::Inode, Mode::Write);
    drain(a);
    a.emit(Instr::IfNotBeyond(a.geo.bytes(range.at), out));
    a.modified();
    a.emit(Instr::IfSizeCovers(a.geo.bytes(range.end()), inside));
    // A hole that reaches beyond the end of the file ends with a page there.
    let page = 1 << a.geo.page_shift;
    let ends = (range.at / page + 1..).map(|number| (number * page).min(a.geo.blocks));
    let ends: Vec<u8> = ends.take(usize::from(range.len / page) + 2).collect();
    for end in ends {
        let (this, next) = (a.label(), a.label());
        let most = a.geo.bytes(end) - u32::from(a.has(Flag::PunchesNextPage));
        a.emit(Instr::IfNotBeyond(most, this));
        a.emit(Instr::Jump(next));
        a.place(this);
        punch(a, Range { at: range.at, len: end - range.at });
        a.emit(Instr::Jump(out));
        a.place(next);
    }
    a.place(inside);
    punch(a, range);
    a.place(out);
    a.unlock(Rwsem::Inode, Mode::Write);
}

/// The part under the invalidate lock.
fn punch(a: &mut Asm, range: Range) {
    let stop = a.label();
    a.lock(Rwsem::Invalidate, Mode::Write);
    disksize_before_punch(a, range);
    a.emit(Instr::DropFolios { blocks: range.set(), why: Drop::Remove });
    a.emit(Instr::HandleStart);
    a.lock(Rwsem::Data, Mode::Write);
    remove_space(a, range.at, range.end());
    a.emit(Instr::IfErr(stop));
    if a.has(Flag::HoleAfterPunch) {
        a.emit(Instr::InsertHole(range.at, range.end()));
    }
    a.place(stop);
    a.emit(Instr::Unguard);
    a.unlock(Rwsem::Data, Mode::Write);
    a.emit(Instr::HandleStop);
    a.unlock(Rwsem::Invalidate, Mode::Write);
}

/// `FALLOC_FL_COLLAPSE_RANGE`.
pub fn collapse_range(a: &mut Asm, range: Range) {
    // A range that reaches the end of the file is for truncate.
    let refuse = Refuse::UpTo(a.geo.bytes(range.end()));
    shift(a, range, refuse, |a| {
        a.emit(Instr::EsRemove(range.at, a.geo.blocks));
        remove_extents(a, range.at, range.end());
        a.emit(Instr::Shift { first: range.end(), by: -range.len.cast_signed() });
    });
}

/// `FALLOC_FL_INSERT_RANGE`.
pub fn insert_range(a: &mut Asm, range: Range) {
    let refuse =
        Refuse::Outside(a.geo.bytes(range.at), a.geo.bytes(a.geo.blocks.saturating_sub(range.len)));
    shift(a, range, refuse, |a| {
        // To where the extent has to be cut, before what lies behind is forgotten.
        a.emit(Instr::FindExtent);
        a.emit(Instr::EsRemove(range.at, a.geo.blocks));
        a.emit(Instr::Shift { first: range.at, by: range.len.cast_signed() });
    });
}

/// Sizes for which collapse and insert answer EINVAL (or EFBIG).
#[derive(Clone, Copy)]
enum Refuse {
    UpTo(u32),
    Outside(u32, u32),
}

/// The frame of collapse and insert: write back and drop everything behind `from`, then move
/// extents under `i_data_sem` W.
fn shift(a: &mut Asm, range: Range, refuse: Refuse, work: impl Fn(&mut Asm)) {
    let from = range.at;
    let aligned = (range.at | range.len).is_multiple_of(a.geo.cluster_blocks());
    // Whole pages are written back and dropped.
    let from_page = a.geo.folio_first(a.geo.folio(from));
    let tail = Range { at: from_page, len: a.geo.blocks - from_page };
    a.lock(Rwsem::Inode, Mode::Write);
    let (refused, end, out) = (a.label(), a.label(), a.label());
    if !aligned {
        a.emit(Instr::Jump(refused));
    }
    match refuse {
        Refuse::UpTo(size) => a.emit(Instr::IfNotBeyond(size, refused)),
        Refuse::Outside(from, to) => {
            a.emit(Instr::IfNotBeyond(from, refused));
            a.emit(Instr::IfSizeCovers(to + 1, refused));
        }
    }
    drain(a);
    a.modified();
    a.lock(Rwsem::Invalidate, Mode::Write);
    write_and_wait(a, tail);
    a.emit(Instr::IfErr(out));
    a.emit(Instr::DropFolios { blocks: tail.set(), why: Drop::Move });
    a.emit(Instr::HandleStart);
    a.lock(Rwsem::Data, Mode::Write);
    work(a);
    a.emit(Instr::Unguard);
    a.unlock(Rwsem::Data, Mode::Write);
    a.emit(Instr::HandleStop);
    a.place(out);
    a.unlock(Rwsem::Invalidate, Mode::Write);
    a.emit(Instr::Jump(end));
    a.place(refused);
    a.emit(Instr::Fail(Errno::Einval));
    a.place(end);
    a.unlock(Rwsem::Inode, Mode::Write);
}
