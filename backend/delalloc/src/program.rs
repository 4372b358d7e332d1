//! Programs: what a thread does, as a list of atomic instructions.
//!
//! In: the operations of `ops`, which emit instructions for one kernel. Out: [`Instr`]s with
//! resolved jumps.
//! An instruction is one lock operation, one extent-status operation, one tree operation, one
//! counter update or one device request. Lock releases and thread-local bookkeeping are *silent*:
//! they run in the same step as what precedes them (a release moves to the left of other threads'
//! steps without being noticed, so no outcome is lost).
//! Must not know: how instructions change a state.

use crate::geometry::Geometry;
use crate::kernel::{Flag, Kernel};
use crate::state::{Mode, Rwsem};

mod instr;

pub use instr::Instr;

/// A place in a program: a label while it is assembled, then an instruction number.
pub type Label = u16;

/// What `ext4_map_blocks` is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Need {
    /// Look only.
    Lookup,
    /// Unwritten blocks (fallocate).
    Unwritten,
    /// Unwritten blocks, written ones converted (zero range).
    ToUnwritten,
    /// Written blocks (a write without delayed allocation).
    Written,
    /// Writeback: written blocks, or unwritten ones with dioread_nolock.
    Writeback,
    /// Direct write: unwritten blocks, split off before the write.
    Direct,
    /// After a write: unwritten blocks become written.
    Convert,
}

/// Why folios leave the page cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Drop {
    /// The blocks will be removed or zeroed, and read as zeroes from now on; the folios must stay
    /// away until that is done.
    Remove,
    /// The blocks will move; the folios must stay away until that is done.
    Move,
    /// A direct write comes: dirty folios are a reason to fail.
    Before,
    /// A direct write has come: dirty folios stay.
    After,
}

/// Assembles one thread's program.
pub struct Asm<'a> {
    /// The kernel to assemble for.
    pub kernel: &'a Kernel,
    /// Sizes and options.
    pub geo: &'a Geometry,
    code: Vec<Instr>,
    labels: Vec<Option<u16>>,
}

impl<'a> Asm<'a> {
    /// An empty program.
    pub fn new(kernel: &'a Kernel, geo: &'a Geometry) -> Asm<'a> {
        Asm { kernel, geo, code: Vec::new(), labels: Vec::new() }
    }

    /// Whether the kernel has a flag.
    pub fn has(&self, flag: Flag) -> bool {
        self.kernel.has(flag)
    }

    /// Adds an instruction.
    pub fn emit(&mut self, instr: Instr) {
        self.code.push(instr);
    }

    /// Takes a semaphore.
    pub fn lock(&mut self, lock: Rwsem, mode: Mode) {
        self.emit(Instr::Lock(lock, mode));
    }

    /// Gives a semaphore back.
    pub fn unlock(&mut self, lock: Rwsem, mode: Mode) {
        self.emit(Instr::Unlock(lock, mode));
    }

    /// `file_modified`, where a later step of the kernel looks at what it notes.
    pub fn modified(&mut self) {
        if !self.has(Flag::DioLooksFirst) {
            self.emit(Instr::Modified);
        }
    }

    /// The bytes behind the old end of a file that has just grown.
    pub fn zero_eof(&mut self) {
        if self.has(Flag::EofZeroed) {
            self.emit(Instr::ZeroEof);
        }
    }

    /// A label to jump to, not placed yet.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        (self.labels.len() - 1) as Label
    }

    /// Places a label here.
    pub fn place(&mut self, label: Label) {
        self.labels[usize::from(label)] = Some(self.code.len() as u16);
    }

    /// A label placed here.
    pub fn here(&mut self) -> Label {
        let label = self.label();
        self.place(label);
        label
    }

    /// The program, with its jumps resolved and an end.
    pub fn finish(mut self) -> Vec<Instr> {
        self.emit(Instr::End);
        let last = (self.code.len() - 1) as u16;
        for instr in &mut self.code {
            instr.each_target(|label| *label = self.labels[usize::from(*label)].unwrap_or(last));
        }
        self.code
    }
}
