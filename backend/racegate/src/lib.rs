//! The programs of racegate: one module per mode of the tool, and the daemons.
//!
//! In: command lines. Out: text for people, JSON for programs, exit statuses.
//! Must not know: how a device, a guest or a model works.

pub mod bench;
pub mod bisect;
pub mod blk;
pub mod campaign;
pub mod check;
pub mod cli;
pub mod ctl;
mod daemon;
pub mod differential;
pub mod explore;
pub mod hunt;
pub mod inspect;
pub mod kernels;
pub mod latency;
pub mod merge;
pub mod minimise;
pub mod pmem;
pub mod pmem_vhost;
pub mod replay;
pub mod report;
pub mod reproduce;
pub mod rules;
pub mod setup;
pub mod stores;
pub mod top;
