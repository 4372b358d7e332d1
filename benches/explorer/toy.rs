//! A toy of delayed allocation in one 64-bit word: four stores through `mmap`, one `fallocate` of
//! all four blocks and one writeback, over four blocks.
//!
//! Small enough that the search dominates, large enough (hundreds of thousands of states) that the
//! visited set leaves the cache. It has the founding bug: `recheck` off leaves out the second look
//! at the extent status under `i_data_sem`.

use explorer::{InvariantId, Model, Step, StepBuf};

pub(crate) const BLOCKS: u8 = 4;
const FALLOCATE: u8 = BLOCKS;
const WRITEBACK: u8 = BLOCKS + 1;

// Extent status of a block, 2 bits.
const NONE: u64 = 0;
const HOLE: u64 = 1;
const DELAYED: u64 = 2;
const UNWRITTEN: u64 = 3;

// The word, from bit 0: per block {status 2, allocated 1, dirty 1, folio locked 1, program counter
// of its store 3}, i_data_sem taken 1, program counters of fallocate 4 and writeback 5,
// reservations 3.
const BLOCK_BITS: u32 = 8;
const SEM: u32 = 32;
const FALLOCATE_PC: u32 = 33;
const WRITEBACK_PC: u32 = 38;
const RESERVED: u32 = 44;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Word(u64);

impl Word {
    fn get(self, at: u32, bits: u32) -> u64 {
        self.0 >> at & ((1 << bits) - 1)
    }

    fn set(&mut self, at: u32, bits: u32, value: u64) {
        let mask = ((1 << bits) - 1) << at;
        self.0 = self.0 & !mask | value << at;
    }

    fn status(self, block: u8) -> u64 {
        self.get(u32::from(block) * BLOCK_BITS, 2)
    }

    fn set_status(&mut self, block: u8, status: u64) {
        self.set(u32::from(block) * BLOCK_BITS, 2, status);
    }

    fn flag(self, block: u8, flag: Flag) -> bool {
        self.get(u32::from(block) * BLOCK_BITS + flag as u32, 1) == 1
    }

    fn set_flag(&mut self, block: u8, flag: Flag, value: bool) {
        self.set(u32::from(block) * BLOCK_BITS + flag as u32, 1, u64::from(value));
    }

    fn pc(self, thread: u8) -> u64 {
        match thread {
            FALLOCATE => self.get(FALLOCATE_PC, 5),
            WRITEBACK => self.get(WRITEBACK_PC, 6),
            store => self.get(u32::from(store) * BLOCK_BITS + 5, 3),
        }
    }

    fn set_pc(&mut self, thread: u8, pc: u64) {
        match thread {
            FALLOCATE => self.set(FALLOCATE_PC, 5, pc),
            WRITEBACK => self.set(WRITEBACK_PC, 6, pc),
            store => self.set(u32::from(store) * BLOCK_BITS + 5, 3, pc),
        }
    }

    /// Gives blocks to a range: what was reserved for it is returned.
    fn allocate(&mut self, block: u8) {
        if self.status(block) == DELAYED {
            self.set(RESERVED, 3, self.get(RESERVED, 3) - 1);
        }
        self.set_flag(block, Flag::Allocated, true);
        self.set_status(block, UNWRITTEN);
    }
}

#[derive(Clone, Copy)]
enum Flag {
    Allocated = 2,
    Dirty = 3,
    Locked = 4,
}

#[derive(Clone)]
pub(crate) struct Toy {
    pub(crate) recheck: bool,
    /// Whether writeback takes part.
    pub(crate) writeback: bool,
    /// Number of stores and of blocks, at most 4.
    pub(crate) stores: u8,
}

impl Toy {
    pub(crate) fn holds(state: Word) -> bool {
        // A delayed block that is allocated already keeps its reservation for ever.
        (0..BLOCKS)
            .all(|block| state.status(block) != DELAYED || !state.flag(block, Flag::Allocated))
    }

    /// Steps of a store: 0 lock the folio, 1 look up, 2 down_write, 3 insert, 4 up_write, 5 dirty
    /// and unlock, 6 done.
    fn store(&self, state: &mut Word, block: u8) {
        let pc = state.pc(block);
        let mut next = pc + 1;
        match pc {
            0 => state.set_flag(block, Flag::Locked, true),
            1 if state.status(block) >= DELAYED => next = 5,
            2 => state.set(SEM, 1, 1),
            3 if !self.recheck || state.status(block) < DELAYED => {
                state.set_status(block, DELAYED);
                state.set(RESERVED, 3, state.get(RESERVED, 3) + 1);
            }
            4 => state.set(SEM, 1, 0),
            5 => {
                state.set_flag(block, Flag::Dirty, true);
                state.set_flag(block, Flag::Locked, false);
            }
            _ => {}
        }
        state.set_pc(block, next);
    }

    /// Steps for each block: 0 publish the hole, 1 down_write, 2 allocate, 3 up_write.
    fn fallocate(state: &mut Word) {
        let pc = state.pc(FALLOCATE);
        let block = (pc / 4) as u8;
        let mut next = pc + 1;
        match pc % 4 {
            0 => match state.status(block) {
                NONE => state.set_status(block, HOLE),
                UNWRITTEN => next = pc + 4,
                _ => {}
            },
            1 => state.set(SEM, 1, 1),
            2 => state.allocate(block),
            _ => state.set(SEM, 1, 0),
        }
        state.set_pc(FALLOCATE, next);
    }

    /// Steps for each block: 0 lock the folio, 1 skip a clean one or down_write, 2 allocate, 3
    /// up_write, 4 unlock.
    fn write_back(state: &mut Word) {
        let pc = state.pc(WRITEBACK);
        let block = (pc / 5) as u8;
        let mut next = pc + 1;
        match pc % 5 {
            0 if !state.flag(block, Flag::Dirty) => next = pc + 5,
            0 => state.set_flag(block, Flag::Locked, true),
            1 => state.set(SEM, 1, 1),
            2 => state.allocate(block),
            3 => state.set(SEM, 1, 0),
            _ => {
                state.set_flag(block, Flag::Dirty, false);
                state.set_flag(block, Flag::Locked, false);
            }
        }
        state.set_pc(WRITEBACK, next);
    }

    pub(crate) fn can_step(&self, state: Word, thread: u8) -> bool {
        let pc = state.pc(thread);
        let sem_free = state.get(SEM, 1) == 0;
        match thread {
            FALLOCATE => pc < 4 * u64::from(self.stores) && (pc % 4 != 1 || sem_free),
            WRITEBACK => {
                let block = (pc / 5) as u8;
                self.writeback
                    && block < self.stores
                    && (!pc.is_multiple_of(5) || !state.flag(block, Flag::Locked))
                    && (pc % 5 != 1 || sem_free)
            }
            block => {
                block < self.stores
                    && pc < 6
                    && (pc != 0 || !state.flag(block, Flag::Locked))
                    && (pc != 2 || sem_free)
            }
        }
    }

    pub(crate) fn step(&self, state: &mut Word, thread: u8) {
        match thread {
            FALLOCATE => Toy::fallocate(state),
            WRITEBACK => Toy::write_back(state),
            block => self.store(state, block),
        }
    }
}

impl Model for Toy {
    type State = Word;

    fn name(&self) -> String {
        "toy".to_owned()
    }

    fn identity(&self) -> u64 {
        explorer::identity(&format!("{} {} {}", self.recheck, self.writeback, self.stores))
    }

    fn threads(&self) -> usize {
        usize::from(WRITEBACK) + 1
    }

    fn initial(&self) -> Word {
        Word(0)
    }

    #[inline]
    fn enabled(&self, state: &Word, out: &mut StepBuf) {
        for thread in 0..=WRITEBACK {
            if self.can_step(*state, thread) {
                out.push(thread, 0);
            }
        }
    }

    #[inline]
    fn apply(&self, state: &mut Word, step: Step) {
        self.step(state, step.thread);
    }

    #[inline]
    fn check(&self, state: &Word, _last: Step) -> Result<(), InvariantId> {
        if Toy::holds(*state) { Ok(()) } else { Err(InvariantId(0)) }
    }

    /// The word itself: different states never share it.
    #[inline]
    fn fingerprint(&self, state: &Word) -> u64 {
        state.0
    }

    fn invariant(&self, _id: InvariantId) -> String {
        "no-delayed-block-is-allocated".to_owned()
    }

    fn explain(&self, _history: &[Step], state: &Word, _id: InvariantId) -> String {
        let block = (0..BLOCKS)
            .find(|&block| state.status(block) == DELAYED && state.flag(block, Flag::Allocated));
        format!("block {block:?} is delayed and allocated")
    }

    fn thread_name(&self, thread: u8) -> String {
        match thread {
            FALLOCATE => "fallocate".to_owned(),
            WRITEBACK => "writeback".to_owned(),
            block => format!("store {block}"),
        }
    }

    fn step_label(&self, before: &Word, step: Step) -> String {
        format!("step {}", before.pc(step.thread))
    }
}
