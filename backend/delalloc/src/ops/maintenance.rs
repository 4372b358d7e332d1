//! Evict: the inode's last link and last user are gone.

use super::free::remove_space;
use crate::program::{Asm, Drop, Instr};
use crate::state::{Mode, Rwsem};

/// `ext4_evict_inode` with no link left: the cache goes, then the blocks *if `i_blocks` says that
/// there are any*, then what extent status still knows.
pub fn evict(a: &mut Asm) {
    let no_blocks = a.label();
    a.emit(Instr::EvictWait);
    a.emit(Instr::DropFolios { blocks: a.geo.all(), why: Drop::Remove });
    a.emit(Instr::HandleStart);
    a.emit(Instr::IfNoBlocks(no_blocks));
    a.lock(Rwsem::Data, Mode::Write);
    remove_space(a, 0, a.geo.blocks);
    a.unlock(Rwsem::Data, Mode::Write);
    a.place(no_blocks);
    a.lock(Rwsem::Data, Mode::Write);
    a.emit(Instr::EsRemove(0, a.geo.blocks));
    a.unlock(Rwsem::Data, Mode::Write);
    a.emit(Instr::HandleStop);
    a.emit(Instr::Unguard);
    a.emit(Instr::Evict);
}
