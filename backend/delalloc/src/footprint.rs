//! What a step reads and writes, for partial-order reduction.
//!
//! In: programs. Out: for each place in a program, the objects that the step there may touch, and
//! those that the thread may touch from there to its end. Coarse: the whole page cache is one
//! object, and so is the verdict of all invariants.
//! Must not know: states. `explorer::audit` checks the claims on sampled ones.

use explorer::Footprint;

use crate::program::{Instr, Need};
use crate::state::{Mode, Rwsem};

const ES: u128 = 1;
const DISK: u128 = 1 << 1;
const COUNTERS: u128 = 1 << 2;
const SIZES: u128 = 1 << 3;
/// Three semaphores, from here.
const LOCKS: u32 = 4;
const JOURNAL: u128 = 1 << 7;
const CACHE: u128 = 1 << 8;
const IO: u128 = 1 << 9;
const FAULTS: u128 = 1 << 10;
const SHRINKS: u128 = 1 << 11;
const DIO: u128 = 1 << 12;
const VERDICT: u128 = 1 << 13;
const DONE: u128 = 1 << 14;
/// Bitmap and leaves in memory.
const MEMORY: u128 = 1 << 15;
/// Registers of each slot, from here.
const SLOT: u32 = 16;

/// Everything that a verdict is made of: a step that writes any of it writes the verdict.
const JUDGED: u128 = ES | DISK | COUNTERS | SIZES | CACHE | IO;

fn lock(lock: Rwsem) -> u128 {
    1 << (LOCKS + lock as u32)
}

fn slot(slot: usize) -> u128 {
    1 << (SLOT + slot as u32)
}

fn touches(reads: u128, writes: u128) -> Footprint {
    let verdict = if writes & JUDGED != 0 { VERDICT } else { 0 };
    Footprint { reads, writes: writes | verdict }
}

/// What one instruction touches, its enabledness included.
#[allow(clippy::match_same_arms, reason = "grouped by kind of instruction")]
fn instruction(instr: Instr) -> Footprint {
    match instr {
        Instr::End => touches(0, DONE),
        Instr::Begin(_)
        | Instr::Jump(_)
        | Instr::IfErr(_)
        | Instr::IfErrno(..)
        | Instr::ClearErr
        | Instr::Fail(_)
        | Instr::Range(..)
        | Instr::Advance(_)
        | Instr::NextBlock(_)
        | Instr::IfMapped(_)
        | Instr::IfSatisfied(..)
        | Instr::IfWritten(_)
        | Instr::WbNext(_)
        | Instr::RefreshPath => Footprint::NOTHING,
        Instr::IfInline(_)
        | Instr::IfSizeCovers(..)
        | Instr::IfDisksizeReaches(..)
        | Instr::IfNotBeyond(..)
        | Instr::ClipToSize(_)
        | Instr::IfDisksizeBehind(_)
        | Instr::IfPunchCovers(..) => touches(SIZES, 0),
        Instr::Modified => touches(0, SIZES),
        Instr::IfUnmodified(_) => touches(SIZES, 0),
        Instr::IfNonda(_) | Instr::IfNoBlocks(_) => touches(COUNTERS, 0),
        Instr::IfBuffer(_)
        | Instr::IfCached { .. }
        | Instr::IfUptodate(_)
        | Instr::IfBuffers(_)
        | Instr::WbFind(_)
        | Instr::WbExtent(_) => touches(CACHE, 0),
        Instr::IfDisksizeCovers { .. } => touches(CACHE | SIZES, 0),
        Instr::Lock(which, _) => touches(0, lock(which)),
        Instr::Unlock(which, Mode::Write) => touches(0, lock(which) | VERDICT),
        Instr::Unlock(which, Mode::Read) => touches(0, lock(which)),
        Instr::HandleStart | Instr::HandleJoin => touches(0, JOURNAL),
        Instr::HandleStop => touches(0, JOURNAL | VERDICT),
        Instr::EsLookup { .. } | Instr::DaLookup { .. } | Instr::DaRecheck { .. } => {
            // The R bit.
            touches(0, ES)
        }
        Instr::LeafRead => touches(MEMORY, 0),
        Instr::BitmapRead => touches(MEMORY | DISK, 0),
        Instr::LeafCache { nocache: true } => Footprint::NOTHING,
        Instr::LeafCache { nocache: false } => touches(DISK, ES),
        Instr::Walk { .. } => touches(ES | DISK, 0),
        Instr::CacheFound | Instr::FindExtent => touches(DISK, ES | MEMORY),
        Instr::Allocate(need) => {
            let io = if need == Need::Lookup { 0 } else { CACHE };
            touches(FAULTS | JOURNAL, ES | DISK | COUNTERS | io)
        }
        Instr::UpdateReserve(_) | Instr::InsertAllocated(_) => touches(DISK, ES | COUNTERS),
        Instr::Reserve | Instr::InsertDelayed => touches(FAULTS | DISK, ES | COUNTERS),
        Instr::FolioCreate
        | Instr::FolioUnlock
        | Instr::BufferMap
        | Instr::BufferDelay
        | Instr::WbLock(_)
        | Instr::WbWait
        | Instr::WbFix
        | Instr::WbInvalidate
        | Instr::DropFolios { .. }
        | Instr::WaitWriteback(_)
        | Instr::Unguard
        | Instr::DioLost
        | Instr::Undecided(_) => touches(0, CACHE | SIZES),
        Instr::FolioLock | Instr::Store { .. } | Instr::StoreBehindEof(_) => {
            touches(0, SIZES | CACHE)
        }
        Instr::ZeroTail | Instr::ZeroEof => touches(SIZES, CACHE),
        Instr::Fill | Instr::Filled => touches(DISK, CACHE),
        Instr::WbSubmit { .. } | Instr::Reclaim(_) => touches(SIZES, CACHE | IO),
        Instr::WbDisksize | Instr::SetSize { .. } | Instr::PunchDisksize(_) | Instr::Orphan(_) => {
            touches(0, SIZES)
        }
        Instr::WbGiveUp | Instr::EsRemove(..) => touches(FAULTS | DISK, ES | COUNTERS),
        Instr::EndIoWait => touches(IO, DONE),
        Instr::EndIoNext(_) => touches(IO, CACHE),
        Instr::EndIoFinish => touches(0, IO | CACHE | DISK),
        Instr::RemoveLeaf { .. } => touches(FAULTS | JOURNAL, ES | DISK | COUNTERS),
        Instr::InsertHole(..) => touches(0, ES),
        Instr::Shift { .. } => touches(0, DISK | COUNTERS | SIZES | CACHE | ES),
        Instr::CutOrphan => touches(0, ES | DISK | COUNTERS | SIZES | CACHE),
        Instr::Remount => touches(0, COUNTERS),
        Instr::DioDrain => touches(DIO, 0),
        Instr::DioBegin | Instr::DioEnd => touches(0, DIO | VERDICT),
        Instr::DioWrite(_) | Instr::DioRead => touches(DISK, CACHE),
        Instr::CommitLock => touches(0, JOURNAL),
        Instr::CommitLog | Instr::CommitDone => touches(0, JOURNAL | DISK | CACHE),
        Instr::ClearEs => touches(0, ES),
        Instr::ReportHole => touches(ES, VERDICT),
        Instr::EvictWait | Instr::Evict => Footprint::EVERYTHING,
    }
}

/// Whether settling may pass the instruction without a step of its own.
fn passable(instr: Instr) -> bool {
    instr.silent()
        || matches!(
            instr,
            Instr::LeafRead
                | Instr::LeafCache { .. }
                | Instr::BitmapRead
                | Instr::UpdateReserve(_)
                | Instr::Fill
                | Instr::WbWait
                | Instr::WaitWriteback(_)
                | Instr::DioDrain
                | Instr::DropFolios { .. }
                | Instr::DioRead
        )
}

/// Footprints of one program, by instruction.
#[derive(Clone, Debug)]
pub(crate) struct Footprints {
    /// The step that starts there.
    step: Vec<Footprint>,
    /// The settling that starts there, after the device has answered.
    settle: Vec<Footprint>,
    /// Everything from there on.
    future: Vec<Footprint>,
}

impl Footprints {
    /// Analyses a program.
    pub(crate) fn of(program: &[Instr], number: usize) -> Footprints {
        let own = touches(slot(number), slot(number));
        let next: Vec<Vec<usize>> = (0..program.len()).map(|at| successors(program, at)).collect();
        let settle: Vec<_> =
            (0..program.len()).map(|at| settle_from(program, &next, at).with(own)).collect();
        let step = (0..program.len())
            .map(|at| {
                let mut all = instruction(program[at]).with(own);
                for &after in &next[at] {
                    all = all.with(settle[after]);
                    // A shared lock and the walk behind it are one step.
                    if matches!(program[at], Instr::Lock(Rwsem::Data, Mode::Read)) {
                        all = all.with(walk_from(program, &next, &settle, after));
                    }
                }
                all
            })
            .collect();
        let future = (0..program.len())
            .map(|at| {
                let reach = reachable(&next, at, |_| true);
                let all = reach.into_iter().map(|at| instruction(program[at]));
                all.fold(own, Footprint::with)
            })
            .collect();
        Footprints { step, settle, future }
    }

    /// The step of a thread that is at an instruction; `fails`: with a fault.
    pub(crate) fn step(&self, at: u16, fails: bool) -> Footprint {
        let faults = touches(0, if fails { FAULTS } else { 0 });
        self.step[usize::from(at)].with(faults)
    }

    /// The device's answer to a thread that is at an instruction.
    pub(crate) fn answer(&self, at: u16, fails: bool) -> Footprint {
        let device = Footprint {
            reads: FAULTS,
            writes: MEMORY | DISK | CACHE | VERDICT | if fails { FAULTS } else { 0 },
        };
        let at = usize::from(at);
        let settle = self.settle[at].with(device);
        // What takes the answer of a read is passed over if the read fails.
        if fails { settle.with(self.settle[at + 1]) } else { settle }
    }

    /// Everything that a thread at an instruction may still do.
    pub(crate) fn future(&self, at: u16) -> Footprint {
        self.future[usize::from(at)].with(touches(0, FAULTS))
    }
}

/// The end of a data write of writeback.
pub(crate) fn io_done(fails: bool) -> Footprint {
    Footprint {
        reads: FAULTS,
        writes: IO | CACHE | DISK | VERDICT | if fails { FAULTS } else { 0 },
    }
}

/// The shrinker's step.
pub(crate) fn shrink() -> Footprint {
    Footprint { reads: DONE, writes: ES | SHRINKS | VERDICT }
}

fn successors(program: &[Instr], at: usize) -> Vec<usize> {
    let mut instr = program[at];
    let mut next = Vec::new();
    instr.each_target(|to| next.push(usize::from(*to)));
    let falls_through = !matches!(instr, Instr::End | Instr::Jump(_));
    if falls_through && at + 1 < program.len() {
        next.push(at + 1);
        // LeafRead and Fill skip what would take the device's answer.
        if matches!(instr, Instr::LeafRead | Instr::Fill) && at + 2 < program.len() {
            next.push(at + 2);
        }
    }
    next
}

fn reachable(next: &[Vec<usize>], from: usize, through: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut seen = vec![false; next.len()];
    let mut todo = vec![from];
    let mut all = Vec::new();
    while let Some(at) = todo.pop() {
        if std::mem::replace(&mut seen[at], true) {
            continue;
        }
        all.push(at);
        if through(at) {
            todo.extend(&next[at]);
        }
    }
    all
}

/// The instructions that settling may run from `at`, and the look at the one where it stops.
fn settle_from(program: &[Instr], next: &[Vec<usize>], at: usize) -> Footprint {
    reachable(next, at, |at| passable(program[at]))
        .into_iter()
        .filter(|&at| passable(program[at]) || matches!(program[at], Instr::End | Instr::EndIoWait))
        .map(|at| instruction(program[at]))
        .fold(Footprint::NOTHING, Footprint::with)
}

fn walk_from(program: &[Instr], next: &[Vec<usize>], settle: &[Footprint], at: usize) -> Footprint {
    reachable(next, at, |at| passable(program[at]))
        .into_iter()
        .filter(|&at| matches!(program[at], Instr::Walk { .. }))
        .flat_map(|at| {
            let behind = next[at].iter().map(|&after| settle[after]);
            behind.chain([instruction(program[at])])
        })
        .fold(Footprint::NOTHING, Footprint::with)
}
