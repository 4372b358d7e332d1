//! A shared, writable mapping of a file, and stores through it.
//!
//! In: a file and a length. Out: processor stores that fault as the kernel decides.
//! With `ioctl` and `background`, the only unsafe code of the agent.

use std::fs::File;
use std::io;
use std::ptr::{NonNull, null_mut};

use rustix::mm::{Advice, MapFlags, MsyncFlags, ProtFlags, madvise, mmap, msync, munmap};

/// The mapping; unmapped when dropped.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone, and it hands out no references into it:
// stores go through a raw pointer and are volatile single-byte writes, which threads may do at
// the same time as far as the processor is concerned.
unsafe impl Send for Mapping {}
// SAFETY: see `Send`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` bytes of the file; no page is touched.
    pub(crate) fn new(file: &File, bytes: u64) -> io::Result<Mapping> {
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: with a null address the kernel picks a range that nothing else uses.
        let base = unsafe { mmap(null_mut(), bytes, protection, flags, file, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Mapping { base, bytes })
    }

    /// Stores one byte. Beyond the end of the file, and when the file system cannot provide the
    /// page, the kernel answers with SIGBUS, which ends init and with it the guest.
    pub(crate) fn store(&self, offset: u64, value: u8) -> io::Result<()> {
        let offset = usize::try_from(offset).ok().filter(|&offset| offset < self.bytes);
        let offset = offset.ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: `offset` is inside the mapping, which lives as long as `self`. No Rust object
        // lives there, so any byte may be written at any time.
        unsafe { self.base.add(offset).write_volatile(value) };
        Ok(())
    }
}

impl Mapping {
    /// Stores the same byte `length` times from `offset` on; see [`Mapping::store`].
    pub(crate) fn fill(&self, offset: u64, length: u64, value: u8) -> io::Result<()> {
        self.range(offset, length)?;
        (offset..offset + length).try_for_each(|offset| self.store(offset, value))
    }

    /// msync(MS_SYNC): the file's bytes of the range are on the disk. `offset` is a multiple of
    /// the page size.
    pub(crate) fn sync(&self, offset: u64, length: u64) -> io::Result<()> {
        let (offset, length) = self.range(offset, length)?;
        // SAFETY: the range is inside the mapping, which lives as long as `self`; the call reads
        // it and changes nothing.
        Ok(unsafe { msync(self.base.add(offset).as_ptr().cast(), length, MsyncFlags::SYNC) }?)
    }

    /// Takes pages out of the address space; the file keeps them. `offset` is a multiple of the page
    /// size.
    pub(crate) fn drop_pages(&self, offset: u64, length: u64) -> io::Result<()> {
        let (offset, length) = self.range(offset, length)?;
        // SAFETY: the range is inside the mapping, which lives as long as `self`. The mapping is
        // shared: what was stored stays in the file, and the next touch finds it there.
        let dropped = unsafe {
            madvise(self.base.add(offset).as_ptr().cast(), length, Advice::LinuxDontNeed)
        };
        Ok(dropped?)
    }

    /// pwrite of `length` bytes of the mapping to a file, once; gives how many were written. The
    /// kernel reads them, not we: they may change or leave the address space meanwhile.
    pub(crate) fn write_to(
        &self,
        to: &File,
        at: u64,
        offset: u64,
        length: u64,
    ) -> io::Result<usize> {
        let (offset, length) = self.range(offset, length)?;
        // SAFETY: the range is inside the mapping, which lives as long as `self`. Nobody of this
        // process stores to it while the call runs: a workload that does races with itself, which
        // is what it is for, and only the kernel reads these bytes.
        let bytes = unsafe { std::slice::from_raw_parts(self.base.add(offset).as_ptr(), length) };
        Ok(rustix::io::pwrite(to, bytes, at)?)
    }

    fn range(&self, offset: u64, length: u64) -> io::Result<(usize, usize)> {
        let end = offset.checked_add(length).filter(|&end| end <= self.bytes as u64);
        end.ok_or(io::ErrorKind::InvalidInput)?;
        Ok((offset as usize, length as usize))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and nothing refers to it any more: `store`
        // borrows `self`, and `self` is being dropped.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "munmap of an own range: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn a_store_reaches_the_file_and_bounds_hold() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let mapping = Mapping::new(&file, 8192).unwrap();
        mapping.store(4097, 0xa5).unwrap();
        assert!(mapping.store(8192, 1).is_err());
        assert!(mapping.store(u64::MAX, 1).is_err());
        drop(mapping);
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes[4097], 0xa5);
        assert_eq!(bytes.iter().filter(|&&b| b != 0).count(), 1);
    }
}
