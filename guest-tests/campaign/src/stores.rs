//! The library that QEMU is started with so that the first store to each page of its persistent
//! memory is seen.
//!
//! In: nothing. Out: the library as a file, which the dynamic loader can map.
//! Must not know: who reads the stores.

use std::io::{self, Write as _};
use std::path::Path;

use tempfile::NamedTempFile;

/// `store-shim` as a shared library.
const SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libstore_shim.so"));

/// The library; the file is removed when this is dropped, which may be as soon as the program that
/// is preloaded with it has started.
#[derive(Debug)]
pub struct ShimFile(NamedTempFile);

impl ShimFile {
    /// Writes it to the folder for temporary files, which must not be mounted `noexec`.
    pub fn write() -> io::Result<ShimFile> {
        let mut file = tempfile::Builder::new().prefix("racegate-").suffix(".so").tempfile()?;
        file.write_all(SHIM)?;
        Ok(ShimFile(file))
    }

    /// What `LD_PRELOAD` is to be.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}
