//! The vocabulary of requests: what the device layer tells the core about one.
//!
//! In: nothing. Out: types. Must not know: virtqueues, guest memory, storage.

use ext4_layout::Span;
use serde::{Deserialize, Serialize};

/// Nanoseconds since the backend started, on the monotonic clock.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Nanos(pub u64);

impl Nanos {
    /// This time plus `ns` nanoseconds, at most the end of time.
    #[must_use]
    pub const fn plus(self, ns: u64) -> Nanos {
        Nanos(self.0.saturating_add(ns))
    }

    /// Nanoseconds since `earlier`, 0 if it is later.
    pub const fn since(self, earlier: Nanos) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// One request, unique for the life of the backend; given by the device layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Op {
    /// VIRTIO_BLK_T_IN.
    Read,
    /// VIRTIO_BLK_T_OUT.
    Write,
    /// VIRTIO_BLK_T_FLUSH, or a virtio-pmem flush.
    Flush,
    /// VIRTIO_BLK_T_DISCARD.
    Discard,
    /// VIRTIO_BLK_T_WRITE_ZEROES.
    WriteZeroes,
    /// First touch of a persistent-memory page.
    Fault,
    /// Write-back of a persistent-memory page, where it can be seen.
    Store,
}

impl Op {
    /// Every operation, in the order of their discriminants.
    pub const ALL: [Op; 7] =
        [Op::Read, Op::Write, Op::Flush, Op::Discard, Op::WriteZeroes, Op::Fault, Op::Store];

    /// The spelling in rules, logs and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "flush",
            Op::Discard => "discard",
            Op::WriteZeroes => "write_zeroes",
            Op::Fault => "fault",
            Op::Store => "store",
        }
    }

    /// The operation with that spelling.
    pub fn parse(name: &str) -> Option<Op> {
        Op::ALL.into_iter().find(|op| op.name() == name)
    }

    /// The operation as a bit of a set of operations.
    pub const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// One request as the core sees it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Identity.
    pub id: RequestId,
    /// Virtqueue index; 0 for page faults.
    pub queue: u16,
    /// Head descriptor index in the avail ring; 0 for page faults.
    pub head: u16,
    /// What it does.
    pub op: Op,
    /// First 512-byte sector; 0 for a flush.
    pub sector: u64,
    /// Length in 512-byte sectors; 0 for a flush.
    pub sectors: u64,
    /// What it touches, in disk order; empty when nothing asked for classes, or for a flush.
    pub spans: &'a [Span],
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// VIRTIO_BLK_S_OK.
    Ok,
    /// VIRTIO_BLK_S_IOERR.
    IoErr,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupported,
}
