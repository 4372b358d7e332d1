//! A mapping: sparse anonymous memory as large as a disk, shared by queue threads without a lock.
//!
//! In: ranges and segments. Out: bytes, as torn between concurrent writers as on a real disk.
//! Must not know: which parts are meaningful (memory disk: all; overlay: its own pages).

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::StorageError;
use crate::prefetch::prefetch_start;
use crate::segments::Segments;

/// Page size of the mapping; 4 KiB pages on every platform that runs this.
pub(super) const PAGE: u64 = 4096;

/// Writes of that many bytes, and more, go past the caches: they would fetch what they overwrite,
/// and a guest keeps what it has written in its own cache.
const PAST_CACHE_BYTES: u64 = 16 << 10;

/// Anonymous memory of a fixed length.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: u64,
}

// SAFETY: the mapping belongs to no thread. All access is by raw copies of bytes, never through
// references, and any mix of concurrently written bytes is a value, as on a disk.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes of zeroes that take room only once written to: in pieces of 2 MiB where the
    /// system has huge pages and they are wanted, which is faster, else of 4 KiB.
    pub(super) fn new(len: u64, huge: bool) -> Result<Mapping, StorageError> {
        let len = len.next_multiple_of(PAGE);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let mapped = unsafe {
            mmap_anonymous(ptr::null_mut(), len as usize, ProtFlags::READ | ProtFlags::WRITE, flags)
        };
        let base = mapped
            .and_then(|at| NonNull::new(at.cast::<u8>()).ok_or(Errno::NOMEM))
            .map_err(|source| StorageError::Memory { bytes: len, source })?;
        let advice = if huge { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        // Without the feature in the kernel there is nothing to turn on or off.
        // SAFETY: the advice changes no contents.
        let _ = unsafe { madvise(base.as_ptr().cast(), len as usize, advice) };
        Ok(Mapping { base, len })
    }

    /// Length in bytes, a multiple of [`PAGE`].
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The address of a range, if it is inside.
    fn at(&self, offset: u64, len: u64) -> Result<*mut u8, Errno> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => {
                // SAFETY: offset <= end <= self.len, the length of the mapping.
                Ok(unsafe { self.base.as_ptr().add(offset as usize) })
            }
            _ => Err(Errno::INVAL),
        }
    }

    /// Copies `len` bytes at `offset` to `to`, from its byte `skip` on.
    pub(super) fn read(
        &self,
        offset: u64,
        to: &Segments,
        skip: u64,
        len: u64,
    ) -> Result<(), Errno> {
        let at = self.at(offset, len)?;
        // SAFETY: `at` was checked for len bytes.
        unsafe { to.write_raw(skip, at, len as usize) };
        Ok(())
    }

    /// Copies `len` bytes of `from`, from its byte `skip` on, to `offset`.
    pub(super) fn write(
        &self,
        offset: u64,
        from: &Segments,
        skip: u64,
        len: u64,
    ) -> Result<(), Errno> {
        let at = self.at(offset, len)?;
        // SAFETY: `at` was checked for len bytes.
        unsafe {
            if len < PAST_CACHE_BYTES {
                from.read_raw(skip, at, len as usize);
            } else {
                from.read_raw_past_cache(skip, at, len as usize);
            }
        }
        Ok(())
    }

    /// Has the processor fetch the first bytes of a range into its cache, while it does something
    /// else; where a transfer begins, it waits longest.
    pub(super) fn prefetch(&self, offset: u64, len: u64) {
        if let Ok(at) = self.at(offset, len) {
            prefetch_start(at, len);
        }
    }

    /// Copies bytes at `offset` to `buf`.
    pub(super) fn read_slice(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let at = self.at(offset, buf.len() as u64)?;
        // SAFETY: `at` was checked for buf.len() bytes; `buf` is ours alone.
        unsafe { ptr::copy_nonoverlapping(at, buf.as_mut_ptr(), buf.len()) };
        Ok(())
    }

    /// Copies `bytes` to `offset`.
    pub(super) fn write_slice(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let at = self.at(offset, bytes.len() as u64)?;
        // SAFETY: `at` was checked for bytes.len() bytes; a slice of ours is not in the mapping.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
        Ok(())
    }

    /// Makes a range zero; whole pages give their room back.
    pub(super) fn zero(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.at(offset, len)?;
        let end = offset + len;
        let (first, last) = (offset.next_multiple_of(PAGE), end / PAGE * PAGE);
        if first >= last {
            return self.fill_zero(offset, end);
        }
        self.fill_zero(offset, first)?;
        let at: *mut c_void = self.at(first, last - first)?.cast();
        // SAFETY: whole pages inside the mapping; private anonymous memory reads as zero after.
        unsafe { madvise(at, (last - first) as usize, Advice::LinuxDontNeed) }?;
        self.fill_zero(last, end)
    }

    fn fill_zero(&self, from: u64, to: u64) -> Result<(), Errno> {
        let at = self.at(from, to - from)?;
        // SAFETY: `at` was checked for the range.
        unsafe { ptr::write_bytes(at, 0, (to - from) as usize) };
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, unmapped once, and no address of it outlives `self`. Failure
        // would only leak.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len as usize) };
    }
}
