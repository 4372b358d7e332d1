//! Guest memory that the kernel keeps pinned for a ring of io_uring (fixed buffers).
//!
//! In: the memory map. Out: which fixed buffer a range of host memory lies in.
//! Must not know: requests, what is transferred.
//!
//! A transfer past the page cache else looks up and pins its pages each time, which takes an eighth
//! of its processor time. Pinned pages stay whatever the VMM does: those that it takes away from
//! the guest (balloon, free page reporting, virtio-mem, post-copy) and gives back as others would
//! be read and written in vain, and vhost-user has no way to ask that it does not. So this is done
//! only where the operator says that nothing of that kind happens.

use std::io;

use io_uring::Submitter;
use libc::iovec;
use smallvec::SmallVec;

use crate::segments::Snapshot;

/// Longest buffer that the kernel takes; longer regions are several.
const MOST_BYTES: usize = 1 << 30;

/// Most buffers (the kernel takes 16,384; a range is looked for among all of them).
const MOST: usize = 256;

/// What is pinned.
#[derive(Debug, Default)]
pub(super) struct Pinned {
    /// Host address and length, by the number of the buffer.
    buffers: SmallVec<[(usize, usize); 4]>,
    /// Keeps the addresses mapped while the kernel knows them.
    _memory: Option<Snapshot>,
}

impl Pinned {
    /// Pins that memory instead of what was pinned before, whose operations the kernel knows of.
    ///
    /// # Errors
    /// The kernel refuses (too much of it, or memory of another kind than it takes); then nothing
    /// is pinned.
    pub(super) fn replace(&mut self, ring: &Submitter<'_>, memory: &Snapshot) -> io::Result<()> {
        self.release(ring)?;
        let buffers = buffers(memory.host_regions());
        if buffers.is_empty() {
            return Ok(());
        }
        let iovecs: Vec<iovec> = buffers
            .iter()
            .map(|&(at, len)| iovec { iov_base: at as *mut libc::c_void, iov_len: len })
            .collect();
        // SAFETY: guest memory, which `self._memory` keeps mapped for as long as it is registered.
        unsafe { ring.register_buffers(&iovecs) }?;
        *self = Pinned { buffers, _memory: Some(memory.clone()) };
        Ok(())
    }

    /// Pins nothing any more. A ring that is closed does that later, when the kernel comes to it.
    pub(super) fn release(&mut self, ring: &Submitter<'_>) -> io::Result<()> {
        if !self.buffers.is_empty() {
            ring.unregister_buffers()?;
        }
        *self = Pinned::default();
        Ok(())
    }

    /// The number of the buffer in which that range of host memory lies as a whole.
    #[inline]
    pub(super) fn buffer(&self, range: &iovec) -> Option<u16> {
        let from = range.iov_base as usize;
        let holds = |&(at, len): &(usize, usize)| {
            from.checked_sub(at).is_some_and(|skip| skip <= len && range.iov_len <= len - skip)
        };
        self.buffers.iter().position(holds).map(|number| number as u16)
    }
}

/// Regions, cut where they are too long for one buffer.
fn buffers(regions: impl Iterator<Item = (usize, usize)>) -> SmallVec<[(usize, usize); 4]> {
    let cut = |(at, len): (usize, usize)| {
        (0..len).step_by(MOST_BYTES).map(move |skip| (at + skip, MOST_BYTES.min(len - skip)))
    };
    regions.flat_map(cut).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use io_uring::IoUring;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    fn memory(lens: &[usize]) -> Snapshot {
        let ranges: Vec<_> = lens
            .iter()
            .enumerate()
            .map(|(n, len)| (GuestAddress((n as u64) << 32), *len))
            .collect();
        Snapshot::new(Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory")))
    }

    fn range(at: usize, len: usize) -> iovec {
        iovec { iov_base: at as *mut libc::c_void, iov_len: len }
    }

    #[test]
    fn a_range_lies_in_one_buffer() {
        let ring = IoUring::new(8).expect("a ring");
        let mut pinned = Pinned::default();
        assert_eq!(pinned.buffer(&range(4096, 1)), None);
        for lens in [&[65536, 8192][..], &[4096]] {
            let memory = memory(lens);
            pinned.replace(&ring.submitter(), &memory).expect("pinned");
            for (number, (at, len)) in memory.host_regions().enumerate() {
                let number = Some(number as u16);
                assert_eq!(pinned.buffer(&range(at, len)), number);
                assert_eq!(pinned.buffer(&range(at + len - 1, 1)), number);
                assert_eq!(pinned.buffer(&range(at + len - 1, 2)), None);
                assert_eq!(pinned.buffer(&range(at + 1, usize::MAX)), None);
            }
        }
        assert_eq!(pinned.buffers.len(), 1, "the older ones are gone");
    }

    #[test]
    fn long_regions_are_cut() {
        let whole = 5 * MOST_BYTES / 2;
        let cut = buffers([(0x1000, whole), (1 << 40, 4096)].into_iter());
        assert_eq!(cut.iter().map(|(_, len)| len).sum::<usize>(), whole + 4096);
        assert_eq!(cut[1], (0x1000 + MOST_BYTES, MOST_BYTES));
        assert_eq!(cut.len(), 4);
    }

    #[test]
    fn what_the_kernel_refuses_is_not_pinned() {
        let ring = IoUring::new(8).expect("a ring");
        let mut pinned = Pinned::default();
        let memory = memory(&[4096]);
        pinned.replace(&ring.submitter(), &memory).expect("pinned");
        // Behind its back: the next one finds nothing to unregister.
        ring.submitter().unregister_buffers().expect("there were some");
        pinned.replace(&ring.submitter(), &memory).expect_err("refused");
    }
}
