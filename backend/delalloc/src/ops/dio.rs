//! Direct I/O.

use super::Range;
use super::map::map_blocks;
use super::writepages::write_and_wait;
use crate::kernel::Flag;
use crate::program::{Asm, Drop, Instr, Need};
use crate::state::{Content, Mode, Rwsem};

/// `ext4_dio_write_iter` under exclusive `i_rwsem`: no invalidate lock, so the window of fallocate
/// is here too.
pub fn write(a: &mut Asm, range: Range, data: Content) {
    let (out, ready, lost) = (a.label(), a.label(), a.label());
    a.lock(Rwsem::Inode, Mode::Write);
    look_first(a, range);
    a.modified();
    write_and_wait(a, range);
    a.emit(Instr::IfErr(ready));
    a.emit(Instr::DropFolios { blocks: range.set(), why: Drop::Before });
    a.emit(Instr::IfErr(ready));
    a.emit(Instr::DioBegin);
    // A write that extends the file is on the orphan list until its size is set.
    let (size, inside) = (a.geo.bytes(range.end()), a.label());
    a.emit(Instr::IfDisksizeReaches(size, inside));
    a.emit(Instr::HandleStart);
    a.emit(Instr::Orphan(true));
    a.emit(Instr::HandleStop);
    a.place(inside);
    a.emit(Instr::Range(range.at, range.end()));
    let again = a.here();
    a.emit(Instr::HandleStart);
    map_blocks(a, Need::Direct, false);
    a.emit(Instr::HandleStop);
    a.emit(Instr::IfErr(out));
    a.emit(Instr::DioWrite(data));
    a.emit(Instr::IfErr(out));
    let written = a.label();
    a.emit(Instr::IfWritten(written));
    a.emit(Instr::HandleStart);
    map_blocks(a, Need::Convert, false);
    a.emit(Instr::HandleStop);
    a.emit(Instr::IfErr(lost));
    a.place(written);
    a.emit(Instr::Advance(again));
    let covered = a.label();
    a.emit(Instr::IfDisksizeReaches(size, covered));
    a.emit(Instr::HandleStart);
    a.lock(Rwsem::Data, Mode::Write);
    a.emit(Instr::SetSize { size, disksize: true, grow: true });
    if a.has(Flag::DioZeroesEof) {
        a.zero_eof();
    }
    a.unlock(Rwsem::Data, Mode::Write);
    a.emit(Instr::Orphan(false));
    a.emit(Instr::HandleStop);
    a.place(covered);
    a.emit(Instr::Jump(out));
    a.place(lost);
    a.emit(Instr::DioLost);
    a.place(out);
    let (tidy, clean) = (a.label(), a.label());
    a.emit(Instr::IfErr(tidy));
    a.emit(Instr::Jump(clean));
    // ext4_inode_extension_cleanup
    a.place(tidy);
    a.emit(Instr::HandleStart);
    a.lock(Rwsem::Data, Mode::Write);
    a.emit(Instr::CutOrphan);
    a.unlock(Rwsem::Data, Mode::Write);
    a.emit(Instr::HandleStop);
    a.place(clean);
    a.emit(Instr::DropFolios { blocks: range.set(), why: Drop::After });
    a.emit(Instr::DioEnd);
    a.place(ready);
    a.unlock(Rwsem::Inode, Mode::Write);
}

/// `ext4_overwrite_io`: a write inside the file looks its first blocks up before anything is
/// written back. Older kernels first ask for reasons to need `i_rwsem` alone anyway: a write that
/// extends the file on disk, or an inode whose privileges may have to be taken away.
fn look_first(a: &mut Asm, range: Range) {
    let (inside, looked, size) = (a.label(), a.label(), a.geo.bytes(range.end()));
    if a.has(Flag::DioLooksFirst) {
        a.emit(Instr::IfSizeCovers(size, inside));
    } else {
        a.emit(Instr::IfUnmodified(looked));
        a.emit(Instr::IfDisksizeReaches(size, inside));
    }
    a.emit(Instr::Jump(looked));
    a.place(inside);
    a.emit(Instr::Range(range.at, range.end()));
    map_blocks(a, Need::Lookup, false);
    // Not knowing is a no.
    a.emit(Instr::ClearErr);
    a.place(looked);
    // Registers that nobody reads any more.
    a.emit(Instr::Range(0, 0));
}

/// `ext4_dio_read_iter`: writes the range back, then reads what is mapped.
pub fn read(a: &mut Asm, range: Range) {
    let out = a.label();
    a.lock(Rwsem::Inode, Mode::Read);
    write_and_wait(a, range);
    a.emit(Instr::IfErr(out));
    a.emit(Instr::DioBegin);
    a.emit(Instr::Range(range.at, range.end()));
    let again = a.here();
    let failed = a.label();
    map_blocks(a, Need::Lookup, false);
    a.emit(Instr::IfErr(failed));
    a.emit(Instr::DioRead);
    a.emit(Instr::IfErr(failed));
    a.emit(Instr::Advance(again));
    a.place(failed);
    a.emit(Instr::DioEnd);
    a.place(out);
    a.unlock(Rwsem::Inode, Mode::Read);
}
