//! Removal of a range of blocks: `ext4_ext_remove_space` and what goes with it.

use super::map::leaf;
use crate::program::{Asm, Instr};
use crate::state::{Mode, Rwsem};

/// Takes `first..end` out of the extent status tree and the extent tree.
pub fn remove_space(a: &mut Asm, first: u8, end: u8) {
    let out = a.label();
    a.emit(Instr::EsRemove(first, end));
    a.emit(Instr::IfErr(out));
    remove_extents(a, first, end);
    a.place(out);
}

/// Takes `first..end` out of the extent tree, leaf by leaf from the right. `i_data_sem` W and a
/// handle are held; both are dropped between leaves when the handle cannot be extended
/// (`ext4_datasem_ensure_credits`).
pub fn remove_extents(a: &mut Asm, first: u8, end: u8) {
    let leaves = a.geo.leaf(first)..=a.geo.leaf(end.max(first + 1) - 1);
    for number in leaves.rev() {
        let blocks = a.geo.leaf_set(number);
        let from = first.max(blocks.trailing_zeros() as u8);
        let to = end.min(16 - blocks.leading_zeros() as u8);
        if from >= to {
            continue;
        }
        let (restart, next) = (a.label(), a.label());
        a.emit(Instr::Range(from, to));
        leaf(a, true);
        a.emit(Instr::BitmapRead);
        a.emit(Instr::RemoveLeaf { leaf: number, first: from, end: to, restart });
        a.emit(Instr::Jump(next));
        a.place(restart);
        a.unlock(Rwsem::Data, Mode::Write);
        a.emit(Instr::HandleStop);
        a.emit(Instr::HandleStart);
        a.lock(Rwsem::Data, Mode::Write);
        a.emit(Instr::RefreshPath);
        a.place(next);
    }
}
