//! A connection to a backend with one queue and memory for its requests.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_driver::{
    VhostUser, VirtioBlkConfig, VirtioBlkQueue, VirtioBlkReqBuf, VirtioBlkTransport,
    VirtioFeatureFlags,
};
use vm_memory::{FileOffset, MmapRegion};

/// The connection, its queue of `entries`, and `bytes` that the backend has mapped.
pub(crate) fn connect<R: Copy + Default>(
    socket: &Path,
    entries: u16,
    bytes: usize,
) -> (Box<VirtioBlkTransport>, VirtioBlkQueue<'static, R>, MmapRegion) {
    let path = socket.to_str().expect("a path in UTF-8");
    let features = (VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX).bits();
    let vhost =
        VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(path, features).expect("handshake");
    let mut transport: Box<VirtioBlkTransport> = Box::new(vhost);
    let mut queue =
        VirtioBlkQueue::setup_queues(&mut *transport, 1, entries).expect("queues").remove(0);
    queue.set_used_notif_enabled(true);
    let memfd = memfd_create("blocks", MemfdFlags::CLOEXEC).expect("memory");
    ftruncate(&memfd, bytes as u64).expect("its size");
    let file = File::from(memfd);
    let raw = file.as_raw_fd();
    let arena = MmapRegion::<()>::from_file(FileOffset::new(file, 0), bytes).expect("mapping");
    transport.map_mem_region(arena.as_ptr() as usize, arena.size(), raw, 0).expect("memory");
    (transport, queue, arena)
}
