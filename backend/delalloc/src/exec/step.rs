//! Steps: which are possible in a state, and what belongs to one.
//!
//! In: a state, an actor and a choice. Out: the steps possible; the state after one.
//! Must not know: what instructions do.

use super::{DEVICE_FAILS, DEVICE_IO, Engine, Fault, Flow, free};
use crate::geometry::each;
use crate::kernel::Flag;
use crate::program::Instr;
use crate::state::{IoState, Mode, Rwsem, State, Wait};

impl Engine {
    /// Calls `f` with each step possible: thread and choice. A choice of a user's thread is a
    /// fault's number or 0; of the device, which request and how it ends; of the shrinker, which
    /// entry.
    #[inline]
    pub fn enabled(&self, state: &State, mut f: impl FnMut(u8, u8)) {
        let mut waiting = 0_u8;
        for (slot, (program, t)) in self.programs.iter().zip(&state.threads).enumerate() {
            if t.wait != Wait::None {
                waiting |= 1 << slot;
                continue;
            }
            let instr = program[usize::from(t.pc)];
            if self.unblocked(state, slot, instr) {
                f(slot as u8, 0);
                if state.fs.faults != 0 && self.faults != 0 {
                    for fault in Fault::ALL {
                        if self.faults & fault.bit() != 0
                            && self.can_fail(state, slot, instr, fault)
                        {
                            f(slot as u8, fault as u8);
                        }
                    }
                }
            }
        }
        let device = self.device() as u8;
        let injects = |fault: Fault| state.fs.faults != 0 && self.faults & fault.bit() != 0;
        let (write_fails, read_fails) = (injects(Fault::WriteEio), injects(Fault::ReadEio));
        while waiting != 0 {
            let slot = waiting.trailing_zeros() as u8;
            waiting &= waiting - 1;
            f(device, slot);
            let t = &state.threads[usize::from(slot)];
            let fails = match t.wait {
                Wait::None | Wait::Log => false,
                Wait::DirectWrite => write_fails,
                Wait::Data | Wait::DirectRead => read_fails,
                Wait::Bitmap | Wait::Leaf => {
                    read_fails && self.read_can_fail(usize::from(slot), t.pc)
                }
            };
            if fails {
                f(device, slot | DEVICE_FAILS);
            }
        }
        for (index, io) in state.io.iter().enumerate() {
            if io.state == IoState::AtDevice {
                f(device, index as u8 | DEVICE_IO);
                if write_fails {
                    f(device, index as u8 | DEVICE_IO | DEVICE_FAILS);
                }
            }
        }
        if state.fs.shrinks != 0 && !self.users_done(state) {
            for block in each(state.es.present() & !state.es.delayed) {
                if state.es.entry_start(block) == block {
                    f(self.shrinker() as u8, block);
                }
            }
        }
    }

    /// Takes a step that [`Engine::enabled`] has named.
    #[inline]
    pub fn apply(&self, state: &mut State, thread: u8, choice: u8) {
        let slot = usize::from(thread);
        if slot < self.programs.len() {
            let fault = Fault::of_choice(choice);
            if fault.is_some() {
                state.fs.faults -= 1;
            }
            self.run(state, slot, true, fault);
        } else if slot == self.device() {
            self.complete(state, choice);
        } else {
            self.shrink(state, choice);
        }
    }

    /// Runs the silent instructions at which a thread is, and passes those that have nothing to
    /// do.
    pub(super) fn settle(&self, state: &mut State, slot: usize) {
        self.run(state, slot, false, None);
    }

    /// Runs the instruction at which a thread is if it is to take a `step`, then those at which it
    /// does not stop.
    fn run(&self, state: &mut State, slot: usize, mut step: bool, mut fault: Option<Fault>) {
        let mut instr = self.at(state, slot);
        // Taking i_data_sem shared moves to the right of other threads' steps, so the walk behind
        // it belongs to the same step.
        let mut walks = step && matches!(instr, Instr::Lock(Rwsem::Data, Mode::Read));
        loop {
            if step || instr.silent() {
                step = false;
                let flow = self.exec(state, slot, instr, fault.take());
                let t = &mut state.threads[slot];
                match flow {
                    Flow::Next => t.pc += 1,
                    Flow::Goto(to) => t.pc = to,
                    Flow::Stay => {}
                }
                if t.wait != Wait::None {
                    return;
                }
            } else if let Some(instructions) = self.passes(state, slot, instr) {
                state.threads[slot].pc += instructions;
            } else if walks && matches!(instr, Instr::Walk { .. }) {
                walks = false;
                step = true;
                continue;
            } else {
                return;
            }
            instr = self.at(state, slot);
        }
    }

    /// How many instructions to skip if the one at hand has nothing to do.
    #[inline]
    fn passes(&self, state: &mut State, slot: usize, instr: Instr) -> Option<u16> {
        let t = &state.threads[slot];
        match instr {
            Instr::LeafRead => self.leaf_in_memory(state, t.cur).then_some(2),
            Instr::LeafCache { nocache } => nocache.then_some(1),
            Instr::BitmapRead => (state.fs.bitmap || !self.needs_bitmap(state, slot)).then_some(1),
            Instr::UpdateReserve(need) => (self.reserve_used(state, slot, need) == 0).then_some(1),
            Instr::Fill => self.fill_without_device(state, slot).then_some(2),
            Instr::WbWait => (state.cache.writeback & (1 << t.wb) == 0).then_some(1),
            Instr::WaitWriteback(blocks) => {
                (state.cache.writeback & self.geo.folios_of(blocks) == 0).then_some(1)
            }
            Instr::DioDrain => (state.inode.dio == 0).then_some(1),
            Instr::DropFolios { blocks, why } => {
                if state.cache.present & self.geo.folios_of(blocks) != 0 {
                    return None;
                }
                self.dropped(state, slot, blocks, why);
                Some(1)
            }
            Instr::DioRead => {
                (t.map.pblk == 0 || t.map.has(crate::state::Map::UNWRITTEN)).then_some(1)
            }
            _ => None,
        }
    }

    /// Whether the thread can take its instruction now.
    #[inline]
    fn unblocked(&self, state: &State, slot: usize, instr: Instr) -> bool {
        let t = &state.threads[slot];
        match instr {
            Instr::End => false,
            Instr::Lock(lock, mode) => state.locks.can_step(lock, mode, slot, self.geo.fair),
            Instr::HandleStart | Instr::CommitLock => !state.fs.locked,
            Instr::CommitLog => state.locks.handles == 0,
            Instr::Allocate(_) | Instr::RemoveLeaf { .. } => {
                !state.fs.shadow || !self.changes_bitmap(state, slot, instr)
            }
            Instr::FolioCreate | Instr::FolioLock => {
                state.cache.locked & (1 << self.geo.folio(t.cur)) == 0
            }
            Instr::WbLock(_) => state.cache.locked & (1 << t.wb) == 0,
            Instr::WbWait => state.cache.writeback & (1 << t.wb) == 0,
            Instr::WaitWriteback(blocks) => state.cache.writeback & self.geo.folios_of(blocks) == 0,
            Instr::DioDrain => state.inode.dio == 0,
            Instr::WbSubmit { .. } => self.can_submit(state),
            Instr::DropFolios { blocks, .. } => self.can_drop(state, blocks),
            Instr::EndIoWait => {
                state.io.iter().any(|io| matches!(io.state, IoState::ToConvert | IoState::Failed))
            }
            Instr::EvictWait => {
                (0..self.users).all(|other| other == slot || self.done(state, other))
                    && state.io.iter().all(|io| io.state == IoState::Idle)
                    && matches!(self.at(state, self.worker()), Instr::EndIoWait)
            }
            _ => true,
        }
    }

    /// Whether an instruction has a way to fail by this fault.
    fn can_fail(&self, state: &State, slot: usize, instr: Instr, fault: Fault) -> bool {
        match (instr, fault) {
            (Instr::Allocate(need), _) => self.allocation_can_fail(state, slot, need, fault),
            (Instr::InsertDelayed, Fault::EsEnomem) => !self.has(Flag::EsNofail),
            (Instr::InsertDelayed, Fault::PendingEnomem) => {
                !self.has(Flag::PendingNofail) && self.adds_pending(state, slot)
            }
            (Instr::EsRemove(first, end), Fault::EsEnomem) => {
                !self.has(Flag::EsNofail) && free::splits_delayed(state, first, end)
            }
            (Instr::RemoveLeaf { leaf, first, .. }, Fault::Restart) => {
                first > 0 && leaf > 0 && state.disk.mapped & self.geo.leaf_set(leaf) != 0
            }
            _ => false,
        }
    }
}
