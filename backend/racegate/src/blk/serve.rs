//! From a command line to a served disk, and back to nothing.
//!
//! In: [`Args`]. Out: when everything has ended, what went wrong, if anything.
//! Must not know: how front-ends are served.

use std::sync::Arc;

use anyhow::{Context, bail};
use device::blk::{Device, DeviceOptions, Transport};
use device::socket;
use device::storage::file::FileOptions;

use super::args::Args;
use crate::daemon::{Backend, Ready, Sockets, Sources};

/// Serves the disk until a signal, a command or the end of the only connection.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    // Inherited descriptors first: see `socket::inherited`.
    let inherited = args.fd.map(socket::inherited).transpose().context("--fd")?;
    let ready = Ready::inherited(args.common.ready_fd)?;

    let options = DeviceOptions {
        num_queues: args.num_queues,
        queue_size: args.queue_size,
        serial: args.serial.clone(),
        spare_fuse: false,
        polling: args.poll.into(),
    };
    let files =
        FileOptions { read_only: args.read_only, direct: args.direct, pin_memory: args.pin_memory };
    let mut sources = Sources::open(&args.common, &args.blk_file, files)?;
    sources.shadow = args.shadow.then(|| args.shadow_data.options());
    let storage = Arc::clone(&sources.storage);
    let mut sockets = Sockets::default();
    let transport = match (inherited, &args.socket_path) {
        (Some(fd), _) => socket::inherited_transport(fd).context("--fd")?,
        (None, Some(path)) => Transport::Listener(sockets.listen(path, "--socket-path")?),
        (None, None) => bail!("missing: --socket-path or --fd"),
    };
    let backend = Backend::start(&args.common, sources, args.num_queues, sockets)?;
    let main = Arc::new(Device::new(options, storage, Some(Arc::clone(&backend.engine)))?);
    let front = Arc::clone(&main);
    backend.serve(front, ready, "ready", |stop| main.serve(transport, stop))
}
