//! ext4-layout.

#![forbid(unsafe_code)]
