//! Every kind of storage, made the same way.

use std::path::Path;
use std::sync::Arc;

use device::storage::file::{FileOptions, FileStorage};
use device::storage::memory::MemoryStorage;
use device::storage::overlay::OverlayStorage;
use device::storage::{Channel, Storage, StorageError};
use rustix::io::Errno;

/// File storage that acts as if io_uring were not permitted.
struct Blocking(FileStorage);

impl Storage for Blocking {
    fn capacity_sectors(&self) -> u64 {
        self.0.capacity_sectors()
    }

    fn channel(&self) -> Result<Box<dyn Channel>, StorageError> {
        Ok(self.0.blocking_channel())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.0.read_at(offset, buf)
    }

    fn sync(&self) -> Result<(), Errno> {
        self.0.sync()
    }
}

/// The names of all kinds.
pub(crate) const KINDS: [&str; 5] = ["memory", "overlay", "file", "file-direct", "file-blocking"];

/// A storage of one kind over the image at `path`, which is all zeroes.
pub(crate) fn open(kind: &str, path: &Path) -> Arc<dyn Storage> {
    let file = |direct| {
        FileStorage::open(
            path,
            FileOptions {
                read_only: false,
                direct,
            },
        )
        .expect("the image opens")
    };
    match kind {
        "memory" => {
            let bytes = std::fs::metadata(path).expect("an image").len();
            Arc::new(MemoryStorage::new(bytes).expect("memory"))
        }
        "overlay" => Arc::new(OverlayStorage::open(path).expect("the image opens")),
        "file" => Arc::new(file(false)),
        "file-direct" => Arc::new(file(true)),
        "file-blocking" => Arc::new(Blocking(file(false))),
        other => panic!("{other} is no kind of storage"),
    }
}
