//! Frames: a 16-byte little-endian header, a payload, zeroes up to a multiple of 512 bytes.
//!
//! ```text
//!  0      4        6      8     12       16
//!  | RGLK | version | 0    | seq | length | payload ... | zeroes ... |
//! ```
//!
//! In: payloads, or the bytes of one transfer. Out: the other of the two.
//! Must not know: what payloads mean, beyond being JSON.

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Version of the wire format. A frame of another version is refused.
pub const VERSION: u16 = 2;

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 16;

/// Longest frame in bytes, header and padding included.
pub const MAX_FRAME: usize = 64 * 1024;

/// Longest payload in bytes.
pub const MAX_PAYLOAD: usize = MAX_FRAME - HEADER_BYTES;

const MAGIC: [u8; 4] = *b"RGLK";
const BLOCK_BYTES: usize = 512;

/// One frame, borrowed from the bytes of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Number given by the sender; it counts up by one and wraps.
    pub seq: u32,
    /// JSON of one message; empty in the answer to a poll when there was nothing to say.
    pub payload: &'a [u8],
}

/// Why bytes are not a frame, or a message does not become one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Less than a header.
    #[error("a frame needs a header of {HEADER_BYTES} bytes, got {got} bytes")]
    Short {
        /// Bytes received.
        got: usize,
    },
    /// The first four bytes are not `RGLK`.
    #[error("not a link frame: it starts with {got:02x?} instead of \"RGLK\"")]
    Magic {
        /// The bytes received.
        got: [u8; 4],
    },
    /// The other side speaks another version, or the reserved field is in use.
    #[error(
        "link frame of version {version}, reserved field {reserved}; this side speaks version {VERSION}, 0"
    )]
    Version {
        /// Version field of the header.
        version: u16,
        /// Reserved field of the header.
        reserved: u16,
    },
    /// The header promises more than was sent, or more than a frame may hold.
    #[error("link frame {seq} promises {length} bytes of payload, {room} fit")]
    Length {
        /// Number of the frame.
        seq: u32,
        /// Length field of the header.
        length: u32,
        /// Bytes after the header, at most [`MAX_PAYLOAD`].
        room: usize,
    },
    /// The payload is not the JSON of a message.
    #[error("link frame {seq} carries no message that this side knows")]
    Message {
        /// Number of the frame.
        seq: u32,
        /// What the JSON parser says.
        source: serde_json::Error,
    },
    /// The message is too long for one frame.
    #[error("message of {bytes} bytes, a frame holds {MAX_PAYLOAD}")]
    TooLong {
        /// Length of its JSON.
        bytes: usize,
    },
    /// The message has no JSON form.
    #[error("message has no JSON form")]
    Json(#[source] serde_json::Error),
}

/// Replaces the contents of `out` by the frame of `payload`, padded to a multiple of 512 bytes.
///
/// # Errors
/// [`FrameError::TooLong`] above [`MAX_PAYLOAD`] bytes.
pub fn encode(seq: u32, payload: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
    begin(out);
    out.extend_from_slice(payload);
    finish(seq, out)
}

/// Replaces the contents of `out` by a frame without a payload: "nothing to say".
pub fn encode_empty(seq: u32, out: &mut Vec<u8>) {
    begin(out);
    let fits = finish(seq, out);
    debug_assert!(fits.is_ok(), "an empty payload fits");
}

/// Replaces the contents of `out` by the frame of `message`. Allocates nothing if `out` has room
/// for [`MAX_FRAME`] bytes.
///
/// # Errors
/// [`FrameError::TooLong`] or [`FrameError::Json`].
pub fn encode_message<M: Serialize>(
    seq: u32,
    message: &M,
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    begin(out);
    serde_json::to_writer(&mut *out, message).map_err(FrameError::Json)?;
    finish(seq, out)
}

fn begin(out: &mut Vec<u8>) {
    out.clear();
    out.resize(HEADER_BYTES, 0);
}

fn finish(seq: u32, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let bytes = out.len() - HEADER_BYTES;
    if bytes > MAX_PAYLOAD {
        return Err(FrameError::TooLong { bytes });
    }
    out[..4].copy_from_slice(&MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[8..12].copy_from_slice(&seq.to_le_bytes());
    out[12..16].copy_from_slice(&(bytes as u32).to_le_bytes());
    out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
    Ok(())
}

/// Reads the frame at the start of `bytes`; what follows it is padding and ignored.
///
/// # Errors
/// The header is short, foreign, of another version, or promises more bytes than there are.
pub fn decode(bytes: &[u8]) -> Result<Frame<'_>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(FrameError::Short { got: bytes.len() });
    };
    let [m0, m1, m2, m3, v0, v1, r0, r1, s0, s1, s2, s3, l0, l1, l2, l3] = *header;
    let got = [m0, m1, m2, m3];
    if got != MAGIC {
        return Err(FrameError::Magic { got });
    }
    let version = u16::from_le_bytes([v0, v1]);
    let reserved = u16::from_le_bytes([r0, r1]);
    if version != VERSION || reserved != 0 {
        return Err(FrameError::Version { version, reserved });
    }
    let seq = u32::from_le_bytes([s0, s1, s2, s3]);
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let room = rest.len().min(MAX_PAYLOAD);
    match rest.get(..length as usize) {
        Some(payload) if payload.len() <= room => Ok(Frame { seq, payload }),
        _ => Err(FrameError::Length { seq, length, room }),
    }
}

/// Reads the message in the frame at the start of `bytes`; `None` for an empty frame.
///
/// # Errors
/// Those of [`decode`], and [`FrameError::Message`].
pub fn decode_message<M: DeserializeOwned>(bytes: &[u8]) -> Result<Option<M>, FrameError> {
    let frame = decode(bytes)?;
    if frame.payload.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(frame.payload)
        .map(Some)
        .map_err(|source| FrameError::Message { seq: frame.seq, source })
}

#[cfg(test)]
mod tests;
