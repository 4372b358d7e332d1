//! Bytes of the device in the event log.
//!
//! In: bytes. Out: a [`What::Bytes`] event, and back. Metadata is mostly zero at its end, so that is
//! left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use thiserror::Error;

use super::What;
use crate::request::RequestId;

/// The most bytes that one event may stand for: more than any request has.
const LEN_MAX: u64 = 64 << 20;

/// A `bytes` event that cannot be read.
#[derive(Debug, Error)]
#[error("the data of a `bytes` event is not {len} bytes of base64")]
pub struct BadBytes {
    /// What it stands for.
    pub len: u64,
}

/// The event for `bytes` at byte `offset` of the device, written by request `id` or read.
pub fn bytes_event(id: Option<RequestId>, offset: u64, bytes: &[u8]) -> What {
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let data = STANDARD_NO_PAD.encode(&bytes[..used]);
    What::Bytes { id, offset, len: bytes.len() as u64, data }
}

/// The bytes that the event stands for.
///
/// # Errors
/// Data that is no base64, or longer than `len`.
pub fn bytes_of(len: u64, data: &str) -> Result<Vec<u8>, BadBytes> {
    let bad = |_| BadBytes { len };
    let mut bytes = STANDARD_NO_PAD.decode(data).map_err(bad)?;
    if len > LEN_MAX || bytes.len() as u64 > len {
        return Err(BadBytes { len });
    }
    bytes.resize(len as usize, 0);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back() {
        for bytes in [&[][..], &[0; 4096], &[1, 2, 0, 3, 0, 0]] {
            let What::Bytes { len, data, .. } = bytes_event(None, 0, bytes) else {
                panic!("another event");
            };
            assert_eq!(bytes_of(len, &data).unwrap(), bytes);
        }
        assert!(bytes_of(1, "AAAA").is_err(), "too long");
        assert!(bytes_of(9, "?").is_err());
        assert!(bytes_of(u64::MAX, "AAAA").is_err());
    }
}
