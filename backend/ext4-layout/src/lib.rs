//! ext4 on-disk structures to a map from disk blocks to file-system objects.
//!
//! In: bytes of the image and of the guest's writes. Out: [`Class`] labels for ranges of sectors.
//! Must not know: virtio, rules, time, where the bytes come from.

#![forbid(unsafe_code)]

mod class;
mod error;
mod layout;
mod map;
mod reader;

pub use class::{Class, Group, Home, Ino, Kind, Span, Tid, Written};
pub use error::OpenError;
pub use layout::{Change, Layout};
pub use map::LayoutMap;
pub use reader::{ReadAt, ReadError};
