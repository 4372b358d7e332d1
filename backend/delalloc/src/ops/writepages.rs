//! `ext4_writepages` and the end of its I/O.
//!
//! The kernel locks a run of contiguous dirty folios and maps them together; the model takes one
//! folio at a time, which maps the same blocks.

use super::Range;
use super::map::map_blocks;
use crate::kernel::Flag;
use crate::program::{Asm, Instr, Need};
use crate::state::{Errno, Mode, Rwsem};

/// Writes back the dirty folios of a range.
pub fn range(a: &mut Asm, range: Range) {
    let nocache = a.has(Flag::WritebackNocache);
    let (out, skip, failed, give_up) = (a.label(), a.label(), a.label(), a.label());
    a.emit(Instr::Range(range.at, range.end()));
    let next_folio = a.here();
    a.emit(Instr::WbFind(out));
    a.emit(Instr::HandleStart);
    a.emit(Instr::WbLock(skip));
    a.emit(Instr::WbWait);
    let (next_extent, submit) = (a.here(), a.label());
    a.emit(Instr::WbExtent(submit));
    map_blocks(a, Need::Writeback, nocache);
    a.emit(Instr::IfErr(failed));
    a.emit(Instr::WbFix);
    a.emit(Instr::Jump(next_extent));
    a.place(submit);
    a.emit(Instr::WbSubmit { partial: false });
    disksize(a);
    a.place(skip);
    a.emit(Instr::HandleStop);
    a.emit(Instr::WbNext(next_folio));
    a.emit(Instr::Jump(out));

    a.place(failed);
    a.emit(Instr::IfErrno(Errno::Eio, give_up));
    // Transient: to be tried again later.
    if a.has(Flag::PartialSubmit) {
        a.emit(Instr::WbSubmit { partial: true });
        disksize(a);
    }
    a.emit(Instr::FolioUnlock);
    a.emit(Instr::HandleStop);
    a.emit(Instr::Jump(out));

    // Fatal: "This should not happen!! Data will be lost".
    a.place(give_up);
    let locked = a.has(Flag::ErrorPathLocked);
    if locked {
        a.lock(Rwsem::Data, Mode::Write);
    }
    a.emit(Instr::WbGiveUp);
    if locked {
        a.unlock(Rwsem::Data, Mode::Write);
    }
    a.emit(Instr::WbInvalidate);
    a.emit(Instr::FolioUnlock);
    a.emit(Instr::HandleStop);
    a.place(out);
}

/// `mpage_map_and_submit_extent`: `i_disksize` follows what was submitted.
fn disksize(a: &mut Asm) {
    let covered = a.label();
    a.emit(Instr::IfDisksizeBehind(covered));
    a.lock(Rwsem::Data, Mode::Write);
    a.emit(Instr::WbDisksize);
    a.unlock(Rwsem::Data, Mode::Write);
    a.place(covered);
}

/// `filemap_write_and_wait_range`.
pub fn write_and_wait(a: &mut Asm, blocks: Range) {
    range(a, blocks);
    a.emit(Instr::WaitWriteback(blocks.set()));
}

/// `ext4_end_io_rsv_work`: the worker that converts what was written, then ends writeback.
pub fn end_io_worker(a: &mut Asm) {
    let again = a.here();
    let finish = a.label();
    a.emit(Instr::EndIoWait);
    let next = a.here();
    a.emit(Instr::EndIoNext(finish));
    a.emit(Instr::HandleJoin);
    map_blocks(a, Need::Convert, false);
    a.emit(Instr::HandleStop);
    a.emit(Instr::Jump(next));
    a.place(finish);
    a.emit(Instr::EndIoFinish);
    a.emit(Instr::Jump(again));
}
