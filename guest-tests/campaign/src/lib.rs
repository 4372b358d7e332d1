//! Campaigns: kernels, virtual machines, plans, trials, statistics, verdicts.

pub mod cache;
pub mod initramfs;
pub mod interrupt;
pub mod kernels;
pub mod notice;
pub mod process;
pub mod qemu;
