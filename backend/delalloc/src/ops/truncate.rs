//! `ftruncate(2)`: `ext4_setattr` and `ext4_truncate`.

use super::free::remove_space;
use crate::geometry::span;
use crate::kernel::Flag;
use crate::program::{Asm, Drop, Instr};
use crate::state::{Mode, Rwsem};

/// Sets the size to `blocks` blocks, whichever way that is.
pub fn setattr_size(a: &mut Asm, blocks: u8) {
    let size = a.geo.bytes(blocks);
    let (grow, out) = (a.label(), a.label());
    a.lock(Rwsem::Inode, Mode::Write);
    if size > 0 {
        // The same size also cuts off what is allocated behind it.
        a.emit(Instr::IfNotBeyond(size - 1, grow));
    }

    a.emit(Instr::DioDrain);
    a.lock(Rwsem::Invalidate, Mode::Write);
    a.emit(Instr::HandleStart);
    a.emit(Instr::Orphan(true));
    a.lock(Rwsem::Data, Mode::Write);
    a.emit(Instr::SetSize { size, disksize: true, grow: false });
    a.unlock(Rwsem::Data, Mode::Write);
    a.emit(Instr::HandleStop);
    a.emit(Instr::DropFolios { blocks: span(blocks, a.geo.blocks), why: Drop::Remove });
    truncate(a, blocks);
    a.emit(Instr::Jump(out));

    a.place(grow);
    let same = a.label();
    a.lock(Rwsem::Invalidate, Mode::Write);
    a.emit(Instr::IfSizeCovers(size, same));
    a.emit(Instr::HandleStart);
    a.lock(Rwsem::Data, Mode::Write);
    a.emit(Instr::SetSize { size, disksize: true, grow: false });
    a.zero_eof();
    a.unlock(Rwsem::Data, Mode::Write);
    a.emit(Instr::HandleStop);
    a.place(same);

    a.place(out);
    a.unlock(Rwsem::Invalidate, Mode::Write);
    a.unlock(Rwsem::Inode, Mode::Write);
}

/// `ext4_truncate`: frees everything from block `first` on.
pub fn truncate(a: &mut Asm, first: u8) {
    let (inline, done) = (a.label(), a.label());
    a.emit(Instr::IfInline(inline));
    a.emit(Instr::HandleStart);
    a.lock(Rwsem::Data, Mode::Write);
    remove_space(a, first, a.geo.blocks);
    a.emit(Instr::Unguard);
    a.unlock(Rwsem::Data, Mode::Write);
    a.emit(Instr::Orphan(false));
    a.emit(Instr::HandleStop);
    a.emit(Instr::Jump(done));

    // ext4_inline_data_truncate: the data is in the inode, only extent status may be left.
    a.place(inline);
    a.emit(Instr::HandleStart);
    a.lock(Rwsem::Data, Mode::Write);
    if a.has(Flag::InlineTruncateEs) {
        a.emit(Instr::EsRemove(first, a.geo.blocks));
    }
    a.emit(Instr::Orphan(false));
    a.emit(Instr::Unguard);
    a.unlock(Rwsem::Data, Mode::Write);
    a.emit(Instr::HandleStop);
    a.place(done);
}
