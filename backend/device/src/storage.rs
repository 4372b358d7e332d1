//! Storage: where the bytes of a disk are.
//!
//! In: reads, writes, flushes, discards of byte ranges. Out: one result for each.
//! Must not know: virtqueues, requests, classes, rules.
//!
//! [`Storage`] is the disk, shared by all queue threads; a [`Channel`] is one thread's way to
//! it. A channel owns the data segments of an operation until the operation has ended, so guest
//! memory cannot be unmapped under it.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use rustix::io::Errno;
use thiserror::Error;

use crate::segments::{Segments, Snapshot};

pub mod file;
pub mod memory;
pub mod overlay;

mod image;
mod mapping;

/// Bytes per sector, the unit of virtio-blk whatever the block size (virtio 1.3, 5.2.6).
pub const SECTOR_BYTES: u64 = 512;

/// One operation. Offsets and lengths are in bytes, multiples of 512, inside the disk.
#[derive(Debug)]
pub enum Io {
    /// Disk to memory.
    Read {
        /// Where on the disk.
        offset: u64,
        /// Filled; its length is the length of the read.
        to: Segments,
    },
    /// Memory to disk.
    Write {
        /// Where on the disk.
        offset: u64,
        /// Stored; its length is the length of the write.
        from: Segments,
        /// Done only when it would survive a power cut.
        durable: bool,
    },
    /// Everything that was done before would survive a power cut.
    Flush,
    /// The range's content is no longer needed; it may read as anything, here as zeroes where
    /// the storage can.
    Discard {
        /// Where on the disk.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// The range reads as zeroes.
    WriteZeroes {
        /// Where on the disk.
        offset: u64,
        /// How much.
        len: u64,
        /// Its room may be given back.
        unmap: bool,
        /// Done only when it would survive a power cut.
        durable: bool,
    },
}

/// How one operation ended.
pub type IoResult = Result<(), Errno>;

/// What became of an operation that was handed to a channel.
#[derive(Debug)]
#[must_use]
pub enum Submitted {
    /// It has ended; [`Channel::reap`] will not mention it.
    Done(IoResult),
    /// [`Channel::reap`] will give its token, once.
    Pending,
}

/// A disk.
pub trait Storage: Send + Sync {
    /// Size in 512-byte sectors.
    fn capacity_sectors(&self) -> u64;

    /// Logical block size in bytes: what the guest should align to.
    fn block_size(&self) -> u32 {
        SECTOR_BYTES as u32
    }

    /// Whether writes are refused.
    fn read_only(&self) -> bool {
        false
    }

    /// Whether discard and write-zeroes do something useful.
    fn can_discard(&self) -> bool {
        !self.read_only()
    }

    /// A way to the disk for one queue thread.
    fn channel(&self) -> Result<Box<dyn Channel>, StorageError>;

    /// Fills `buf` from byte `offset`, in the calling thread; for those who look at the disk
    /// from the side (the layout parser).
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno>;

    /// Stores `bytes` at byte `offset`, in the calling thread; for those whose bytes come from
    /// elsewhere than a virtqueue (the page server).
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno>;

    /// Everything that was done before would survive a power cut; in the calling thread.
    fn sync(&self) -> Result<(), Errno>;

    /// Back to the state at the start.
    fn reset(&self) -> Result<(), StorageError> {
        Err(StorageError::Unsupported { what: "reset" })
    }

    /// Another size, in bytes; a multiple of 512.
    fn resize(&self, bytes: u64) -> Result<(), StorageError> {
        let _ = bytes;
        Err(StorageError::Unsupported { what: "resize" })
    }
}

/// One queue thread's way to a disk.
pub trait Channel: Send {
    /// Does an operation on the spot, if that needs no waiting; `None`: not, and nothing of it
    /// has been done, it is to be submitted.
    fn at_once(&mut self, io: &mut Io) -> Option<IoResult> {
        let _ = io;
        None
    }

    /// From now on operations are for that memory, those that were held excepted.
    fn follow_memory(&mut self, memory: &Snapshot) {
        let _ = memory;
    }

    /// A transfer of that range will follow soon: what it takes may be fetched ahead.
    fn soon(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// Starts an operation, or does it on the spot. Tokens in flight must differ.
    fn submit(&mut self, token: u64, io: Io) -> Submitted;

    /// Makes sure that everything submitted so far is on its way; called once per batch.
    fn flush_submissions(&mut self) {}

    /// Calls `done` for each operation that has ended since the last call.
    fn reap(&mut self, done: &mut dyn FnMut(u64, IoResult)) {
        let _ = done;
    }

    /// As [`Channel::reap`], when it is not known that there is something: costs no system call if
    /// there is not, and need not see what ends at this moment.
    fn reap_what_is_there(&mut self, done: &mut dyn FnMut(u64, IoResult)) {
        self.reap(done);
    }

    /// Readable when [`Channel::reap`] has something to give; `None` if nothing is ever pending.
    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The queue is being stopped: operations that wait for something other than a disk end now.
    fn hurry(&mut self) {}
}

/// Why a disk cannot be opened, or cannot do what was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StorageError {
    /// Opening the image failed.
    #[error("cannot open the image {}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// There is no such file.
    #[error(
        "the image {} does not exist: create it (truncate -s 1G {}) or correct the path",
        path.display(),
        path.display()
    )]
    Missing {
        /// The image.
        path: PathBuf,
    },
    /// Neither a regular file nor a block device.
    #[error("{} is {what}, not a disk image: name a regular file or a block device", path.display())]
    NotAnImage {
        /// The image.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It has no bytes.
    #[error(
        "the image {} is empty: give it a size first (truncate -s 1G {})",
        path.display(),
        path.display()
    )]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// Not whole sectors.
    #[error(
        "the size of the image {}, {bytes} bytes, is not a multiple of 512: \
         enlarge it (truncate -s {} {})",
        path.display(),
        bytes.next_multiple_of(SECTOR_BYTES),
        path.display()
    )]
    NotWholeSectors {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Writing is not permitted.
    #[error(
        "the image {} is not writable: pass --read-only, use --storage overlay, or change its permissions",
        path.display()
    )]
    NotWritable {
        /// The image.
        path: PathBuf,
    },
    /// Somebody else writes to it (or reads it while we want to write).
    #[error(
        "the image {} is in use by another process: stop it (fuser {} names it) or use another image",
        path.display(),
        path.display()
    )]
    Locked {
        /// The image.
        path: PathBuf,
    },
    /// A system call failed in a place where it should not.
    #[error("cannot {what} the image {}", path.display())]
    Image {
        /// What was tried.
        what: &'static str,
        /// The image.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// The system gave no memory for the disk.
    #[error("cannot reserve {bytes} bytes of memory for the disk")]
    Memory {
        /// How much.
        bytes: u64,
        /// Why.
        source: Errno,
    },
    /// A size that no disk has.
    #[error("{bytes} bytes is no size for this disk: it must be a multiple of 512 and above 0")]
    Size {
        /// What was asked.
        bytes: u64,
    },
    /// io_uring could not be set up for another reason than not being permitted.
    #[error("cannot set up io_uring")]
    Ring {
        /// Why.
        source: std::io::Error,
    },
    /// Eventfds or timers for the link disk could not be had.
    #[error("cannot set up the link disk")]
    Link {
        /// Why.
        source: std::io::Error,
    },
    /// The page server waits for a write-back that a rule holds.
    #[error(
        "pages are still being written back, which a rule may hold: let it go (racegate ctl \
         release) and try again"
    )]
    Busy,
    /// What was written could not be made durable.
    #[error("cannot flush the storage")]
    Sync {
        /// Why.
        source: Errno,
    },
    /// A front-end has it, and its guest cannot be told.
    #[error(
        "a front-end is connected, whose guest has the disk {found}, and cannot learn of another \
         mode: stop that machine first"
    )]
    Connected {
        /// As what.
        found: &'static str,
    },
    /// This storage cannot do that.
    #[error("this storage cannot {what}")]
    Unsupported {
        /// What was asked.
        what: &'static str,
    },
}
