//! Every kind of storage, made the same way.

use std::path::Path;
use std::sync::Arc;

use device::storage::file::{FileOptions, FileStorage};
use device::storage::memory::MemoryStorage;
use device::storage::overlay::OverlayStorage;
use device::storage::{Channel, Storage, StorageError};
use rustix::io::Errno;

/// File storage with one kind of channel, whatever the file lies on.
struct Forced {
    file: FileStorage,
    ring: bool,
}

impl Storage for Forced {
    fn capacity_sectors(&self) -> u64 {
        self.file.capacity_sectors()
    }

    fn channel(&self) -> Result<Box<dyn Channel>, StorageError> {
        if self.ring { self.file.ring_channel() } else { Ok(self.file.blocking_channel()) }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.file.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.file.write_at(offset, bytes)
    }

    fn sync(&self) -> Result<(), Errno> {
        self.file.sync()
    }
}

/// The names of all kinds.
pub(crate) const KINDS: [&str; 6] =
    ["memory", "overlay", "file-ring", "file-direct", "file-pinned", "file-blocking"];

/// A storage of one kind over the image at `path`, which is all zeroes.
pub(crate) fn open(kind: &str, path: &Path) -> Arc<dyn Storage> {
    let opened = |options| FileStorage::open(path, options).expect("the image opens");
    let file = |direct| opened(FileOptions { direct, ..FileOptions::default() });
    match kind {
        "memory" => {
            let bytes = std::fs::metadata(path).expect("an image").len();
            Arc::new(MemoryStorage::new(bytes).expect("memory"))
        }
        "overlay" => Arc::new(OverlayStorage::open(path).expect("the image opens")),
        "file" => Arc::new(file(false)),
        "file-ring" => Arc::new(Forced { file: file(false), ring: true }),
        "file-direct" => Arc::new(file(true)),
        "file-pinned" => {
            Arc::new(opened(FileOptions { direct: true, pin_memory: true, read_only: false }))
        }
        "file-blocking" => Arc::new(Forced { file: file(false), ring: false }),
        other => panic!("{other} is no kind of storage"),
    }
}
