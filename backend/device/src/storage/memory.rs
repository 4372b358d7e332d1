//! A disk in memory: fast, sparse, gone with the process.
//!
//! In: operations. Out: results, on the spot.
//! Must not know: virtqueues, requests.

use std::sync::Arc;

use rustix::io::Errno;

use super::mapping::Mapping;
use super::{Channel, Io, IoResult, SECTOR_BYTES, Storage, StorageError, Submitted};

/// A disk in memory, all zeroes at first.
#[derive(Debug)]
pub struct MemoryStorage {
    mapping: Arc<Mapping>,
    sectors: u64,
}

impl MemoryStorage {
    /// A disk of `bytes` bytes, a multiple of 512.
    pub fn new(bytes: u64) -> Result<MemoryStorage, StorageError> {
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(StorageError::Size { bytes });
        }
        let mapping = Arc::new(Mapping::new(bytes, true)?);
        Ok(MemoryStorage { mapping, sectors: bytes / SECTOR_BYTES })
    }
}

impl Storage for MemoryStorage {
    fn capacity_sectors(&self) -> u64 {
        self.sectors
    }

    fn channel(&self) -> Result<Box<dyn Channel>, StorageError> {
        Ok(Box::new(MemoryChannel { mapping: self.mapping.clone() }))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.mapping.read_slice(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.mapping.write_slice(offset, bytes)
    }

    fn sync(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn reset(&self) -> Result<(), StorageError> {
        let bytes = self.mapping.len();
        self.mapping.zero(0, bytes).map_err(|source| StorageError::Memory { bytes, source })
    }
}

struct MemoryChannel {
    mapping: Arc<Mapping>,
}

impl MemoryChannel {
    fn run(&self, io: &Io) -> IoResult {
        match io {
            Io::Read { offset, to } => self.mapping.read(*offset, to, 0, to.len()),
            Io::Write { offset, from, .. } => self.mapping.write(*offset, from, 0, from.len()),
            Io::Flush => Ok(()),
            Io::Discard { offset, len } | Io::WriteZeroes { offset, len, .. } => {
                self.mapping.zero(*offset, *len)
            }
        }
    }
}

impl Channel for MemoryChannel {
    fn at_once(&mut self, io: &mut Io) -> Option<IoResult> {
        Some(self.run(io))
    }

    fn soon(&self, offset: u64, len: u64) {
        self.mapping.prefetch(offset, len);
    }

    fn submit(&mut self, _token: u64, io: Io) -> Submitted {
        Submitted::Done(self.run(&io))
    }
}
