//! Why results cannot be stored or read.

use std::io;
use std::path::PathBuf;

/// The database cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Neither variable names a folder.
    #[error("No place for results: set XDG_STATE_HOME or HOME, or give --db FILE")]
    NoHome,
    /// The folder cannot be made.
    #[error("Could not make the folder {} for results; give --db FILE elsewhere", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is that of another version.
    #[error(
        "{} is a database of version {found}, and this racegate knows version 1; use the racegate \
         that made it, or give another file with --db",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// SQLite failed: the disk is full, the file is no database, or it may not be written.
    #[error("Could not use the results in {}", path.display())]
    Sql {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// There is no result of that number.
    #[error("{} has no result {id}; see racegate campaign results", path.display())]
    NoResult {
        /// The file.
        path: PathBuf,
        /// The number.
        id: i64,
    },
    /// There is no campaign of that number.
    #[error("{} has no campaign {id}; see racegate campaign results", path.display())]
    NoCampaign {
        /// The file.
        path: PathBuf,
        /// The number.
        id: i64,
    },
    /// The database to merge into is one of those that are merged.
    #[error("{} is merged into itself; give another file with --into", path.display())]
    Itself {
        /// The file.
        path: PathBuf,
    },
    /// Two databases have the same trial, with different outcomes.
    #[error(
        "{} has trial {trial} of {kernel}, arm {arm}, as another outcome than the databases before \
         it; these are not shards of one campaign",
        path.display()
    )]
    Conflict {
        /// The file.
        path: PathBuf,
        /// The kernel.
        kernel: String,
        /// The arm.
        arm: String,
        /// The trial.
        trial: u32,
    },
}
