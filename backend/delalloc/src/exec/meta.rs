//! Control flow, sizes, handles, the journal, direct I/O.

use super::{Engine, Flow};
use crate::geometry::{Set, each, span};
use crate::invariant::Invariant;
use crate::kernel::Flag;
use crate::state::{ANY, Content, Errno, Locks, Map, Mode, Rwsem, STALE, State, Thread, Wait};

#[inline]
pub(super) fn jump_if(condition: bool, to: u16) -> Flow {
    if condition { Flow::Goto(to) } else { Flow::Next }
}

#[inline]
pub(super) fn clear_errno(state: &mut State, slot: usize) -> Flow {
    fail(state, slot, Errno::Ok)
}

/// An operation starts, or the last one is over: registers that nobody reads any more are
/// cleared, so that they do not tell states apart.
pub(super) fn begin(state: &mut State, slot: usize) -> Flow {
    let t = &mut state.threads[slot];
    *t = Thread { pc: t.pc, held: t.held, folios: t.folios, guard: t.guard, ..Thread::default() };
    Flow::Next
}

#[inline]
pub(super) fn fail(state: &mut State, slot: usize, errno: Errno) -> Flow {
    state.threads[slot].errno = errno;
    Flow::Next
}

#[inline]
pub(super) fn range(state: &mut State, slot: usize, first: u8, end: u8) -> Flow {
    let t = &mut state.threads[slot];
    t.cur = first;
    t.end = end;
    t.map = Map::default();
    Flow::Next
}

#[inline]
pub(super) fn advance(state: &mut State, slot: usize, to: u16) -> Flow {
    let t = &mut state.threads[slot];
    t.cur = t.map.end.max(t.cur + 1);
    jump_if(t.cur < t.end, to)
}

#[inline]
pub(super) fn next_block(state: &mut State, slot: usize, to: u16) -> Flow {
    let t = &mut state.threads[slot];
    t.cur += 1;
    jump_if(t.cur < t.end, to)
}

/// The thread waits for the device; the instruction behind runs when it has answered.
#[inline]
pub(super) fn issue(state: &mut State, slot: usize, wait: Wait) -> Flow {
    state.threads[slot].wait = wait;
    Flow::Next
}

#[inline]
pub(super) fn unlock(state: &mut State, slot: usize, lock: Rwsem, mode: Mode) -> Flow {
    let bit = Locks::held_bit(lock, mode);
    if state.threads[slot].held & bit != 0 {
        state.threads[slot].held &= !bit;
        state.locks.release(lock, mode);
    }
    Flow::Next
}

#[inline]
pub(super) fn handle_start(state: &mut State, slot: usize) -> Flow {
    state.threads[slot].held |= Locks::HANDLE;
    state.locks.handles += 1;
    Flow::Next
}

#[inline]
pub(super) fn handle_stop(state: &mut State, slot: usize) -> Flow {
    let t = &mut state.threads[slot];
    if t.held & Locks::HANDLE != 0 {
        t.held &= !Locks::HANDLE;
        state.locks.handles -= 1;
    }
    Flow::Next
}

/// `ext4_nonda_switch`, without the watermark of the per-CPU counters.
#[inline]
pub(super) fn nonda(state: &State) -> bool {
    !state.fs.delalloc || 2 * i16::from(state.fs.free) < 3 * i16::from(state.fs.dirty)
}

/// `file_modified`.
#[inline]
pub(super) fn modified(state: &mut State) -> Flow {
    state.inode.nosec = true;
    Flow::Next
}

pub(super) fn set_size(state: &mut State, size: u32, disksize: bool, grow: bool) -> Flow {
    let inode = &mut state.inode;
    if !grow || size > inode.i_size {
        inode.i_size = size;
    }
    if disksize && (!grow || size > inode.i_disksize) {
        inode.i_disksize = size;
    }
    Flow::Next
}

pub(super) fn punch_disksize(state: &mut State, to: u32) -> Flow {
    state.inode.i_disksize = to.min(state.inode.i_size).max(state.inode.i_disksize);
    Flow::Next
}

pub(super) fn orphan(state: &mut State, on: bool) -> Flow {
    state.inode.orphan = on;
    Flow::Next
}

#[inline]
pub(super) fn dio_begin(state: &mut State, slot: usize) -> Flow {
    state.threads[slot].held |= Locks::DIO;
    state.inode.dio += 1;
    Flow::Next
}

#[inline]
pub(super) fn dio_end(state: &mut State, slot: usize) -> Flow {
    let t = &mut state.threads[slot];
    if t.held & Locks::DIO != 0 {
        t.held &= !Locks::DIO;
        state.inode.dio -= 1;
    }
    Flow::Next
}

/// Something has failed half way: the user is told, and anything may be read.
pub(super) fn undecided(state: &mut State, blocks: Set) -> Flow {
    state.want.fill(blocks, ANY);
    Flow::Next
}

pub(super) fn commit_lock(state: &mut State) -> Flow {
    state.fs.locked = true;
    Flow::Next
}

/// The last handle is gone: new ones may start, ordered data and the log are written.
pub(super) fn commit_log(state: &mut State, slot: usize) -> Flow {
    state.fs.locked = false;
    state.fs.shadow = state.fs.bitmap_in_tx;
    state.fs.bitmap_in_tx = false;
    for block in each(state.cache.ordered & state.disk.mapped & state.cache.mapped) {
        let data = state.cache.data.get(block);
        state.disk.set_media(state.disk.pblk[usize::from(block)], data);
    }
    state.cache.ordered = 0;
    issue(state, slot, Wait::Log)
}

pub(super) fn commit_done(state: &mut State) -> Flow {
    state.fs.shadow = false;
    state.disk.commit();
    Flow::Next
}

/// Nobody else uses the inode any more.
pub(super) fn evict_wait(state: &mut State) -> Flow {
    state.inode.gone = true;
    Flow::Next
}

impl Engine {
    /// `ext4_update_disksize_before_punch`: whether `i_disksize` needs no move.
    pub(super) fn if_punch_covers(&self, state: &State, from: u32, to: u32, skip: u16) -> Flow {
        let (size, disksize) = (state.inode.i_size, state.inode.i_disksize);
        let covered = if self.has(Flag::PunchDisksize) {
            from > size || disksize >= to.min(size)
        } else {
            from > size || to < size || disksize >= size
        };
        jump_if(covered, skip)
    }

    pub(super) fn remount(&self, state: &mut State, slot: usize) -> Flow {
        if self.has(Flag::RemountRefused) {
            return fail(state, slot, Errno::Einval);
        }
        state.fs.delalloc = false;
        Flow::Next
    }

    /// The write goes to the device; the user's data is decided from here on.
    pub(super) fn dio_write(&self, state: &mut State, slot: usize, content: Content) -> Flow {
        let t = &mut state.threads[slot];
        t.aside = span(t.cur, t.map.end);
        let dirty = self.geo.blocks_of(state.cache.dirty);
        state.want.fill(t.aside & !dirty, content);
        state.want.fill(t.aside & dirty, ANY);
        issue(state, slot, Wait::DirectWrite)
    }

    pub(super) fn evict(&self, state: &mut State) -> Flow {
        let inode = &state.inode;
        if inode.reserved != 0 || state.es.pending != 0 {
            state.break_rule(Invariant::C1, 0);
        } else if state.disk.mapped != 0 {
            state.break_rule(Invariant::C3, state.disk.mapped.trailing_zeros() as u8);
        } else if inode.dio != 0 || state.io.iter().any(|io| io.blocks != 0) {
            state.break_rule(Invariant::C2, 0);
        }
        Flow::Next
    }
}

impl State {
    /// Notes a broken rule, unless one was noted in the same step already.
    #[inline]
    pub(crate) fn break_rule(&mut self, invariant: Invariant, block: u8) {
        if self.broken.invariant == 0 {
            self.broken.invariant = invariant as u8 + 1;
            self.broken.block = block;
        }
    }

    /// A user sees the data of a physical block.
    #[inline]
    pub(crate) fn expose(&mut self, block: u8, pblk: u8) -> Content {
        let content = self.disk.media(pblk);
        if content == STALE {
            self.break_rule(Invariant::D3, block);
        }
        content
    }
}
