//! A vhost-user virtio-pmem device (virtio 1.3, 5.19; device id 27): a file that a guest has as
//! persistent memory.
//!
//! In: a file, a socket. Out: the file mapped into the guest by the front-end (SHMEM_MAP), and
//! each flush request of the guest answered after an fsync() of the file.
//! Must not know: rules, file systems, who serves the file.
//!
//! Loads and stores of the guest never come here: the front-end maps the file. The file may be
//! that of a FUSE server, which then sees page faults, write-back and fsync(); it must be another
//! process, as a process that waits for its own FUSE file cannot be ended.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::Stat;
use thiserror::Error;
use tracing::{info, warn};

use crate::front_end::each_front_end;

mod connection;
mod flush;
mod mapper;
mod request;

use connection::Connection;

pub use crate::front_end::{ServeError, Transport};

/// Smallest size of the memory: what Linux can hot-plug on x86 (`PAGES_PER_SUBSECTION`, 5.3 and
/// later).
pub const MIN_BYTES: u64 = 2 << 20;

/// Where the 32-bit addresses end that firmware gives to PCI devices (SeaBIOS, `BUILD_PCIMEM_END`:
/// the I/O APIC is there).
const PCI_MEMORY_END: u64 = 0xfec0_0000;

/// Why a file cannot be persistent memory.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PmemError {
    /// It cannot be opened for reading and writing.
    #[error("cannot open {} for reading and writing", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has no bytes that could be mapped.
    #[error("{} is not a regular file; name one (truncate -s 256M FILE)", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Its size does not do.
    #[error(
        "the size of {}, {bytes} bytes, is not a power of two of at least 2 MiB, which PCI devices \
         have: change it (truncate -s {} {})",
        path.display(),
        (*bytes).max(MIN_BYTES).checked_next_power_of_two().unwrap_or(MIN_BYTES),
        path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The address given for the guest does not do.
    #[error("guest address {start:#x} is not a multiple of 2 MiB above 0 (--region-start)")]
    Start {
        /// The address.
        start: u64,
    },
}

/// Flush requests of the guest so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushes {
    /// Answered with success.
    pub done: u64,
    /// Answered with an error: fsync() failed, or the request made no sense.
    pub failed: u64,
}

/// The file, and what is known of its place in the guest.
#[derive(Debug)]
struct Region {
    file: File,
    device: u64,
    inode: u64,
    bytes: u64,
    /// Guest-physical address: as given or likely, then as the front-end told.
    start: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
}

impl Region {
    /// Whether that is our file.
    fn is(&self, stat: &Stat) -> bool {
        (stat.st_dev, stat.st_ino) == (self.device, self.inode)
    }

    /// The front-end told where it put the region; `told` is whether the driver believes the
    /// configuration.
    fn found_at(&self, start: u64, told: bool) {
        let before = self.start.swap(start, Ordering::AcqRel);
        if before == start {
            return;
        }
        info!("the guest has the memory at {start:#x}");
        if told {
            warn!(
                "the guest has the memory at {start:#x}, and was told {before:#x} (it is older than \
                 Linux 6.9): start it again, or give --region-start {start:#x}"
            );
        }
    }
}

/// Where QEMU's q35 with `SeaBIOS` puts a region of that size: as high as there is room for it
/// (seen with 16 to 512 MiB; smaller ones share the end with other devices).
fn likely_start(bytes: u64) -> u64 {
    (PCI_MEMORY_END / bytes).saturating_sub(1) * bytes
}

/// A vhost-user virtio-pmem device.
#[derive(Debug)]
pub struct PmemDevice {
    region: Arc<Region>,
}

impl PmemDevice {
    /// A device over the file at `path`. `start` is where the guest will have it: guests older
    /// than 6.9 (without VIRTIO_PMEM_F_SHMEM_REGION) read the address from the configuration
    /// before the front-end has told it. It is the same at each start of the same machine; without
    /// it the likely one is taken.
    pub fn open(path: &Path, start: Option<u64>) -> Result<PmemDevice, PmemError> {
        let open = |source| PmemError::Open { path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(open)?;
        let metadata = file.metadata().map_err(open)?;
        if !metadata.is_file() {
            return Err(PmemError::NotAFile { path: path.to_owned() });
        }
        let bytes = metadata.len();
        if bytes < MIN_BYTES || !bytes.is_power_of_two() {
            return Err(PmemError::Size { path: path.to_owned(), bytes });
        }
        if let Some(start) = start
            && (start == 0 || !start.is_multiple_of(MIN_BYTES))
        {
            return Err(PmemError::Start { start });
        }
        Ok(PmemDevice {
            region: Arc::new(Region {
                file,
                device: metadata.dev(),
                inode: metadata.ino(),
                bytes,
                start: AtomicU64::new(start.unwrap_or_else(|| likely_start(bytes))),
                done: AtomicU64::new(0),
                failed: AtomicU64::new(0),
            }),
        })
    }

    /// Serves front-ends, one after the other, until `shutdown` is readable. On return no flush
    /// is in flight.
    pub fn serve(&self, transport: Transport, shutdown: BorrowedFd<'_>) -> Result<(), ServeError> {
        each_front_end(transport, shutdown, |stream| {
            info!("front-end connected");
            let served = Connection::new(&self.region).serve(stream, shutdown);
            let Flushes { done, failed } = self.flushes();
            info!(flushes = done, failed, "front-end disconnected");
            served
        })
    }

    /// Flush requests so far, of all front-ends.
    pub fn flushes(&self) -> Flushes {
        Flushes {
            done: self.region.done.load(Ordering::Acquire),
            failed: self.region.failed.load(Ordering::Acquire),
        }
    }

    /// Guest-physical address of the memory: as given or likely, then as the front-end told.
    pub fn region_start(&self) -> u64 {
        self.region.start.load(Ordering::Acquire)
    }

    /// Size of the memory in bytes.
    pub fn bytes(&self) -> u64 {
        self.region.bytes
    }
}
