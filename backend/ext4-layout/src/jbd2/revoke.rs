//! Revoke blocks: copies in this transaction and older ones that recovery must not write back.

use crate::bytes::u32_be;
use crate::jbd2::{Format, HEADER_BYTES};

/// The revoked blocks; `None` when the checksum fails.
pub(crate) fn parse(block: &[u8], format: Format) -> Option<Vec<u64>> {
    let body = format.body(block)?;
    let used = u32_be(body, HEADER_BYTES)? as usize;
    let records = body.get(HEADER_BYTES + 4..used.min(body.len()))?;
    let record = |raw: &[u8]| raw.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    Some(records.chunks_exact(if format.wide { 8 } else { 4 }).map(record).collect())
}
