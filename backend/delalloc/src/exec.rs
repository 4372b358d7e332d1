//! The machine: runs one instruction of one thread on a state.
//!
//! In: a state, a thread (or the device, or the shrinker) and a choice. Out: the next state.
//! A step is one instruction that is not silent, then the silent ones behind it. What a step may
//! do is decided by [`Engine::enabled`], what it does by [`Engine::apply`]; neither allocates.
//! Must not know: invariants that are judged on whole states, text, the search.

#![allow(clippy::unused_self, reason = "instructions share one calling convention")]

use crate::footprint::{self, Footprints};
use crate::geometry::Geometry;
use crate::kernel::{Flag, Kernel};
use crate::program::{Asm, Instr};
use crate::state::{Locks, Mode, Rwsem, SLOTS, State, Wait};

mod alloc;
mod cache;
mod device;
mod fault;
mod free;
mod map;
mod meta;
mod reserve;
mod step;
mod writeback;

pub use device::{DEVICE_FAILS, DEVICE_IO};
pub use fault::Fault;

/// How a thread goes on after an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flow {
    Next,
    Goto(u16),
    Stay,
}

/// Programs of all threads for one kernel and geometry.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(crate) kernel: Kernel,
    pub(crate) geo: Geometry,
    pub(crate) programs: Vec<Vec<Instr>>,
    footprints: Vec<Footprints>,
    /// Threads of users; the worker's slot comes behind them.
    pub(crate) users: usize,
    faults: u16,
}

impl Engine {
    /// An engine whose thread n runs the operations emitted by `emit(n)`, and the end-of-I/O
    /// worker behind them. At most three users.
    pub fn new(
        kernel: Kernel,
        geo: Geometry,
        users: usize,
        faults: &[Fault],
        emit: impl Fn(usize, &mut Asm),
    ) -> Engine {
        let mut engine = Engine::unanalysed(kernel, geo, users, faults, emit);
        let programs = engine.programs.iter().enumerate();
        engine.footprints = programs.map(|(slot, program)| Footprints::of(program, slot)).collect();
        engine
    }

    /// An engine that cannot say what its steps touch: nobody asks where operations run one by
    /// one, and the analysis takes longer than they do.
    pub(crate) fn unanalysed(
        kernel: Kernel,
        geo: Geometry,
        users: usize,
        faults: &[Fault],
        emit: impl Fn(usize, &mut Asm),
    ) -> Engine {
        let users = users.min(SLOTS - 1);
        let assemble = |fill: &dyn Fn(&mut Asm)| {
            let mut asm = Asm::new(&kernel, &geo);
            fill(&mut asm);
            asm.finish()
        };
        let mut programs: Vec<_> =
            (0..users).map(|user| assemble(&|asm| emit(user, asm))).collect();
        programs.push(assemble(&crate::ops::writepages::end_io_worker));
        Engine {
            kernel,
            geo,
            programs,
            footprints: Vec::new(),
            users,
            faults: faults.iter().fold(0, |set, fault| set | fault.bit()),
        }
    }

    /// The kernel.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Sizes and options.
    pub fn geometry(&self) -> &Geometry {
        &self.geo
    }

    /// The end-of-I/O worker's thread number.
    pub fn worker(&self) -> usize {
        self.users
    }

    /// The device's thread number: it has no registers.
    pub fn device(&self) -> usize {
        self.users + 1
    }

    /// The shrinker's thread number: it has no registers.
    pub fn shrinker(&self) -> usize {
        self.users + 2
    }

    /// Threads, device and shrinker included.
    pub fn actors(&self) -> usize {
        self.users + 3
    }

    #[inline]
    pub(crate) fn has(&self, flag: Flag) -> bool {
        self.kernel.has(flag)
    }

    /// What a step touches.
    pub fn footprint(&self, state: &State, thread: u8, choice: u8) -> explorer::Footprint {
        let slot = usize::from(thread);
        if slot < self.programs.len() {
            return self.footprints[slot].step(state.threads[slot].pc, choice != 0);
        }
        if slot == self.shrinker() {
            return footprint::shrink();
        }
        let fails = choice & DEVICE_FAILS != 0;
        if choice & DEVICE_IO != 0 {
            return footprint::io_done(fails);
        }
        let asker = usize::from(choice & 15);
        self.footprints[asker].answer(state.threads[asker].pc, fails)
    }

    /// What a thread may still touch.
    pub fn future(&self, state: &State, thread: u8) -> explorer::Footprint {
        let slot = usize::from(thread);
        if slot < self.programs.len() {
            return self.footprints[slot].future(state.threads[slot].pc);
        }
        if slot == self.shrinker() && state.fs.shrinks == 0 {
            return explorer::Footprint::NOTHING;
        }
        explorer::Footprint::EVERYTHING
    }

    /// Which operation of its own a thread is in or about to start, from 0; none when all are over.
    pub fn operation(&self, state: &State, slot: usize) -> Option<u8> {
        let done = &self.programs[slot][..usize::from(state.threads[slot].pc)];
        // The operations of a thread lie one behind the other.
        let begun = done.iter().rev().find_map(|instr| match instr {
            Instr::Begin(number) => Some(*number),
            _ => None,
        });
        begun.filter(|number| *number != u8::MAX)
    }

    /// The instruction at which a thread is.
    #[inline]
    pub fn at(&self, state: &State, slot: usize) -> Instr {
        self.programs[slot][usize::from(state.threads[slot].pc)]
    }

    /// Whether a user's thread has nothing left to do.
    #[inline]
    pub fn done(&self, state: &State, slot: usize) -> bool {
        matches!(self.at(state, slot), Instr::End)
    }

    /// Whether all users are done.
    #[inline]
    pub fn users_done(&self, state: &State) -> bool {
        (0..self.users).all(|slot| self.done(state, slot))
    }

    /// Brings every thread to its first instruction that is not silent.
    pub fn settle_all(&self, state: &mut State) {
        for slot in 0..self.programs.len() {
            self.settle(state, slot);
        }
    }

    #[allow(clippy::too_many_lines, reason = "one line an instruction")]
    #[inline(never)] // With this in it, the loop around it keeps nothing in registers.
    fn exec(&self, state: &mut State, slot: usize, instr: Instr, fault: Option<Fault>) -> Flow {
        match instr {
            Instr::End => Flow::Stay,
            Instr::Begin(_) => meta::begin(state, slot),
            Instr::ClearErr => meta::clear_errno(state, slot),
            Instr::Fail(errno) => meta::fail(state, slot, errno),
            Instr::Jump(to) => Flow::Goto(to),
            Instr::IfErr(to) => meta::jump_if(state.threads[slot].errno as u8 != 0, to),
            Instr::IfErrno(errno, to) => meta::jump_if(state.threads[slot].errno == errno, to),
            Instr::Range(first, end) => meta::range(state, slot, first, end),
            Instr::Advance(to) => meta::advance(state, slot, to),
            Instr::NextBlock(to) => meta::next_block(state, slot, to),
            Instr::IfMapped(to) => meta::jump_if(state.threads[slot].map.pblk != 0, to),
            Instr::IfSatisfied(need, to) => {
                meta::jump_if(map::satisfied(state.threads[slot].map, need), to)
            }
            Instr::IfBuffer(to) => {
                let block = state.threads[slot].cur;
                meta::jump_if(state.cache.mapped & (1 << block) != 0, to)
            }
            Instr::IfInline(to) => meta::jump_if(state.inode.inline_data, to),
            Instr::IfSizeCovers(size, to) => meta::jump_if(state.inode.i_size >= size, to),
            Instr::IfDisksizeReaches(size, to) => meta::jump_if(state.inode.i_disksize >= size, to),
            Instr::Modified => meta::modified(state),
            Instr::IfUnmodified(to) => meta::jump_if(!state.inode.nosec, to),
            Instr::IfNotBeyond(size, to) => meta::jump_if(state.inode.i_size <= size, to),
            Instr::IfNoBlocks(to) => meta::jump_if(state.inode.i_blocks == 0, to),
            Instr::Lock(lock, mode) => self.lock(state, slot, lock, mode),
            Instr::Unlock(lock, mode) => meta::unlock(state, slot, lock, mode),
            Instr::HandleStart | Instr::HandleJoin => meta::handle_start(state, slot),
            Instr::HandleStop => meta::handle_stop(state, slot),
            Instr::IfNonda(to) => meta::jump_if(meta::nonda(state), to),
            Instr::EsLookup { need, hit, gap } => self.es_lookup(state, slot, need, hit, gap),
            Instr::LeafRead => meta::issue(state, slot, Wait::Leaf),
            Instr::LeafCache { .. } => self.leaf_cache(state, slot),
            Instr::Walk { untrimmed } => self.walk(state, slot, untrimmed),
            Instr::FindExtent => {
                self.find_extent(state);
                Flow::Next
            }
            Instr::CacheFound => self.cache_found(state, slot),
            Instr::BitmapRead => meta::issue(state, slot, Wait::Bitmap),
            Instr::Allocate(need) => self.allocate(state, slot, need, fault),
            Instr::UpdateReserve(need) => self.update_reserve(state, slot, need),
            Instr::InsertAllocated(need) => self.insert_allocated(state, slot, need),
            Instr::DaLookup { delayed, mapped, hole }
            | Instr::DaRecheck { delayed, mapped, hole } => {
                self.da_lookup(state, slot, [delayed, mapped, hole])
            }
            Instr::Reserve => self.reserve(state, slot),
            Instr::InsertDelayed => self.insert_delayed(state, slot, fault),
            Instr::FolioCreate => self.folio_create(state, slot),
            Instr::FolioLock => self.folio_lock(state, slot),
            Instr::FolioUnlock => cache::folio_unlock(state, slot),
            Instr::BufferMap => cache::buffer_map(state, slot),
            Instr::BufferDelay => cache::buffer_delay(state, slot),
            Instr::Fill => meta::issue(state, slot, Wait::Data),
            Instr::Filled => self.filled(state, slot),
            Instr::ClipToSize(to) => self.clip_to_size(state, slot, to),
            Instr::ZeroTail => self.zero_tail(state, slot),
            Instr::IfCached { needed, skip } => self.if_cached(state, slot, needed, skip),
            Instr::IfBuffers(to) => {
                let blocks = self.geo.folio_blocks(self.geo.folio(state.threads[slot].cur));
                let buffers = state.cache.uptodate | state.cache.mapped;
                meta::jump_if(buffers & blocks != 0, to)
            }
            Instr::IfUptodate(to) => {
                let block = state.threads[slot].cur;
                meta::jump_if(state.cache.uptodate & (1 << block) != 0, to)
            }
            Instr::Store { first, end, content, size } => {
                self.store(state, slot, first..end, content, size)
            }
            Instr::StoreBehindEof(block) => self.store_behind_eof(state, slot, block),
            Instr::ZeroEof => self.zero_eof(state),
            Instr::IfDisksizeCovers { size, last, skip } => {
                cache::if_disksize_covers(state, size, last, skip)
            }
            Instr::DropFolios { blocks, why } => self.drop_folios(state, slot, blocks, why),
            Instr::Unguard => cache::unguard(state, slot),
            Instr::WaitWriteback(_) | Instr::WbWait | Instr::DioDrain => Flow::Next,
            Instr::WbFind(none) => self.wb_find(state, slot, none),
            Instr::WbLock(clean) => self.wb_lock(state, slot, clean),
            Instr::WbExtent(none) => self.wb_extent(state, slot, none),
            Instr::WbFix => writeback::fix(state, slot),
            Instr::IfWritten(to) => writeback::if_written(state, slot, to),
            Instr::WbSubmit { partial } => self.wb_submit(state, slot, partial),
            Instr::WbNext(to) => writeback::next_folio(state, slot, to),
            Instr::IfDisksizeBehind(to) => self.if_disksize_behind(state, slot, to),
            Instr::WbDisksize => self.wb_disksize(state, slot),
            Instr::WbGiveUp => self.wb_give_up(state, slot),
            Instr::WbInvalidate => self.wb_invalidate(state, slot),
            Instr::EndIoWait => writeback::end_io_wait(state, slot),
            Instr::EndIoNext(none) => self.end_io_next(state, slot, none),
            Instr::EndIoFinish => self.end_io_finish(state, slot),
            Instr::SetSize { size, disksize, grow } => meta::set_size(state, size, disksize, grow),
            Instr::IfPunchCovers(from, to, skip) => self.if_punch_covers(state, from, to, skip),
            Instr::PunchDisksize(to) => meta::punch_disksize(state, to),
            Instr::EsRemove(first, end) => self.es_remove_step(state, slot, first, end, fault),
            Instr::RemoveLeaf { first, end, restart, .. } => {
                self.remove_leaf(state, slot, first, end, fault.map(|_| restart))
            }
            Instr::RefreshPath => self.refresh_path(state, slot),
            Instr::InsertHole(first, end) => self.insert_hole(state, first, end),
            Instr::Shift { first, by } => self.shift(state, first, by),
            Instr::Orphan(on) => meta::orphan(state, on),
            Instr::CutOrphan => self.cut_orphan(state),
            Instr::Remount => self.remount(state, slot),
            Instr::DioLost => meta::undecided(state, state.threads[slot].aside),
            Instr::Undecided(blocks) => meta::undecided(state, blocks),
            Instr::DioBegin => meta::dio_begin(state, slot),
            Instr::DioEnd => meta::dio_end(state, slot),
            Instr::DioWrite(content) => self.dio_write(state, slot, content),
            Instr::DioRead => meta::issue(state, slot, Wait::DirectRead),
            Instr::CommitLock => meta::commit_lock(state),
            Instr::CommitLog => meta::commit_log(state, slot),
            Instr::CommitDone => meta::commit_done(state),
            Instr::ClearEs => self.clear_es(state),
            Instr::ReportHole => self.report_hole(state, slot),
            Instr::Reclaim(folio) => self.reclaim(state, folio),
            Instr::EvictWait => meta::evict_wait(state),
            Instr::Evict => self.evict(state),
        }
    }

    #[inline]
    fn lock(&self, state: &mut State, slot: usize, lock: Rwsem, mode: Mode) -> Flow {
        if state.locks.acquire(lock, mode, slot, self.geo.fair) {
            state.threads[slot].held |= Locks::held_bit(lock, mode);
            Flow::Next
        } else {
            Flow::Stay
        }
    }
}
