//! The command line of `racegate-blk`, and nothing else.

use std::path::PathBuf;

use clap::{ArgGroup, Parser, ValueEnum};

/// A vhost-user-blk backend that delays, holds and fails requests by the ext4 object they touch
#[derive(Debug, Parser)]
#[command(
    name = "racegate-blk",
    version,
    group(ArgGroup::new("transport").required(true).args(["socket_path", "fd"])),
    after_help = "--print-capabilities prints what the program can do, as JSON, whatever else is given.\n\
                  SIGTERM and SIGINT let held requests go, flush the image and end the program.\n\
                  RUST_LOG sets what is logged to standard error (default: warn)."
)]
pub(super) struct Args {
    /// Listen for front-ends on this Unix socket, one after the other
    #[arg(long, value_name = "PATH")]
    pub(super) socket_path: Option<PathBuf>,

    /// Use this inherited Unix socket, listening or connected; a connected one is served once
    #[arg(long, value_name = "FDNUM")]
    pub(super) fd: Option<i32>,

    /// The disk image: a file or a block device
    #[arg(long, value_name = "PATH")]
    pub(super) blk_file: PathBuf,

    /// Never write to the image; the guest sees a read-only disk
    #[arg(long)]
    pub(super) read_only: bool,

    /// Virtqueues, each with a thread of its own
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(super) num_queues: u16,

    /// Largest size of a virtqueue, in descriptors; a power of two
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(super) queue_size: u16,

    /// Where the guest's writes go
    #[arg(long, value_enum, default_value_t = StorageKind::File)]
    pub(super) storage: StorageKind,

    /// Bypass the host's page cache (O_DIRECT; only with --storage file)
    #[arg(long)]
    pub(super) direct: bool,

    /// Rules to begin with, TOML
    #[arg(long, value_name = "FILE")]
    pub(super) rules: Option<PathBuf>,

    /// Seed of every random draw of the rules
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,

    /// Take commands on this Unix socket (`racegate ctl`)
    #[arg(long, value_name = "PATH")]
    pub(super) control_socket: Option<PathBuf>,

    /// Serve the link disk, to the agent in the guest, on this Unix socket
    #[arg(long, value_name = "PATH")]
    pub(super) link_socket: Option<PathBuf>,

    /// Write every event to this file, one JSON object a line; an existing file is replaced
    #[arg(long, value_name = "FILE")]
    pub(super) event_log: Option<PathBuf>,

    /// Serial number of the disk, at most 20 bytes
    #[arg(long, value_name = "TEXT", default_value = "racegate")]
    pub(super) serial: String,

    /// Write "ready" and a newline to this inherited file descriptor once sockets are listening
    #[arg(long, value_name = "FDNUM")]
    pub(super) ready_fd: Option<i32>,
}

/// Where the bytes of the disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum StorageKind {
    /// In the image
    File,
    /// In memory; the image is copied at the start
    Memory,
    /// In memory where the guest wrote, else in the image, which stays as it is
    Overlay,
}
