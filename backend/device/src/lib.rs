//! vhost-user and virtio: the part of racegate that touches sockets, threads, clocks, files and
//! guest memory.

pub mod blk;
pub mod client;
pub mod clock;
mod completion;
mod config;
pub mod control;
mod counters;
pub mod dax;
mod dirty_log;
pub mod engine;
mod front_end;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod guarded;
mod inflight;
mod lead;
pub mod link;
pub mod metrics;
pub mod pmem;
pub mod pmem_vhost;
mod prefetch;
mod queue;
mod request;
pub mod sandbox;
pub mod segments;
pub mod sink;
pub mod socket;
pub mod stop;
pub mod storage;
pub mod stores;
pub mod timer;
mod worker;
