//! Where the bytes of a device come from.
//!
//! In: a byte offset. Out: bytes. The one door through which I/O enters this crate.
//! Must not know: files, sockets, overlays.

use std::error::Error;

/// Random access to the bytes of the whole device.
pub trait ReadAt {
    /// Fills `buf` with the bytes that start `offset` bytes into the device.
    ///
    /// # Errors
    /// The storage failed, or the range ends beyond the device.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError>;
}

/// A read of the device that failed.
#[derive(Debug, thiserror::Error)]
#[error("Cannot read {length} bytes at byte {offset} of the device")]
pub struct ReadError {
    /// First byte, from the start of the device.
    pub offset: u64,
    /// Length in bytes.
    pub length: usize,
    /// Why.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// Bytes in memory are a device.
impl ReadAt for &[u8] {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let found = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buf.len())?))
            .ok_or_else(|| ReadError {
                offset,
                length: buf.len(),
                source: format!("the device has {} bytes", self.len()).into(),
            })?;
        buf.copy_from_slice(found);
        Ok(())
    }
}
