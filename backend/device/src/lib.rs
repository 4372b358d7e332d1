//! vhost-user and virtio: the part of racegate that touches sockets, threads, clocks, files and
//! guest memory.

pub mod engine;
