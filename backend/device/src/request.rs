//! Requests: from a descriptor chain to something that storage can do.
//!
//! In: a head index and guest memory, neither to be trusted. Out: a [`Request`] whose addresses,
//! lengths and sectors are checked; a refusal with the status to report; or the insight that
//! the chain is beyond answering.
//! Must not know: storage, engines, how completions are told.

use pipeline::Op;
use rustix::io::Errno;
use smallvec::SmallVec;
use thiserror::Error;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::config::{MAX_DATA_BYTES, MAX_RANGE_SECTORS, MAX_RANGES};
use crate::segments::{BadAddress, Segments, StatusByte};
use crate::storage::SECTOR_BYTES;

mod chain;

use chain::Header;
pub(crate) use chain::{BrokenChain, Chain, Table};

/// Bytes of struct virtio_blk_discard_write_zeroes.
const RANGE_BYTES: usize = 16;
/// Most host segments of a request's data: what one scatter-gather call takes.
const MAX_SEGMENTS: usize = 1024;

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub capacity_sectors: u64,
    pub read_only: bool,
    pub can_discard: bool,
}

/// A range of a discard or write-zeroes request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub sector: u64,
    pub sectors: u32,
    pub unmap: bool,
}

/// What the guest wants.
#[derive(Debug)]
pub(crate) enum Verb {
    Read { sector: u64, to: Segments },
    Write { sector: u64, from: Segments },
    Flush,
    GetId { to: Segments },
    Discard(SmallVec<[Range; 1]>),
    WriteZeroes(SmallVec<[Range; 1]>),
}

impl Verb {
    /// Where data lies on the disk that is moved, and how many bytes.
    pub(crate) fn transfers(&self) -> Option<(u64, u64)> {
        match self {
            Verb::Read { sector, to: data } | Verb::Write { sector, from: data } => {
                Some((*sector, data.len()))
            }
            _ => None,
        }
    }

    /// The operation, if storage is reached, and how many bytes of it.
    pub(crate) fn moves(&self) -> (Option<Op>, u64) {
        let bytes = |ranges: &[Range]| {
            // At most 2^32 sectors in each of few ranges.
            ranges.iter().map(|range| u64::from(range.sectors) * SECTOR_BYTES).sum()
        };
        match self {
            Verb::Read { to, .. } => (Some(Op::Read), to.len()),
            Verb::Write { from, .. } => (Some(Op::Write), from.len()),
            Verb::Flush => (Some(Op::Flush), 0),
            Verb::GetId { .. } => (None, 0),
            Verb::Discard(ranges) => (Some(Op::Discard), bytes(ranges)),
            Verb::WriteZeroes(ranges) => (Some(Op::WriteZeroes), bytes(ranges)),
        }
    }
}

/// A request that can be carried out.
#[derive(Debug)]
pub(crate) struct Request {
    pub verb: Verb,
    pub status: StatusByte,
}

/// A request that cannot be carried out, but answered.
#[derive(Debug)]
pub(crate) struct Refused {
    pub why: Refusal,
    pub status: StatusByte,
}

/// Why.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum Refusal {
    #[error("the readable part has {0} bytes, a header has 16")]
    ShortHeader(u64),
    #[error("part of the request is outside the guest's memory")]
    Address(#[source] BadAddress),
    #[error("request type {0} is unknown")]
    Type(u32),
    #[error("{0} bytes of data: not a multiple of 512")]
    Length(u64),
    #[error("{0} bytes of data: more than the device offers to move at once")]
    TooLong(u64),
    #[error("{0} data segments: more than the device offers to take")]
    TooManySegments(usize),
    #[error("sector {sector} and {sectors} sectors reach past the disk's end")]
    PastEnd { sector: u64, sectors: u64 },
    #[error("the disk is read-only")]
    ReadOnly,
    #[error("{0} bytes of data in the wrong direction")]
    Direction(u64),
    #[error("{0} bytes of ranges: not a multiple of 16, none, or more than offered")]
    Ranges(u64),
    #[error("a range of {0} sectors is longer than offered")]
    RangeTooLong(u32),
    #[error("flags {0:#x} are unknown, or not for this request type")]
    Flags(u32),
    #[error("the storage cannot discard")]
    NoDiscard,
}

impl Refusal {
    /// The virtio status that tells the driver (virtio 1.3, 5.2.6).
    pub(crate) fn status(&self) -> u8 {
        match self {
            Refusal::Type(_) | Refusal::Flags(_) | Refusal::NoDiscard => VIRTIO_BLK_S_UNSUPP as u8,
            Refusal::ShortHeader(_)
            | Refusal::Address(_)
            | Refusal::Length(_)
            | Refusal::TooLong(_)
            | Refusal::TooManySegments(_)
            | Refusal::PastEnd { .. }
            | Refusal::ReadOnly
            | Refusal::Direction(_)
            | Refusal::Ranges(_)
            | Refusal::RangeTooLong(_) => VIRTIO_BLK_S_IOERR as u8,
        }
    }
}

/// The virtio status for an operation that failed in storage or by a rule.
pub(crate) fn status_of(errno: Errno) -> u8 {
    match errno {
        Errno::OPNOTSUPP | Errno::NOSYS => VIRTIO_BLK_S_UNSUPP as u8,
        _ => VIRTIO_BLK_S_IOERR as u8,
    }
}

/// Understands a chain.
///
/// # Errors
/// Outer: there is no status byte to answer with. Inner: refused.
pub(crate) fn parse(chain: Chain, limits: Limits) -> Result<Result<Request, Refused>, BrokenChain> {
    let Chain { header, readable, mut writable, fault, status_lost } = chain;
    if status_lost {
        // Only a bad address loses a status byte that the chain has.
        return Err(fault.map_or(BrokenChain::NoStatus, BrokenChain::StatusAddress));
    }
    let Some(status) = writable.pop_byte() else {
        return Err(BrokenChain::NoStatus);
    };
    Ok(match verb(&header, readable, writable, fault, limits) {
        Ok(verb) => Ok(Request { verb, status }),
        Err(why) => Err(Refused { why, status }),
    })
}

fn verb(
    header: &Header,
    readable: Segments,
    writable: Segments,
    fault: Option<BadAddress>,
    limits: Limits,
) -> Result<Verb, Refusal> {
    if let Some(fault) = fault {
        return Err(Refusal::Address(fault));
    }
    let Some(words) = header.whole() else {
        return Err(Refusal::ShortHeader(header.bytes().len() as u64));
    };
    let kind = le32(words, 0);
    let sector = le64(words, 8);
    match kind {
        VIRTIO_BLK_T_IN => {
            wrong_way(&readable)?;
            check_data(&writable, sector, limits)?;
            Ok(Verb::Read { sector, to: writable })
        }
        VIRTIO_BLK_T_OUT => {
            wrong_way(&writable)?;
            if limits.read_only {
                return Err(Refusal::ReadOnly);
            }
            check_data(&readable, sector, limits)?;
            Ok(Verb::Write { sector, from: readable })
        }
        // Whatever data comes with a flush has no meaning.
        VIRTIO_BLK_T_FLUSH => Ok(Verb::Flush),
        VIRTIO_BLK_T_GET_ID => {
            wrong_way(&readable)?;
            Ok(Verb::GetId { to: writable })
        }
        VIRTIO_BLK_T_DISCARD => {
            wrong_way(&writable)?;
            Ok(Verb::Discard(ranges(&readable, 0, limits)?))
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            wrong_way(&writable)?;
            let flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
            Ok(Verb::WriteZeroes(ranges(&readable, flags, limits)?))
        }
        other => Err(Refusal::Type(other)),
    }
}

/// Data where the request type has none.
fn wrong_way(data: &Segments) -> Result<(), Refusal> {
    if data.is_empty() { Ok(()) } else { Err(Refusal::Direction(data.len())) }
}

fn check_data(data: &Segments, sector: u64, limits: Limits) -> Result<(), Refusal> {
    let bytes = data.len();
    if !bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(Refusal::Length(bytes));
    }
    if bytes > MAX_DATA_BYTES {
        return Err(Refusal::TooLong(bytes));
    }
    if data.iovecs().len() > MAX_SEGMENTS {
        return Err(Refusal::TooManySegments(data.iovecs().len()));
    }
    check_sectors(sector, bytes / SECTOR_BYTES, limits)
}

fn check_sectors(sector: u64, sectors: u64, limits: Limits) -> Result<(), Refusal> {
    match sector.checked_add(sectors) {
        Some(end) if end <= limits.capacity_sectors => Ok(()),
        _ => Err(Refusal::PastEnd { sector, sectors }),
    }
}

fn ranges(
    data: &Segments,
    flags_known: u32,
    limits: Limits,
) -> Result<SmallVec<[Range; 1]>, Refusal> {
    if limits.read_only {
        return Err(Refusal::ReadOnly);
    }
    if !limits.can_discard {
        return Err(Refusal::NoDiscard);
    }
    let bytes = data.len();
    let most = u64::from(MAX_RANGES) * RANGE_BYTES as u64;
    if bytes == 0 || !bytes.is_multiple_of(RANGE_BYTES as u64) || bytes > most {
        return Err(Refusal::Ranges(bytes));
    }
    let mut ranges = SmallVec::new();
    for offset in (0..bytes).step_by(RANGE_BYTES) {
        let mut raw = [0; RANGE_BYTES];
        data.read(offset, &mut raw);
        let (sector, sectors, flags) = (le64(&raw, 0), le32(&raw, 8), le32(&raw, 12));
        if flags & !flags_known != 0 {
            return Err(Refusal::Flags(flags));
        }
        if sectors > MAX_RANGE_SECTORS {
            return Err(Refusal::RangeTooLong(sectors));
        }
        check_sectors(sector, u64::from(sectors), limits)?;
        ranges.push(Range { sector, sectors, unmap: flags != 0 });
    }
    Ok(ranges)
}

fn le32(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn le64(bytes: &[u8; 16], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

#[cfg(test)]
mod bounds;
#[cfg(test)]
mod tests;
