//! ext4 on-disk structures to a map from disk blocks to file-system objects.
//!
//! In: bytes of the image and of the guest's writes. Out: [`Class`] labels for ranges of sectors.
//! Must not know: virtio, rules, time, where the bytes come from.
//!
//! ```text
//!  reader ─► partition ─► superblock ─► geometry ─► descriptor ─► placed ──┐
//!                                          │            ├─► bits ──────────┤
//!                                          │            └─► inode ─► forest ─► runs ─► map
//!                                          └─► jbd2 ─► layout::{replay, journal} ─► log ┘
//! ```

#![forbid(unsafe_code)]

mod audit;
mod bits;
mod bytes;
mod class;
mod descriptor;
mod error;
mod extent;
mod forest;
mod geometry;
mod indirect;
mod inode;
mod jbd2;
mod layout;
mod log;
mod map;
mod mapping;
mod partition;
mod placed;
mod radix;
mod reader;
mod runs;
mod superblock;

pub use audit::{Commit, Contest, Facts, LogBlock, LogFormat, LogTag};
pub use class::{Class, Group, Home, Ino, Kind, Span, Tid, Written};
pub use error::OpenError;
pub use extent::{ExtentNode, NotANode};
pub use layout::{Change, Layout};
pub use map::LayoutMap;
pub use mapping::{Child, Extent};
pub use reader::{ReadAt, ReadError};
