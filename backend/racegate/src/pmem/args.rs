//! The command line of `racegate-pmem`, and nothing else.

use std::path::PathBuf;

use clap::Parser;

use crate::daemon::{CommandLine, Common, Log};

/// A file for a VMM to map as persistent memory, whose page faults, write-backs and flushes are
/// delayed, held and failed by the ext4 object they touch
#[derive(Debug, Parser)]
#[command(
    name = "racegate-pmem",
    version,
    after_help = "The file is DIR/pmem. The line on --ready-fd is \"ready PATH\", with the path \
                  under which other processes open it.\n\
                  Where mounting is not permitted the server takes a user and a mount namespace \
                  of its own; PATH then goes through /proc.\n\
                  SIGTERM and SIGINT let held requests go, write the guest's stores back, unmount \
                  and end the program.\n\
                  RUST_LOG sets what is logged to standard error (default: warn)."
)]
pub(super) struct Args {
    /// The image: a file or a block device, a multiple of 2 MiB
    #[arg(long, value_name = "PATH")]
    pub(super) pmem_file: PathBuf,

    /// An empty folder, in which the file appears
    #[arg(long, value_name = "DIR")]
    pub(super) mount_point: PathBuf,

    /// Never write to the image; nobody can map the file writable
    #[arg(long)]
    pub(super) read_only: bool,

    /// Mount in a namespace of our own even where it is not needed: no trace of the mount on the
    /// host
    #[arg(long)]
    pub(super) own_namespace: bool,

    #[command(flatten)]
    pub(super) common: Common,
}

impl CommandLine for Args {
    fn log(&self) -> Log {
        self.common.log.clone()
    }
}
