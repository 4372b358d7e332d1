//! `ext4_map_blocks` and `ext4_da_map_blocks`, with the locks where the kernel takes them.

use crate::kernel::Flag;
use crate::program::{Asm, Instr, Label, Need};
use crate::state::{Mode, Rwsem};

/// Reads the extent leaf of the block at hand if it is not in memory.
pub fn leaf(a: &mut Asm, nocache: bool) {
    if a.geo.leaf_blocks != 0 {
        a.emit(Instr::LeafRead);
        a.emit(Instr::LeafCache { nocache });
    }
}

/// Walks the extent tree and puts what it finds into the extent status tree. A leaf that cannot be
/// read is a failure, and a jump.
fn query(a: &mut Asm, nocache: bool, failed: Label) {
    let untrimmed =
        if a.geo.indirect { !a.has(Flag::IndirectTrimmed) } else { !a.has(Flag::HoleTrimmed) };
    leaf(a, nocache);
    a.emit(Instr::IfErr(failed));
    a.emit(Instr::Walk { untrimmed });
    a.emit(Instr::CacheFound);
}

/// `ext4_map_blocks` on the thread's range: leaves a mapping, or a failure.
///
/// The lookup half publishes what it finds (a hole too) before the create half takes
/// `i_data_sem` for writing: that gap is the window of M01.
pub fn map_blocks(a: &mut Asm, need: Need, nocache: bool) {
    let done = a.label();
    let create = if need == Need::Lookup { done } else { a.label() };
    a.emit(Instr::EsLookup { need, hit: done, gap: create });
    a.lock(Rwsem::Data, Mode::Read);
    let failed = a.label();
    query(a, nocache, failed);
    a.place(failed);
    a.unlock(Rwsem::Data, Mode::Read);
    a.emit(Instr::IfErr(done));
    if need != Need::Lookup {
        a.emit(Instr::IfSatisfied(need, done));
        a.place(create);
        create_blocks(a, need, nocache);
    }
    a.place(done);
}

/// The create half: allocate, split or convert under `i_data_sem` W.
fn create_blocks(a: &mut Asm, need: Need, nocache: bool) {
    let out = a.label();
    a.lock(Rwsem::Data, Mode::Write);
    leaf(a, nocache);
    a.emit(Instr::IfErr(out));
    a.emit(Instr::BitmapRead);
    a.emit(Instr::Allocate(need));
    a.emit(Instr::IfErr(out));
    if !a.has(Flag::InsertReleases) {
        a.emit(Instr::UpdateReserve(need));
    }
    a.emit(Instr::InsertAllocated(need));
    a.place(out);
    a.unlock(Rwsem::Data, Mode::Write);
}

/// `ext4_da_map_blocks` on the block at hand: sets the buffer's bits, or fails.
pub fn da_map_blocks(a: &mut Asm) {
    let (delayed, mapped, hole, done) = (a.label(), a.label(), a.label(), a.label());
    a.emit(Instr::DaLookup { delayed, mapped, hole });
    a.lock(Rwsem::Data, Mode::Read);
    let failed = a.label();
    query(a, false, failed);
    a.place(failed);
    if a.has(Flag::InsertExclusive) {
        a.unlock(Rwsem::Data, Mode::Read);
        a.emit(Instr::IfErr(done));
        a.emit(Instr::IfMapped(mapped));
        a.place(hole);
        a.lock(Rwsem::Data, Mode::Write);
        let (delayed_now, mapped_now, failed_now) = (a.label(), a.label(), a.label());
        if a.has(Flag::EsRecheck) {
            let still_hole = a.label();
            a.emit(Instr::DaRecheck { delayed: delayed_now, mapped: mapped_now, hole: still_hole });
            if a.has(Flag::TreeRecheck) {
                query(a, false, failed_now);
                a.emit(Instr::IfMapped(mapped_now));
            }
            a.place(still_hole);
        }
        insert(a, Mode::Write);
        a.emit(Instr::IfErr(done));
        a.emit(Instr::Jump(delayed));
        a.place(delayed_now);
        a.unlock(Rwsem::Data, Mode::Write);
        a.emit(Instr::Jump(delayed));
        a.place(failed_now);
        a.unlock(Rwsem::Data, Mode::Write);
        a.emit(Instr::Jump(done));
        a.place(mapped_now);
        a.unlock(Rwsem::Data, Mode::Write);
        a.emit(Instr::Jump(mapped));
    } else {
        insert_shared(a, hole, mapped);
        a.emit(Instr::IfErr(done));
    }
    a.place(delayed);
    a.emit(Instr::BufferDelay);
    a.emit(Instr::Jump(done));
    a.place(mapped);
    a.emit(Instr::BufferMap);
    a.place(done);
}

/// `ext4_insert_delayed_block`, then the lock goes.
fn insert(a: &mut Asm, mode: Mode) {
    let out = a.label();
    a.emit(Instr::Reserve);
    a.emit(Instr::IfErr(out));
    a.emit(Instr::InsertDelayed);
    a.place(out);
    a.unlock(Rwsem::Data, mode);
}

/// The insert of kernels before M02's fix: all under `i_data_sem` R.
fn insert_shared(a: &mut Asm, hole: u16, mapped: u16) {
    let (found, add, failed, out) = (a.label(), a.label(), a.label(), a.label());
    a.emit(Instr::IfErr(failed));
    a.emit(Instr::IfMapped(found));
    a.emit(Instr::Jump(add));
    a.place(found);
    a.unlock(Rwsem::Data, Mode::Read);
    a.emit(Instr::Jump(mapped));
    a.place(hole);
    a.lock(Rwsem::Data, Mode::Read);
    a.place(add);
    insert(a, Mode::Read);
    a.emit(Instr::Jump(out));
    a.place(failed);
    a.unlock(Rwsem::Data, Mode::Read);
    a.place(out);
}
