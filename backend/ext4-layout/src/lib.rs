//! ext4 on-disk structures to a map from disk blocks to file-system objects.
//!
//! In: bytes of the image and of the guest's writes. Out: [`Class`] labels for ranges of sectors.
//! Must not know: virtio, rules, time, where the bytes come from.

#![forbid(unsafe_code)]

mod class;

pub use class::{Class, Group, Home, Ino, Kind, Span, Tid, Written};
