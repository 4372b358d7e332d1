//! Decoys: empty memory in place of guest memory that must not be mapped here.
//!
//! In: the descriptors of a message that brings guest memory. Out: the same, with every file of a
//! FUSE file system replaced by an anonymous file of its size.
//! Must not know: regions, addresses.
//!
//! A page server exports the memory of an NVDIMM as a FUSE file, and the front-end of the link
//! disk that it serves as well hands it that file back as guest memory. A process that maps a
//! file which it serves itself can wait for itself, and cannot end: closing the mapping waits for
//! an answer that only it could give. No honest driver puts a ring or a buffer into an NVDIMM; one
//! that does finds zeroes there.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, fstat, fstatfs, ftruncate, memfd_create};

/// `FUSE_SUPER_MAGIC` of linux/magic.h.
const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;

/// Replaces every descriptor of a FUSE file.
pub(super) fn replace(fds: &mut [OwnedFd]) -> io::Result<()> {
    for fd in fds {
        if is_fuse(&*fd)? {
            *fd = decoy(&*fd)?;
        }
    }
    Ok(())
}

fn is_fuse(fd: impl AsFd) -> io::Result<bool> {
    Ok(fstatfs(fd)?.f_type as u64 == FUSE_SUPER_MAGIC)
}

/// Memory of the same size; pages that nobody touches take no room.
fn decoy(of: impl AsFd) -> io::Result<OwnedFd> {
    let bytes = u64::try_from(fstat(of)?.st_size).unwrap_or_default();
    let memory = memfd_create("racegate-decoy", MemfdFlags::CLOEXEC)?;
    ftruncate(&memory, bytes)?;
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_memory_stays() {
        let memory = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        let inode = fstat(&memory).unwrap().st_ino;
        let mut fds = [memory];
        replace(&mut fds).unwrap();
        assert_eq!(fstat(&fds[0]).unwrap().st_ino, inode);
    }

    #[test]
    fn a_decoy_has_the_size_of_what_it_replaces() {
        let memory = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, 12_345).unwrap();
        let other = decoy(&memory).unwrap();
        assert_eq!(fstat(&other).unwrap().st_size, 12_345);
        assert_ne!(fstat(&other).unwrap().st_ino, fstat(&memory).unwrap().st_ino);
    }
}
