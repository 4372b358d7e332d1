//! The command line of `racegate-blk`, and nothing else.

use std::path::PathBuf;

use clap::{ArgGroup, Parser, ValueEnum};
use device::blk::Polling;

use crate::check::DataMode;
use crate::daemon::{CommandLine, Common, Log};

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
#[expect(clippy::struct_excessive_bools, reason = "the flags of a command line")]
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

    /// Bypass the host's page cache (O_DIRECT; only with --storage file)
    #[arg(long)]
    pub(super) direct: bool,

    /// Keep guest memory pinned for the disk's transfers, which takes less processor time. Not with a
    /// balloon, free page reporting, virtio-mem or post-copy migration: what the VMM takes from the
    /// guest and gives back as another page would be lost
    #[arg(long, requires = "direct")]
    pub(super) pin_memory: bool,

    /// When queue threads look for requests instead of sleeping
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Poll::Adaptive)]
    pub(super) poll: Poll,

    /// Serial number of the disk, at most 20 bytes
    #[arg(long, value_name = "TEXT", default_value = "racegate")]
    pub(super) serial: String,

    /// Check what the guest does to its ext4; findings go to the log, the events and the statistics.
    /// With --event-log the log also keeps the metadata, for `racegate check`
    #[arg(long)]
    pub(super) shadow: bool,

    /// What the guest's data mode promises: `writeback` leaves the order of data out
    #[arg(long, value_enum, value_name = "MODE", default_value_t = DataMode::Ordered, requires = "shadow")]
    pub(super) shadow_data: DataMode,

    #[command(flatten)]
    pub(super) common: Common,
}

/// `--poll`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Poll {
    /// Never: each request may cost a wake-up
    Off,
    /// While requests follow each other closely
    Adaptive,
    /// Always: each queue keeps a processor busy
    Always,
}

impl From<Poll> for Polling {
    fn from(poll: Poll) -> Polling {
        match poll {
            Poll::Off => Polling::Off,
            Poll::Adaptive => Polling::Adaptive,
            Poll::Always => Polling::Always,
        }
    }
}

impl CommandLine for Args {
    fn log(&self) -> Log {
        self.common.log.clone()
    }
}
