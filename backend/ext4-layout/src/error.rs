//! Why a device cannot be mapped.
//!
//! In: nothing. Out: [`OpenError`]. Only what makes the whole device unreadable as ext4 is an
//! error; damage further in costs the labels of the blocks it concerns, no more.

use crate::reader::ReadError;

/// Why a device cannot be opened as ext4.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The storage failed.
    #[error("Cannot read the file system's metadata")]
    Read(#[from] ReadError),
    /// No ext4 superblock on the device or in a partition of it.
    #[error(
        "No ext4 file system found ({looked_at}); make one with mkfs.ext4, on the whole device or \
         in a partition"
    )]
    NotExt4 {
        /// What was looked at.
        looked_at: &'static str,
    },
    /// The journal is on another device (`s_journal_inum` is 0 with `has_journal`).
    #[error(
        "The file system keeps its journal on another device, which is not supported; give it an \
         internal journal with tune2fs -O ^has_journal and then tune2fs -j"
    )]
    ExternalJournal,
    /// The device itself is an external journal (`INCOMPAT_JOURNAL_DEV`).
    #[error("The device is an external journal, not a file system; use the file system's device")]
    JournalDevice,
    /// Incompatible features this crate does not know.
    #[error("Unknown incompatible features {bits:#x} in s_feature_incompat")]
    Unsupported {
        /// The unknown bits of `s_feature_incompat`.
        bits: u32,
    },
    /// A field of the superblock is impossible.
    #[error("The superblock is damaged: {field} is {value}; run e2fsck on the file system")]
    Corrupt {
        /// The field's name in `struct ext4_super_block`.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}
