//! Lists of operations: drawn from a seed, cut to what the model covers, put as system calls.
//!
//! In: a seed and a number. Out: the same list, always.
//! Must not know: what comes of a list.

use agent::wire::{Call, FallocateMode, List};
use delalloc::{Geometry, Kernel, Op};

use super::predict::Model;
use crate::runner::trial_seed;

/// Operations on one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Script {
    /// The operations, in order.
    pub ops: Vec<Op>,
    /// Ask for the extent map after every one of them.
    pub map: bool,
}

/// Draws list `number` of a seed: `length` operations, and a look at all data behind them.
pub fn draw(kernel: Kernel, geo: Geometry, seed: u64, number: u32, length: u32) -> Script {
    let mut draws = Draws { seed: trial_seed(seed, number), drawn: 0 };
    let mut model = Model::new(kernel, geo);
    let mut ops = Vec::new();
    while ops.len() < length as usize {
        let op = operation(&mut draws, &geo);
        if model.admits(op) {
            model.run(op);
            ops.push(op);
        }
    }
    Script { ops, map: number.is_multiple_of(2) }
}

/// The operations of `ops` that the model admits where they stand.
pub(super) fn admitted(
    kernel: Kernel,
    geo: Geometry,
    ops: impl IntoIterator<Item = Op>,
) -> Vec<Op> {
    let mut model = Model::new(kernel, geo);
    let mut kept = Vec::new();
    for op in ops {
        if model.admits(op) {
            model.run(op);
            kept.push(op);
        }
    }
    kept
}

fn operation(draws: &mut Draws, geo: &Geometry) -> Op {
    let at = draws.below(geo.blocks);
    let len = 1 + draws.below((geo.blocks - at).min(6));
    let data = 1 + draws.below(13);
    let keep_size = draws.below(2) == 0;
    match draws.below(100) {
        0..17 => Op::Write { at, len, data, partial: false },
        17..29 => Op::Mkwrite { at, data, behind_eof: false },
        29..35 => Op::Read { at, len },
        35..46 => Op::Fallocate { at, len, keep_size },
        46..54 => Op::ZeroRange { at, len, keep_size },
        54..62 => Op::PunchHole { at, len },
        62..67 => {
            let unit = geo.cluster_blocks();
            Op::CollapseRange { at: at / unit * unit, len: len.div_ceil(unit) * unit }
        }
        67..71 => {
            let unit = geo.cluster_blocks();
            Op::InsertRange { at: at / unit * unit, len: len.div_ceil(unit) * unit }
        }
        71..78 => Op::Truncate { size: draws.below(geo.blocks + 1) },
        78..84 => Op::DioWrite { at, len, data },
        84..87 => Op::DioRead { at, len },
        87..92 => Op::Fsync,
        92..95 => {
            let page = 1 << geo.page_shift;
            Op::Writepages { at: at / page * page, len }
        }
        95..97 => Op::Fiemap { at: 0, len: geo.blocks },
        _ => Op::ClearEsCache,
    }
}

/// Random numbers of one list.
struct Draws {
    seed: u64,
    drawn: u32,
}

impl Draws {
    fn below(&mut self, bound: u8) -> u8 {
        self.drawn += 1;
        (trial_seed(self.seed, self.drawn) % u64::from(bound)) as u8
    }
}

impl Script {
    /// The list as the agent takes it. Behind the operations all data is read.
    pub fn list(&self, geo: &Geometry, number: u64) -> List {
        let block = u64::from(geo.block_bytes);
        let mut calls: Vec<Call> = self.ops.iter().map(|&op| call(block, op)).collect();
        calls.push(Call::Read(0, u64::from(geo.blocks) * block));
        List { number, map: self.map, calls }
    }
}

fn call(block: u64, op: Op) -> Call {
    let range = op.range().unwrap_or(delalloc::ops::Range { at: 0, len: 0 });
    let (offset, bytes) = (u64::from(range.at) * block, u64::from(range.len) * block);
    let fallocate = |mode| Call::Fallocate(mode, offset, bytes);
    match op {
        Op::Write { data, .. } => Call::Write(offset, bytes, data),
        Op::Mkwrite { data, .. } => Call::Store(offset, bytes, data),
        Op::Read { .. } => Call::Read(offset, bytes),
        Op::Fallocate { keep_size: false, .. } => fallocate(FallocateMode::Allocate),
        Op::Fallocate { keep_size: true, .. } => fallocate(FallocateMode::KeepSize),
        Op::ZeroRange { keep_size: false, .. } => fallocate(FallocateMode::ZeroRange),
        Op::ZeroRange { keep_size: true, .. } => fallocate(FallocateMode::ZeroRangeKeepSize),
        Op::PunchHole { .. } => fallocate(FallocateMode::PunchHole),
        Op::CollapseRange { .. } => fallocate(FallocateMode::CollapseRange),
        Op::InsertRange { .. } => fallocate(FallocateMode::InsertRange),
        Op::Truncate { size } => Call::Truncate(u64::from(size) * block),
        Op::DioWrite { data, .. } => Call::DirectWrite(offset, bytes, data),
        Op::DioRead { .. } => Call::DirectRead(offset, bytes),
        Op::Writepages { .. } => Call::Msync(offset, bytes),
        Op::Fsync => Call::Fsync,
        Op::ClearEsCache => Call::ClearEs,
        // The rest is never drawn; looking is harmless.
        _ => Call::Fiemap,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::Shape;

    #[test]
    fn a_list_is_a_function_of_seed_and_number() {
        let kernel = Kernel::find("linux-6.12.107").unwrap();
        for shape in Shape::ALL {
            let geo = shape.geometry(&kernel);
            let draw = |seed, number| draw(kernel, geo, seed, number, 20);
            assert_eq!(draw(1, 5), draw(1, 5));
            assert_ne!(draw(1, 5).ops, draw(1, 6).ops);
            assert_ne!(draw(1, 5).ops, draw(2, 5).ops);
            assert_eq!(draw(1, 5).ops.len(), 20);
            let ops = draw(3, 7).ops;
            assert_eq!(admitted(kernel, geo, ops.clone()), ops);
        }
    }
}
