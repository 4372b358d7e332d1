//! From a command line to a served file, and back to nothing.
//!
//! In: [`Args`]. Out: when everything has ended, what went wrong, if anything, and when.
//! Must not know: how pages are served.

use std::fs;
use std::sync::Arc;

use anyhow::Context;
use device::pmem::{self, Attributes, FRONT_BYTES, Mount, MountOptions, PageServer, check_size};
use device::storage::SECTOR_BYTES;
use device::storage::file::FileOptions;
use tracing::warn;

use super::args::Args;
use crate::daemon::{Backend, Failure, Ready, Sockets, Sources};

/// Serves the file until a signal or a command.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let (backend, server, ready) = start(args).map_err(Failure::Usage)?;
    let path = server.mount().path();
    let front = server.front();
    let line = format!("ready {}", path.display());
    Ok(backend.serve(front, ready, &line, |stop| server.serve(stop))?)
}

fn start(args: &Args) -> anyhow::Result<(Backend, PageServer, Ready)> {
    let ready = Ready::inherited(args.common.ready_fd)?;
    let image = &args.pmem_file;
    let files = FileOptions { read_only: args.read_only, ..FileOptions::default() };
    let sources = Sources::open(&args.common, image, files)?;
    let storage = Arc::clone(&sources.storage);
    let bytes = storage.capacity_sectors() * SECTOR_BYTES;
    check_size(bytes).with_context(|| image.display().to_string())?;
    if !bytes.is_multiple_of(FRONT_BYTES) {
        warn!(
            "{}: {bytes} bytes are not a multiple of 2 MiB, which QEMU's nvdimm and \
             cloud-hypervisor ask for: truncate -s {} would do",
            image.display(),
            bytes.next_multiple_of(FRONT_BYTES)
        );
    }
    let metadata = fs::metadata(image).with_context(|| image.display().to_string())?;
    // Before the first thread.
    let mount = Mount::new(&MountOptions {
        mount_point: args.mount_point.clone(),
        read_only: args.read_only,
        own_namespace: args.own_namespace,
    })?;
    let attributes =
        if mount.own_namespace() { Attributes::private() } else { Attributes::of_image(&metadata) };
    let backend = Backend::start(&args.common, sources, pmem::QUEUES, Sockets::default())?;
    let server = PageServer::start(mount, attributes, storage, Arc::clone(&backend.engine))?;
    Ok((backend, server, ready))
}
