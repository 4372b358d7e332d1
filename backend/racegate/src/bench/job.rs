//! What is asked of a backend.
//!
//! In: words of the command line. Out: [`Job`], and the offsets of its requests.
//! Must not know: backends.

use std::fmt;
use std::str::FromStr;

use anyhow::bail;
use clap::ValueEnum;

/// Bytes of a sector.
const SECTOR_BYTES: u64 = 512;

/// Kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    RandRead,
    RandWrite,
    Read,
    Write,
    Flush,
    /// Random, that many per cent of them reads.
    Mix(u8),
}

impl Op {
    /// Whether any request changes the disk.
    pub(super) fn writes(self) -> bool {
        matches!(self, Op::RandWrite | Op::Write | Op::Mix(_))
    }

    /// Whether the next request lies behind the last one.
    pub(super) fn sequential(self) -> bool {
        matches!(self, Op::Read | Op::Write)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::RandRead => f.write_str("randread"),
            Op::RandWrite => f.write_str("randwrite"),
            Op::Read => f.write_str("read"),
            Op::Write => f.write_str("write"),
            Op::Flush => f.write_str("flush"),
            Op::Mix(reads) => write!(f, "mix{reads}"),
        }
    }
}

impl FromStr for Op {
    type Err = String;

    fn from_str(text: &str) -> Result<Op, String> {
        match text {
            "randread" => Ok(Op::RandRead),
            "randwrite" => Ok(Op::RandWrite),
            "read" => Ok(Op::Read),
            "write" => Ok(Op::Write),
            "flush" => Ok(Op::Flush),
            _ => text
                .strip_prefix("mix")
                .and_then(|reads| reads.parse().ok())
                .filter(|reads| *reads <= 100)
                .map(Op::Mix)
                .ok_or_else(|| {
                    "expected randread, randwrite, read, write, flush, or mixN with N from 0 to 100"
                        .into()
                }),
        }
    }
}

/// How a client learns of completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Wait {
    /// It sleeps until the backend calls, as a guest does
    Event,
    /// It looks again and again, and never wants a call
    Poll,
}

/// One kind of load with all its figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) op: Op,
    /// Bytes.
    pub(super) block_size: u64,
    /// In flight in each queue.
    pub(super) depth: u16,
    pub(super) queues: u16,
    pub(super) wait: Wait,
}

impl Job {
    /// Whether that can be asked of a disk of `bytes`.
    pub(super) fn check(&self, bytes: u64) -> anyhow::Result<()> {
        let Job { block_size, depth, queues, .. } = *self;
        if block_size == 0 || !block_size.is_multiple_of(SECTOR_BYTES) || block_size > 1 << 20 {
            bail!("--block-size {block_size}: it must be a multiple of 512, at most 1m");
        }
        if depth == 0 || depth > 256 {
            bail!("--depth {depth}: it must be from 1 to 256");
        }
        if queues == 0 || queues > 16 {
            bail!("--queues {queues}: it must be from 1 to 16");
        }
        if bytes / block_size < u64::from(queues) {
            bail!("--size {bytes} is too small for that");
        }
        Ok(())
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Job { op, block_size, depth, .. } = self;
        write!(f, "{op} {} depth {depth}", Size(*block_size))?;
        if self.queues > 1 { write!(f, " x {} queues", self.queues) } else { Ok(()) }
    }
}

/// Bytes, as short as they can be written.
pub(super) struct Size(pub(super) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n >= 1 << 20 && n.is_multiple_of(1 << 20) => write!(f, "{}m", n >> 20),
            n if n >= 1 << 10 && n.is_multiple_of(1 << 10) => write!(f, "{}k", n >> 10),
            n => write!(f, "{n}"),
        }
    }
}

/// Reads "4k", "128k", "1m", "2g" or plain bytes.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 10),
        Some(b'm') => (&lower[..lower.len() - 1], 20),
        Some(b'g') => (&lower[..lower.len() - 1], 30),
        _ => (&lower[..], 0),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .filter(|n| *n > 0)
        .ok_or_else(|| "expected a number of bytes, maybe with k, m or g".into())
}

/// Where and what the next request is: the same for everyone with the same seed.
pub(super) struct Offsets {
    state: u64,
    first: u64,
    blocks: u64,
    block_size: u64,
    next: u64,
    op: Op,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Read(u64),
    Write(u64),
    Flush,
}

impl Offsets {
    /// Those of queue `queue`, within `bytes`. Sequential queues have a part of the disk each.
    pub(super) fn new(job: &Job, bytes: u64, queue: u16, seed: u64) -> Offsets {
        let total = bytes / job.block_size;
        let (first, blocks) = if job.op.sequential() {
            let part = total / u64::from(job.queues);
            (part * u64::from(queue), part)
        } else {
            (0, total)
        };
        Offsets {
            state: (seed ^ (u64::from(queue) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            first,
            blocks,
            block_size: job.block_size,
            next: 0,
            op: job.op,
        }
    }

    /// xorshift64*.
    fn random(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.random()) * u128::from(n)) >> 64) as u64
    }

    /// The next byte offset.
    pub(super) fn offset(&mut self) -> u64 {
        let block = if self.op.sequential() {
            let block = self.next;
            self.next = if block + 1 == self.blocks { 0 } else { block + 1 };
            block
        } else {
            self.below(self.blocks)
        };
        (self.first + block) * self.block_size
    }

    /// The next request.
    pub(super) fn ask(&mut self) -> Ask {
        match self.op {
            Op::RandRead | Op::Read => Ask::Read(self.offset()),
            Op::RandWrite | Op::Write => Ask::Write(self.offset()),
            Op::Flush => Ask::Flush,
            Op::Mix(reads) => {
                if self.below(100) < u64::from(reads) {
                    Ask::Read(self.offset())
                } else {
                    Ask::Write(self.offset())
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: Job =
        Job { op: Op::RandRead, block_size: 4096, depth: 1, queues: 2, wait: Wait::Event };

    #[test]
    fn sizes() {
        assert_eq!(bytes("4k"), Ok(4096));
        assert_eq!(bytes("1G"), Ok(1 << 30));
        assert_eq!(bytes("512"), Ok(512));
        assert!(bytes("0").is_err());
        assert!(bytes("k").is_err());
        assert!(bytes("99999999999g").is_err());
        assert_eq!(Size(131_072).to_string(), "128k");
        assert_eq!(Size(512).to_string(), "512");
    }

    #[test]
    fn ops_by_name() {
        for name in ["randread", "randwrite", "read", "write", "flush", "mix70"] {
            assert_eq!(name.parse::<Op>().map(|op| op.to_string()), Ok(name.to_owned()));
        }
        assert!("mix101".parse::<Op>().is_err());
    }

    #[test]
    fn random_offsets_reach_every_block() {
        let mut offsets = Offsets::new(&JOB, 64 * 4096, 0, 7);
        let mut seen = [false; 64];
        for _ in 0..2000 {
            let offset = offsets.offset();
            assert_eq!(offset % 4096, 0);
            seen[(offset / 4096) as usize] = true;
        }
        assert!(seen.iter().all(|seen| *seen));
    }

    #[test]
    fn sequential_queues_share_the_disk_out() {
        let job = Job { op: Op::Read, ..JOB };
        let mut second = Offsets::new(&job, 8 * 4096, 1, 7);
        let blocks: Vec<u64> = (0..5).map(|_| second.offset() / 4096).collect();
        assert_eq!(blocks, [4, 5, 6, 7, 4]);
    }
}
