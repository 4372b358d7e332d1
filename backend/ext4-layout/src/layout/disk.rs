//! The file system's blocks as recovery would leave them: the log's committed copies over the
//! device.

use std::collections::BTreeMap;

use crate::error::OpenError;
use crate::jbd2::MAGIC;
use crate::reader::{ReadAt, ReadError};

/// Where the newest committed copy of a block is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogCopy {
    /// The block of the device that holds the copy.
    pub(crate) at: u64,
    pub(crate) escaped: bool,
}

/// A file system's blocks, read through the log.
pub(crate) struct Disk<'a> {
    dev: &'a mut dyn ReadAt,
    base_bytes: u64,
    block_bytes: usize,
    copies: BTreeMap<u64, LogCopy>,
    /// Bytes read so far: what opening costs.
    pub(crate) bytes_read: u64,
}

impl<'a> Disk<'a> {
    pub(crate) fn new(dev: &'a mut dyn ReadAt, base_bytes: u64, block_bytes: usize) -> Disk<'a> {
        Disk { dev, base_bytes, block_bytes, copies: BTreeMap::new(), bytes_read: 0 }
    }

    /// From now on, these blocks are read from the log.
    pub(crate) fn overlay(&mut self, copies: BTreeMap<u64, LogCopy>) {
        self.copies = copies;
    }

    /// A block without regard to the log.
    pub(crate) fn raw_block(&mut self, pblk: u64) -> Result<Vec<u8>, ReadError> {
        let mut block = vec![0; self.block_bytes];
        self.read(pblk, &mut block)?;
        Ok(block)
    }

    /// A block as recovery would leave it.
    pub(crate) fn block(&mut self, pblk: u64) -> Result<Vec<u8>, OpenError> {
        let mut block = vec![0; self.block_bytes];
        self.blocks(pblk, &mut block)?;
        Ok(block)
    }

    /// Consecutive blocks as recovery would leave them; `buf` is a multiple of the block size.
    pub(crate) fn blocks(&mut self, pblk: u64, buf: &mut [u8]) -> Result<(), OpenError> {
        self.read(pblk, buf)?;
        let len = (buf.len() / self.block_bytes) as u64;
        let copies: Vec<(u64, LogCopy)> = self
            .copies
            .range(pblk..pblk.saturating_add(len))
            .map(|(at, copy)| (*at, *copy))
            .collect();
        for (at, copy) in copies {
            let start = (at - pblk) as usize * self.block_bytes;
            let block = &mut buf[start..start + self.block_bytes];
            self.read(copy.at, block)?;
            if copy.escaped {
                block[..4].copy_from_slice(&MAGIC.to_be_bytes());
            }
        }
        Ok(())
    }

    fn read(&mut self, pblk: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.bytes_read += buf.len() as u64;
        let offset = pblk.saturating_mul(self.block_bytes as u64).saturating_add(self.base_bytes);
        self.dev.read_at(offset, buf)
    }
}
