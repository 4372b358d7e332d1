//! vhost-user and virtio: the part of racegate that touches sockets, threads, clocks, files and
//! guest memory.

pub mod blk;
pub mod clock;
pub mod control;
pub mod engine;
pub mod link;
pub mod segments;
pub mod sink;
pub mod socket;
pub mod stop;
pub mod storage;
mod worker;
mod request;
mod queue;
mod config;
mod completion;
pub mod timer;
