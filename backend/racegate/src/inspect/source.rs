//! An image file or a block device, read in place.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, ensure};
use ext4_layout::{ReadAt, ReadError};

/// An open image.
pub(super) struct Source {
    file: File,
    bytes: u64,
}

impl Source {
    pub(super) fn open(path: &Path) -> anyhow::Result<Source> {
        let cannot = || format!("Cannot read the image {}", path.display());
        let mut file = File::open(path).with_context(cannot)?;
        ensure!(
            !file.metadata().with_context(cannot)?.is_dir(),
            "{} is a folder; give an image file or a block device",
            path.display()
        );
        // A block device has no length in its metadata.
        let bytes = file.seek(SeekFrom::End(0)).with_context(cannot)?;
        ensure!(
            bytes > 0,
            "The image {} is empty; make a file system with mkfs.ext4",
            path.display()
        );
        Ok(Source { file, bytes })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl ReadAt for Source {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let length = buf.len();
        self.file.read_exact_at(buf, offset).map_err(|source| ReadError {
            offset,
            length,
            source: source.into(),
        })
    }
}
