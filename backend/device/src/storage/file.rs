//! A disk in a file or on a block device.
//!
//! In: operations. Out: their results, through io_uring where the system permits it and it is of
//! use, else by blocking calls in the queue thread.
//! Must not know: virtqueues, requests.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use tracing::warn;

use super::image::{Image, Use};
use super::{Channel, Io, IoResult, Storage, StorageError, Submitted};

mod pinned;
mod ring;
mod spot;
mod window;

use ring::RingChannel;

/// How a file is used as a disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileOptions {
    /// Refuse writes, and share the file with other readers.
    pub read_only: bool,
    /// Bypass the page cache (O_DIRECT).
    pub direct: bool,
    /// Keep guest memory pinned for the disk, where the system permits it. The VMM must not take
    /// pages from the guest meanwhile (balloon, free page reporting, virtio-mem, post-copy).
    pub pin_memory: bool,
}

/// A disk in a file.
#[derive(Debug)]
pub struct FileStorage {
    image: Arc<Image>,
    pin_memory: bool,
    warned: AtomicBool,
}

impl FileStorage {
    /// Opens, checks and locks `path`.
    pub fn open(path: &Path, options: FileOptions) -> Result<FileStorage, StorageError> {
        let how = Use { read_only: options.read_only, direct: options.direct };
        Ok(FileStorage {
            image: Arc::new(Image::open(path, how)?),
            pin_memory: options.pin_memory,
            warned: AtomicBool::new(false),
        })
    }

    /// A channel through io_uring, whatever the file lies on.
    pub fn ring_channel(&self) -> Result<Box<dyn Channel>, StorageError> {
        let channel = RingChannel::new(self.image.clone(), self.pin_memory);
        Ok(Box::new(channel.map_err(|source| StorageError::Ring { source })?))
    }

    /// A channel that blocks in [`Channel::submit`]: for files in memory, and where io_uring is
    /// not permitted.
    pub fn blocking_channel(&self) -> Box<dyn Channel> {
        Box::new(BlockingChannel { image: self.image.clone() })
    }
}

impl Storage for FileStorage {
    fn capacity_sectors(&self) -> u64 {
        self.image.sectors()
    }

    fn block_size(&self) -> u32 {
        self.image.block_size()
    }

    fn read_only(&self) -> bool {
        self.image.read_only()
    }

    fn channel(&self) -> Result<Box<dyn Channel>, StorageError> {
        // tmpfs does not promise io_uring not to wait, so every operation would go to a kernel
        // thread and back: seven times slower than a call that never waits anyway.
        if self.image.in_memory() {
            return Ok(self.blocking_channel());
        }
        match self.ring_channel() {
            Err(StorageError::Ring { source: error }) if ring::is_not_permitted(&error) => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    warn!(
                        image = %self.image.path().display(),
                        %error,
                        "io_uring is not permitted here; using blocking reads and writes, \
                         one at a time per queue"
                    );
                }
                Ok(self.blocking_channel())
            }
            other => other,
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.image.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        if self.image.read_only() { Err(Errno::ROFS) } else { self.image.write_at(offset, bytes) }
    }

    fn sync(&self) -> Result<(), Errno> {
        if self.image.read_only() { Ok(()) } else { self.image.sync() }
    }

    fn resize(&self, bytes: u64) -> Result<(), StorageError> {
        if self.image.read_only() {
            return Err(StorageError::NotWritable { path: self.image.path().to_owned() });
        }
        self.image.resize(bytes)
    }
}

/// Every operation by a system call that waits.
struct BlockingChannel {
    image: Arc<Image>,
}

impl BlockingChannel {
    fn run(&self, io: Io) -> IoResult {
        match io {
            Io::Read { offset, to } => self.image.read(offset, to),
            Io::Write { offset, mut from, durable } => self.image.write(offset, &mut from, durable),
            Io::Flush => self.image.sync(),
            Io::Discard { offset, len } => self.image.discard(offset, len),
            Io::WriteZeroes { offset, len, unmap, durable } => {
                self.image.write_zeroes(offset, len, unmap, durable)
            }
        }
    }
}

impl Channel for BlockingChannel {
    fn at_once(&mut self, io: &mut Io) -> Option<IoResult> {
        Some(self.run(std::mem::replace(io, Io::Flush)))
    }

    fn submit(&mut self, _token: u64, io: Io) -> Submitted {
        Submitted::Done(self.run(io))
    }
}
