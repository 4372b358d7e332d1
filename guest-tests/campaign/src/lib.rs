//! Campaigns: kernels, virtual machines, plans, trials, statistics, verdicts.

pub mod apt;
pub mod backend;
pub mod cache;
pub mod device;
pub mod differential;
pub mod guest;
pub mod image;
pub mod initramfs;
pub mod interrupt;
pub mod kernels;
pub mod latency;
pub mod link;
pub mod notice;
pub mod oracle;
pub mod plan;
pub mod process;
pub mod progress;
pub mod qemu;
pub mod report;
pub mod runner;
pub mod setup;
pub mod stats;
pub mod stores;
pub mod timeline;
pub mod verdict;
