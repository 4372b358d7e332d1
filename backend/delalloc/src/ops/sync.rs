//! `fsync(2)` and the journal commit.

use super::Range;
use super::writepages::write_and_wait;
use crate::program::{Asm, Instr};

/// Writes the file back, waits, commits. No `i_rwsem`.
pub fn fsync(a: &mut Asm) {
    let failed = a.label();
    write_and_wait(a, Range { at: 0, len: a.geo.blocks });
    a.emit(Instr::IfErr(failed));
    commit(a);
    a.place(failed);
}

/// `jbd2_journal_commit_transaction`: closes the transaction, waits for its handles, writes the
/// log.
pub fn commit(a: &mut Asm) {
    a.emit(Instr::CommitLock);
    a.emit(Instr::CommitLog);
    a.emit(Instr::CommitDone);
}
