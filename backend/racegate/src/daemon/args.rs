//! The part of the command line that every daemon has.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::ValueEnum;
use device::sandbox;

use super::Log;

/// Options of every daemon.
#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    /// Where the guest's writes go
    #[arg(long, value_enum, default_value_t = StorageKind::File)]
    pub(crate) storage: StorageKind,

    /// Rules to begin with, TOML
    #[arg(long, value_name = "FILE")]
    pub(crate) rules: Option<PathBuf>,

    /// Seed of every random draw of the rules
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Take commands on this Unix socket (`racegate ctl`)
    #[arg(long, value_name = "PATH")]
    pub(crate) control_socket: Option<PathBuf>,

    /// Serve the link disk, to the agent in the guest, on this Unix socket
    #[arg(long, value_name = "PATH")]
    pub(crate) link_socket: Option<PathBuf>,

    /// Write every event to this file, one JSON object a line; an existing file is replaced
    #[arg(long, value_name = "FILE")]
    pub(crate) event_log: Option<PathBuf>,

    /// Tell Prometheus everything that `racegate ctl stats` tells, over HTTP on this Unix socket
    #[arg(long, value_name = "PATH", conflicts_with = "metrics")]
    pub(crate) metrics_socket: Option<PathBuf>,

    /// The same on a TCP port, like 127.0.0.1:9600
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,

    /// Log to standard error as `text` or `json`, maybe with a filter as RUST_LOG has it:
    /// `json:debug`
    #[arg(long, value_name = "FORM[:LEVEL]", default_value = "text", hide_default_value = true)]
    pub(crate) log: Log,

    /// Give up everything that serving does not need; `log` only has the kernel log what would be
    /// forbidden
    #[arg(long, value_enum, default_value_t = SandboxKind::On)]
    pub(crate) sandbox: SandboxKind,

    /// Write "ready" and a newline to this inherited file descriptor once everything is served
    #[arg(long, value_name = "FDNUM")]
    pub(crate) ready_fd: Option<i32>,
}

/// How much of the sandbox there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SandboxKind {
    /// No file can be opened, no program started, and each thread has the system calls of its role
    On,
    /// Nothing is forbidden; the kernel's log has what would be
    Log,
    /// None
    Off,
}

impl SandboxKind {
    /// What the device layer calls it; `None` for none.
    pub(crate) fn mode(self) -> Option<sandbox::Mode> {
        match self {
            SandboxKind::On => Some(sandbox::Mode::On),
            SandboxKind::Log => Some(sandbox::Mode::Log),
            SandboxKind::Off => None,
        }
    }
}

/// Where the bytes of the device are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StorageKind {
    /// In the image
    File,
    /// In memory; the image is copied at the start
    Memory,
    /// In memory where the guest wrote, else in the image, which stays as it is
    Overlay,
}
