//! `racegate pmem-vhost`: the vhost-user virtio-pmem daemon.
//!
//! In: a command line, a file: that of a page server in another process, or a plain one. Out:
//! persistent memory on a socket, until a signal or the end of the only connection.
//! Must not know: rules, file systems, what serves the file.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{ArgGroup, Parser};
use device::pmem_vhost::{PmemDevice, Transport};
use device::{sandbox, socket};

use crate::daemon::{CommandLine, Ready, SandboxKind, stop_on_signal};

/// A vhost-user virtio-pmem backend: a file as persistent memory, for QEMU 11.1 or later
#[derive(Debug, Parser)]
#[command(
    name = "racegate pmem-vhost",
    version,
    group(ArgGroup::new("transport").required(true).args(["socket_path", "fd"])),
    after_help = "QEMU: -chardev socket,id=p,path=PATH -device \
                  vhost-user-test-device-pci,chardev=p,virtio-id=27,num_vqs=1,config_size=16\n\
                  RUST_LOG sets what is logged to standard error (default: warn)."
)]
struct Args {
    /// Listen for front-ends on this Unix socket, one after the other
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    /// Use this inherited Unix socket, listening or connected; a connected one is served once
    #[arg(long, value_name = "FDNUM")]
    fd: Option<i32>,

    /// The memory: a file whose size is a power of two, at least 2 MiB
    #[arg(long, value_name = "PATH")]
    pmem_file: PathBuf,

    /// Where the guest has the memory, for guests older than Linux 6.9: an address in hexadecimal,
    /// the same at every start of the same machine [default: where QEMU's q35 most likely has it]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    region_start: Option<u64>,

    /// Give up everything that serving does not need; `log` only has the kernel log what would be
    /// forbidden
    #[arg(long, value_enum, default_value_t = SandboxKind::On)]
    sandbox: SandboxKind,

    /// Write "ready" and a newline to this inherited file descriptor once the socket is listening
    #[arg(long, value_name = "FDNUM")]
    ready_fd: Option<i32>,
}

impl CommandLine for Args {}

fn address(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|error| format!("not an address: {error}"))
}

/// Runs the daemon with a command line, program name included, and gives its exit status:
/// 0 after a clean end, 1 if it could not start or go on, 2 if the command line is wrong.
pub fn main(command_line: impl IntoIterator<Item = OsString>) -> ExitCode {
    crate::daemon::main("racegate pmem-vhost", command_line.into_iter().collect(), run)
}

fn run(args: &Args) -> anyhow::Result<()> {
    // Inherited descriptors first: see `socket::inherited`.
    let inherited = args.fd.map(socket::inherited).transpose().context("--fd")?;
    let ready = Ready::inherited(args.ready_fd)?;
    let device = PmemDevice::open(&args.pmem_file, args.region_start)?;
    let (transport, file) = match (inherited, &args.socket_path) {
        (Some(fd), _) => (socket::inherited_transport(fd).context("--fd")?, None),
        (None, Some(path)) => {
            let (listener, file) = socket::listen_at(path).context("--socket-path")?;
            (Transport::Listener(listener), Some(file))
        }
        (None, None) => bail!("missing: --socket-path or --fd"),
    };
    // Everything is open; nothing serves yet.
    if let Some(mode) = args.sandbox.mode() {
        let folders: Vec<PathBuf> = file.iter().map(|file| file.folder().to_owned()).collect();
        sandbox::enter(mode, &folders).context("--sandbox")?;
    }
    let stop = stop_on_signal()?;
    ready.tell("ready");
    device.serve(transport, stop.as_fd()).context("the memory cannot be served any longer")
}
