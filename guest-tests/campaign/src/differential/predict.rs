//! The engine as the other side of the comparison: what it predicts after each operation.
//!
//! In: operations, and the physical blocks that the kernel chose. Out: [`Prediction`]s.
//! Must not know: guests.

use delalloc::ops::Op;
use delalloc::state::{Errno, Status};
use delalloc::{Driver, Geometry, Kernel};

/// What is said about one block, as one letter: `W` written, `U` unwritten, `D` delayed, `u`
/// unwritten and delayed, `H` hole, `.` nothing.
pub(super) type Letter = char;

/// The engine with the operations run so far.
#[derive(Clone, Debug)]
pub(super) struct Model {
    driver: Driver,
    geo: Geometry,
}

/// What the kernel should show after an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Prediction {
    /// `errno`, or 0.
    pub(super) errno: i32,
    /// Size in bytes.
    pub(super) size: u64,
    /// Delayed blocks.
    pub(super) delayed: u64,
    /// 512-byte sectors of data, reserved ones included.
    pub(super) sectors: u64,
    /// Extent status of each block.
    pub(super) status: String,
    /// Data of the blocks read; `None` where any will do.
    pub(super) data: Vec<Option<u8>>,
    /// A rule that the engine broke on the way.
    pub(super) broken: Option<String>,
}

impl Model {
    pub(super) fn new(kernel: Kernel, geo: Geometry) -> Model {
        Model { driver: Driver::new(kernel, geo), geo }
    }

    /// Whether engine and system call mean the same by the operation now: it stays inside the
    /// model's blocks, and faults and reads stay inside the file.
    pub(super) fn admits(&self, op: Op) -> bool {
        let blocks = self.geo.blocks;
        let inside = self.geo.blocks_for(self.driver.size());
        let range = op.range();
        if range.is_some_and(|range| range.len == 0 || range.end() > blocks) {
            return false;
        }
        match op {
            Op::Mkwrite { at, .. } => at < inside,
            Op::Read { .. } | Op::DioRead { .. } | Op::Writepages { .. } => {
                range.is_some_and(|range| range.end() <= inside)
            }
            // The kernel knows no end where the model has one.
            Op::InsertRange { len, .. } => {
                let last =
                    self.driver.extents().last().map_or(0, |extent| extent.lblk + extent.len);
                inside.max(last) + len <= blocks
            }
            Op::Truncate { size } => size <= blocks,
            _ => true,
        }
    }

    /// Runs the operation and says what the kernel should show.
    pub(super) fn run(&mut self, op: Op) -> Prediction {
        let mut broken = None;
        let mut errno = Errno::Ok;
        for &part in self.parts(op).iter().flatten() {
            let outcome = self.driver.run_op(part);
            errno = outcome.errno;
            broken = broken.or(outcome.broken);
        }
        let cluster = u64::from(self.geo.cluster_blocks());
        let count = |clusters: i8| u64::try_from(clusters).unwrap_or(0) * cluster;
        let held = count(self.driver.owned_clusters()) + count(self.driver.reserved());
        Prediction {
            errno: number(errno),
            size: u64::from(self.driver.size()),
            delayed: count(self.driver.dirty_clusters()),
            sectors: held * u64::from(self.geo.block_bytes) / 512,
            status: self.status(),
            data: self.data(op),
            broken: broken.map(|finding| format!("{finding:?}")),
        }
    }

    /// The engine's operations for one of a list.
    fn parts(&self, op: Op) -> [Option<Op>; 2] {
        let inside = self.geo.blocks_for(self.driver.size());
        // A read ends where the file does.
        let read = |at: u8, end: u8| {
            let len = end.min(inside).saturating_sub(at);
            (len > 0).then_some(Op::Read { at, len })
        };
        match op {
            // The page is faulted in for reading first, all of it.
            Op::Mkwrite { at, .. } => {
                let folio = self.geo.folio(at);
                [read(self.geo.folio_first(folio), self.geo.folio_first(folio + 1)), Some(op)]
            }
            Op::Read { at, len } => [read(at, at + len), None],
            // msync commits.
            Op::Writepages { .. } => [Some(op), Some(Op::Commit)],
            // Looked at after every operation, if at all: see `map`.
            Op::Fiemap { .. } => [None, None],
            _ => [Some(op), None],
        }
    }

    /// FIEMAP: its report of each block, and what asking for it does.
    pub(super) fn map(&mut self) -> String {
        self.driver.run_op(Op::Fiemap { at: 0, len: self.geo.blocks });
        let mut letters = self.blank();
        for extent in self.driver.es_extents() {
            if extent.status == Status::Delayed {
                put(&mut letters, extent.lblk, extent.len, 'D');
            }
        }
        for extent in self.driver.extents() {
            let letter = if extent.unwritten { 'U' } else { 'W' };
            put(&mut letters, extent.lblk, extent.len, letter);
        }
        letters.into_iter().collect()
    }

    /// Blocks that the engine has mapped, in order.
    pub(super) fn mapped(&self) -> Vec<u8> {
        let extents = self.driver.extents().into_iter();
        extents.flat_map(|extent| extent.lblk..extent.lblk + extent.len).collect()
    }

    /// Tells the engine where the mapped blocks are.
    pub(super) fn place(&mut self, chosen: &[u64]) {
        self.driver.place(chosen);
    }

    /// Most extents that the tree may have on the way through an operation: what is written back is
    /// split off, and merged only when it has been written.
    pub(super) fn most_extents(&self, op: Op) -> u32 {
        let now = self.driver.extents().len() as u32;
        let dirty = self.driver.unwritten_back();
        let runs = (dirty & !(dirty << 1)).count_ones();
        now + match op {
            Op::Fsync
            | Op::Writepages { .. }
            | Op::DioWrite { .. }
            | Op::DioRead { .. }
            | Op::PunchHole { .. }
            | Op::CollapseRange { .. }
            | Op::InsertRange { .. } => 2 * runs + 2,
            Op::Fallocate { .. } | Op::ZeroRange { .. } => 2,
            _ => 0,
        }
    }

    /// Whether the engine has the extents in a leaf.
    pub(super) fn leaf(&self) -> bool {
        self.driver.leaf()
    }

    /// Takes over what the kernel has cached in extent status, and joined to U+D there, block by
    /// block, if it is true. Out:
    /// how many blocks the engine had to be told; nothing if something else differs.
    pub(super) fn tell_cached(&mut self, seen: &[Letter]) -> Option<u32> {
        let mut told = self.clone();
        let mut count = 0;
        for (lblk, (expected, &seen)) in self.status().chars().zip(seen).enumerate() {
            if expected != seen {
                let lblk = lblk as u8;
                let done = match (expected, seen) {
                    ('U', 'u') => told.driver.tell_joined(lblk),
                    _ => told.driver.tell_cached(lblk, seen != '.'),
                };
                if !done {
                    return None;
                }
                count += 1;
            }
        }
        // Not cached, or cached as it is on disk: now the engine says the same, or the kernel lies.
        if !told.status().chars().eq(seen.iter().copied()) {
            return None;
        }
        *self = told;
        Some(count)
    }

    /// Tells the engine whether the file has a leaf of extents.
    pub(super) fn tell_leaf(&mut self, leaf: bool) {
        self.driver.tell_leaf(leaf);
    }

    fn blank(&self) -> Vec<Letter> {
        vec!['.'; usize::from(self.geo.blocks)]
    }

    fn status(&self) -> String {
        let mut letters = self.blank();
        for extent in self.driver.es_extents() {
            let letter = match extent.status {
                Status::None => '.',
                Status::Written => 'W',
                Status::Unwritten if extent.with_delayed => 'u',
                Status::Unwritten => 'U',
                Status::Delayed => 'D',
                Status::Hole => 'H',
            };
            put(&mut letters, extent.lblk, extent.len, letter);
        }
        letters.into_iter().collect()
    }

    fn data(&self, op: Op) -> Vec<Option<u8>> {
        match op {
            Op::Read { at, len } | Op::DioRead { at, len } => {
                let end = (at + len).min(self.geo.blocks_for(self.driver.size()));
                (at..end).map(|block| self.driver.content(block)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Writes a letter over a run of blocks, as far as there are any.
pub(super) fn put(letters: &mut [Letter], first: u8, len: u8, letter: Letter) {
    let (first, end) = (usize::from(first), usize::from(first) + usize::from(len));
    for place in letters.iter_mut().take(end).skip(first) {
        *place = letter;
    }
}

/// The number that the system call fails with.
fn number(errno: Errno) -> i32 {
    match errno {
        Errno::Ok => 0,
        Errno::Enomem => 12,
        Errno::Enospc => 28,
        Errno::Eio => 5,
        Errno::Einval => 22,
        Errno::Fault => 14,
    }
}
