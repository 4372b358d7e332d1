//! The dirty log: one bit for each page of guest memory that the device has written to, for a
//! front-end that migrates its guest (VHOST_USER_SET_LOG_BASE, VHOST_F_LOG_ALL).
//!
//! In: a shared bitmap, guest addresses. Out: bits in it.
//! Must not know: who writes what, and when.

use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::segments::Segments;

/// Bytes that one bit stands for (VHOST_LOG_PAGE).
const LOG_PAGE: u64 = 4096;

/// A shared bitmap.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread, and is only accessed through atomics.
unsafe impl Send for DirtyLog {}
// SAFETY: as above.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// Maps `bytes` of `file` from `offset` on.
    ///
    /// # Errors
    /// The file does not have them, or the system gives no mapping.
    pub(crate) fn open(file: &File, bytes: u64, offset: u64) -> io::Result<DirtyLog> {
        let end = offset.checked_add(bytes);
        if bytes == 0 || end.is_none_or(|end| file.metadata().is_ok_and(|m| end > m.len())) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let mapped = unsafe { mmap(ptr::null_mut(), len, access, MapFlags::SHARED, file, offset) }?;
        let base = NonNull::new(mapped.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(DirtyLog { base, len })
    }

    /// Marks the pages of a range of guest-physical addresses. What the log does not cover is no
    /// business of ours.
    pub(crate) fn mark(&self, addr: u64, bytes: u64) {
        let Some(last) = bytes.checked_sub(1).and_then(|more| addr.checked_add(more)) else {
            return;
        };
        for page in addr / LOG_PAGE..=last / LOG_PAGE {
            let at = (page / 8) as usize;
            if at >= self.len {
                return;
            }
            // SAFETY: `at` is inside the mapping, which lives as long as `self`; others access it
            // at the same time, which is what atomics are for.
            let byte = unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(at)) };
            byte.fetch_or(1 << (page % 8), Ordering::Release);
        }
    }

    /// Marks what the segments of a chain name.
    pub(crate) fn mark_segments(&self, memory: &GuestMemoryMmap, segments: &Segments) {
        for part in segments.iovecs() {
            let (at, len) = (part.iov_base as u64, part.iov_len as u64);
            for region in memory.iter() {
                let base = region.as_ptr() as u64;
                // Joined segments may reach from one region into the next.
                let (from, to) = (at.max(base), (at + len).min(base + region.len()));
                if from < to {
                    self.mark(region.start_addr().raw_value() + (from - base), to - from);
                }
            }
        }
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        // SAFETY: mapped in `open`, unmapped once. Failure would only leak.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}
