//! What may go wrong: failures that a search may inject where the kernel can meet them.
//!
//! In: nothing. Out: [`Fault`], by name in scenarios and by number in choices of steps.
//! Must not know: where each can happen (that is the machine's).

/// What may be made to fail, or happen without the threads' doing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Fault {
    /// An allocation finds no space (transient for writeback).
    AllocEnospc = 1,
    /// An allocation finds no memory (transient for writeback).
    AllocEnomem,
    /// An allocation meets a broken block (fatal for writeback).
    AllocEio,
    /// Splitting an unwritten extent finds no memory for a tree block.
    SplitEnomem,
    /// Splitting an unwritten extent finds no space for a tree block.
    SplitEnospc,
    /// The second half of a three-way split fails after the first has zeroed its tail.
    SplitSecond,
    /// No memory for an extent status entry.
    EsEnomem,
    /// No memory for a pending cluster.
    PendingEnomem,
    /// The device fails a data write.
    WriteEio,
    /// The device fails a read: of data, of a leaf that is looked up, of the bitmap that an
    /// allocation needs. (Where blocks are removed a failed read is an error of the whole file
    /// system, and so is a failed write of the log: not modelled.)
    ReadEio,
    /// A handle cannot be extended: `i_data_sem` is dropped between leaves.
    Restart,
}

impl Fault {
    /// Every fault, in order of number.
    pub const ALL: [Fault; 11] = [
        Fault::AllocEnospc,
        Fault::AllocEnomem,
        Fault::AllocEio,
        Fault::SplitEnomem,
        Fault::SplitEnospc,
        Fault::SplitSecond,
        Fault::EsEnomem,
        Fault::PendingEnomem,
        Fault::WriteEio,
        Fault::ReadEio,
        Fault::Restart,
    ];

    /// The fault that a choice of a step stands for; 0 is none.
    pub fn of_choice(choice: u8) -> Option<Fault> {
        Fault::ALL.get(usize::from(choice).checked_sub(1)?).copied()
    }

    pub(super) const fn bit(self) -> u16 {
        1 << self as u8
    }
}
