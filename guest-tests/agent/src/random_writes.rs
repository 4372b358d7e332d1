//! The writes of `write_randomly`: which block each one goes to and what it holds, known to both
//! sides.
//!
//! In: a trial's draws. Out: [`RandomWrite`]s, in their order.
//! Must not know: files, devices.

use crate::draws::Draws;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomWrite {
    /// Number of the write, from 1.
    pub number: u64,
    /// Number of the block.
    pub block: u64,
}

impl RandomWrite {
    /// What the block holds after it: (number of the write, number of the block), over and over.
    pub fn content(self) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        for pair in bytes.chunks_exact_mut(16) {
            pair[..8].copy_from_slice(&self.number.to_le_bytes());
            pair[8..].copy_from_slice(&self.block.to_le_bytes());
        }
        bytes
    }
}

/// All writes of one operation.
#[derive(Clone, Debug)]
pub struct RandomWrites {
    draws: Draws,
    blocks: u64,
    next: u64,
    writes: u64,
}

impl RandomWrites {
    /// `writes` writes to blocks `0..blocks`.
    pub fn new(draws: Draws, blocks: u64, writes: u64) -> RandomWrites {
        RandomWrites { draws, blocks, next: 1, writes }
    }
}

impl Iterator for RandomWrites {
    type Item = RandomWrite;

    fn next(&mut self) -> Option<RandomWrite> {
        if self.next > self.writes || self.blocks == 0 {
            return None;
        }
        let block = self.draws.between(0, self.blocks - 1);
        let write = RandomWrite { number: self.next, block };
        self.next += 1;
        Some(write)
    }
}

/// Name of the mark that says how many writes are durable.
pub fn synced(writes: u64) -> String {
    format!("synced:{writes}")
}

/// How many writes the mark of that name says are durable.
pub fn parse_synced(mark: &str) -> Option<u64> {
    mark.strip_prefix("synced:")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_see_the_same_writes() {
        let writes = || RandomWrites::new(Draws::new(7, "writer"), 10, 100);
        assert!(writes().eq(writes()));
        assert_eq!(writes().count(), 100);
        assert!(writes().all(|write| write.block < 10));
        assert_eq!(writes().last().map(|write| write.number), Some(100));
        assert_eq!(RandomWrites::new(Draws::new(7, "writer"), 0, 100).count(), 0);
    }

    #[test]
    fn no_two_writes_look_alike() {
        let at = |number, block| RandomWrite { number, block }.content();
        assert_ne!(at(1, 2), at(2, 1));
        assert_ne!(at(1, 2), at(3, 2));
    }

    #[test]
    fn marks_read_back() {
        assert_eq!(parse_synced(&synced(12)), Some(12));
        assert_eq!(parse_synced("store-parked"), None);
    }
}
