//! Error numbers that a rule can fail a request with, and what virtio makes of them.
//!
//! In: names. Out: [`Errno`], [`Outcome`]. Must not know: rules, requests.
//!
//! virtio-blk (virtio 1.3, section 5.2.6) has two error statuses only, so most of the number is
//! lost on the way: the guest's virtio_blk driver turns VIRTIO_BLK_S_UNSUPP into EOPNOTSUPP and
//! VIRTIO_BLK_S_IOERR into EIO (`virtblk_result` in drivers/block/virtio_blk.c, Linux 6.12).
//! The number given in the rule is kept in the log and reaches devices that can carry it.

use crate::request::Outcome;

/// An error number of Linux, generic numbering (include/uapi/asm-generic/errno*.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(i32);

/// Names and numbers of the errors that block devices report (`blk_errors` in block/blk-core.c),
/// and of the few others that drivers return.
const NAMES: [(&str, i32); 17] = [
    ("EPERM", 1),
    ("EIO", 5),
    ("ENXIO", 6),
    ("EAGAIN", 11),
    ("ENOMEM", 12),
    ("EACCES", 13),
    ("EBUSY", 16),
    ("ENODEV", 19),
    ("EINVAL", 22),
    ("ENOSPC", 28),
    ("EROFS", 30),
    ("EBADE", 52),
    ("ENODATA", 61),
    ("ENOLINK", 67),
    ("EILSEQ", 84),
    ("EOPNOTSUPP", 95),
    ("ETIMEDOUT", 110),
];

impl Errno {
    /// The error with that name.
    pub fn parse(name: &str) -> Option<Errno> {
        NAMES.iter().find(|known| known.0 == name).map(|known| Errno(known.1))
    }

    /// Every name that [`Errno::parse`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|known| known.0)
    }

    /// The number.
    pub const fn number(self) -> i32 {
        self.0
    }

    /// The name.
    pub fn name(self) -> &'static str {
        // Always found: the only way to make an `Errno` is from an entry of the table.
        NAMES.iter().find(|known| known.1 == self.0).map_or("EIO", |known| known.0)
    }
}

/// What a request that fails with this errno ends as: [`Outcome::Unsupported`] for EOPNOTSUPP,
/// [`Outcome::IoErr`] for every other number.
pub const fn outcome_of(errno: i32) -> Outcome {
    match errno {
        95 => Outcome::Unsupported,
        _ => Outcome::IoErr,
    }
}
