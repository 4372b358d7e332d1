//! Kernels.

use std::path::PathBuf;

/// One kernel module as a file that the kernel can load as it is (not compressed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name as `lsmod` shows it: dashes are underscores.
    pub name: String,
    /// The `.ko` file on the host.
    pub path: PathBuf,
}
