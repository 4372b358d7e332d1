//! Segments: where the data of one request lies in this process.
//!
//! In: guest addresses and lengths, or a private buffer. Out: checked host addresses that stay
//! mapped as long as the value lives, whatever the front-end does to the memory map meanwhile.
//! Must not know: virtqueues, requests, storage.
//!
//! Guest memory changes under our eyes: bytes are only ever copied through raw pointers, never
//! seen through a reference.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use libc::iovec;
use smallvec::SmallVec;
use thiserror::Error;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

/// One state of the guest's memory map, kept mapped as long as any clone lives.
///
/// The outer count belongs to one queue thread, so that threads do not fight over one counter.
#[derive(Clone, Debug)]
pub struct Snapshot(Arc<Mapped>);

#[derive(Debug)]
struct Mapped {
    /// The first regions, where nearly everything lies.
    regions: SmallVec<[Region; 4]>,
    memory: Arc<GuestMemoryMmap>,
}

/// Where a region of guest memory lies in this process.
#[derive(Clone, Copy, Debug)]
struct Region {
    start: u64,
    len: u64,
    at: NonNull<u8>,
}

// SAFETY: an address of memory that belongs to no thread, kept mapped by what it lies beside.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// Regions that are looked through before the memory map is asked.
const REGIONS_MAX: usize = 8;

impl Snapshot {
    /// Wraps a memory map.
    pub fn new(memory: Arc<GuestMemoryMmap>) -> Snapshot {
        let region = |region: &GuestRegionMmap| {
            let at = region.get_host_address(MemoryRegionAddress(0)).ok()?;
            let at = NonNull::new(at)?;
            Some(Region { start: region.start_addr().0, len: region.len(), at })
        };
        let regions = memory.iter().take(REGIONS_MAX).filter_map(region).collect();
        Snapshot(Arc::new(Mapped { regions, memory }))
    }

    /// The memory map.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.0.memory
    }

    /// The host address of a range that lies in one region, mapped as long as `self` lives; `None`
    /// if it does not, or not among the first regions.
    pub(crate) fn host(&self, addr: GuestAddress, len: usize) -> Option<*mut u8> {
        self.0.regions.iter().find_map(|region| {
            let offset = addr.0.wrapping_sub(region.start);
            (offset < region.len && len as u64 <= region.len - offset).then(|| {
                // SAFETY: the offset is inside the region.
                unsafe { region.at.as_ptr().add(offset as usize) }
            })
        })
    }

    /// Copies a range out; every byte is read once. False when part of it is outside the memory.
    pub(crate) fn read(&self, addr: GuestAddress, out: &mut [u8]) -> bool {
        if let Some(at) = self.host(addr, out.len()) {
            // SAFETY: mapped for that many bytes, as `host` says; a buffer of ours is not guest
            // memory. The guest may write meanwhile: any mix of bytes is a value.
            unsafe { ptr::copy_nonoverlapping(at, out.as_mut_ptr(), out.len()) };
            return true;
        }
        self.memory().read_slice(out, addr).is_ok()
    }

    /// Host address and length of each region, all of them.
    pub(crate) fn host_regions(&self) -> impl Iterator<Item = (usize, usize)> {
        self.memory().iter().filter_map(|region| {
            let at = region.get_host_address(MemoryRegionAddress(0)).ok()?;
            Some((at as usize, region.len() as usize))
        })
    }

    /// Whether this is a snapshot of that very map.
    pub fn is_of(&self, memory: &GuestMemoryMmap) -> bool {
        ptr::eq(self.memory(), memory)
    }
}

/// A guest address range that the memory map does not (wholly) contain.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("guest address {addr:#x} with {len} bytes is outside the guest's memory")]
pub struct BadAddress {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
}

/// Bytes of our own, aligned for O_DIRECT.
#[derive(Debug)]
pub struct AlignedBuf {
    bytes: NonNull<u8>,
    len: usize,
}

// SAFETY: AlignedBuf owns its allocation; shared access is read-only unless one has `&mut`.
unsafe impl Send for AlignedBuf {}
// SAFETY: as above.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Alignment of every buffer, in bytes: no device asks for more.
    pub const ALIGN: usize = 4096;

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> AlignedBuf {
        let layout = Self::layout(len);
        // SAFETY: the layout's size is never 0 (see `layout`).
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(bytes) = NonNull::new(raw) else { handle_alloc_error(layout) };
        AlignedBuf { bytes, len }
    }

    fn layout(len: usize) -> Layout {
        match Layout::from_size_align(len.max(1), Self::ALIGN) {
            Ok(layout) => layout,
            // Only beyond isize::MAX: no request is checked in at that size.
            Err(_) => handle_alloc_error(Layout::new::<u8>()),
        }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `bytes` is an allocation of `len` initialised bytes, borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr(), self.len) }
    }

    /// The bytes, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_ptr(), self.len) }
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.bytes.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with the same layout, freed once.
        unsafe { dealloc(self.bytes.as_ptr(), Self::layout(self.len)) }
    }
}

/// What keeps the addresses valid.
#[derive(Clone, Debug)]
enum Keep {
    /// There are none.
    Nothing,
    Guest(Snapshot),
    Private {
        _buf: Arc<AlignedBuf>,
    },
}

/// The data of one request: host addresses in order, and what keeps them valid.
#[derive(Debug)]
pub struct Segments {
    iov: SmallVec<[iovec; 4]>,
    len: u64,
    keep: Keep,
}

// SAFETY: the addresses point into memory that `keep` holds and that belongs to no thread.
unsafe impl Send for Segments {}

impl Segments {
    /// No data yet; [`Segments::push_of`] adds guest ranges.
    pub(crate) fn nothing() -> Segments {
        Segments { iov: SmallVec::new(), len: 0, keep: Keep::Nothing }
    }

    /// No data yet; [`Segments::push`] adds ranges of that memory.
    pub fn guest(memory: &Snapshot) -> Segments {
        Segments { iov: SmallVec::new(), len: 0, keep: Keep::Guest(memory.clone()) }
    }

    /// The whole of a private buffer, as a source: such segments are never written to.
    pub fn private(buf: Arc<AlignedBuf>) -> Segments {
        let mut iov = SmallVec::new();
        if buf.len() > 0 {
            iov.push(iovec { iov_base: buf.as_ptr().cast(), iov_len: buf.len() });
        }
        Segments { iov, len: buf.len() as u64, keep: Keep::Private { _buf: buf } }
    }

    /// Adds a guest range; nothing is added when part of it is outside the guest's memory.
    pub fn push(&mut self, addr: GuestAddress, len: u32) -> Result<(), BadAddress> {
        let Keep::Guest(memory) = &self.keep else {
            return Err(BadAddress { addr: addr.0, len });
        };
        let memory = memory.clone();
        self.push_of(&memory, addr, len)
    }

    /// Adds a range of that memory, which is the same for all of them; otherwise as
    /// [`Segments::push`].
    pub(crate) fn push_of(
        &mut self,
        memory: &Snapshot,
        addr: GuestAddress,
        len: u32,
    ) -> Result<(), BadAddress> {
        match &self.keep {
            Keep::Nothing => self.keep = Keep::Guest(memory.clone()),
            Keep::Guest(of) if of.is_of(memory.memory()) => {}
            Keep::Guest(_) | Keep::Private { .. } => return Err(BadAddress { addr: addr.0, len }),
        }
        let before = self.iov.len();
        if let Some(at) = memory.host(addr, len as usize)
            && len > 0
        {
            self.iov.push(iovec { iov_base: at.cast(), iov_len: len as usize });
            self.len += u64::from(len);
            self.merge_from(before);
            return Ok(());
        }
        for slice in memory.memory().get_slices(addr, len as usize) {
            let Ok(slice) = slice else {
                self.iov.truncate(before);
                return Err(BadAddress { addr: addr.0, len });
            };
            let base = slice.ptr_guard_mut().as_ptr();
            self.iov.push(iovec { iov_base: base.cast(), iov_len: slice.len() });
        }
        self.len += u64::from(len);
        self.merge_from(before);
        Ok(())
    }

    /// Joins the entry at `index` to the one before it if they touch: fewer entries for the
    /// kernel, and larger aligned runs.
    fn merge_from(&mut self, index: usize) {
        if index == 0 || index >= self.iov.len() {
            return;
        }
        let next = self.iov[index];
        let last = &mut self.iov[index - 1];
        if last.iov_base as usize + last.iov_len == next.iov_base as usize {
            last.iov_len += next.iov_len;
            self.iov.remove(index);
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The host addresses, for system calls.
    pub fn iovecs(&self) -> &[iovec] {
        &self.iov
    }

    /// Whether every address and length is a multiple of `align` (a power of two).
    pub fn is_aligned(&self, align: usize) -> bool {
        self.iov.iter().all(|v| (v.iov_base as usize | v.iov_len) & (align - 1) == 0)
    }

    /// Calls `each` with the host runs that cover `len` bytes from `offset`; stops at the end.
    fn runs(&self, offset: u64, len: usize, mut each: impl FnMut(*mut u8, usize, usize)) {
        let (mut skip, mut done) = (offset, 0);
        for v in &self.iov {
            if done == len {
                return;
            }
            if skip >= v.iov_len as u64 {
                skip -= v.iov_len as u64;
                continue;
            }
            let start = skip as usize;
            skip = 0;
            let n = (v.iov_len - start).min(len - done);
            // SAFETY: start < iov_len, so the result is inside the run that `keep` holds.
            let at = unsafe { v.iov_base.cast::<u8>().add(start) };
            each(at, done, n);
            done += n;
        }
    }

    /// Copies bytes from `offset` on into `out`. Bytes past the end are left as they are.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        let to = out.as_mut_ptr();
        self.runs(offset, out.len(), |at, done, n| {
            // SAFETY: `at` is valid for n bytes (see `runs`); done + n <= out.len(). Guest
            // memory cannot overlap a buffer of ours. Bytes may change while copied: any mix is
            // a valid byte string.
            unsafe { ptr::copy_nonoverlapping(at, to.add(done), n) }
        });
    }

    /// Copies `bytes` to `offset`. What does not fit is dropped. Private segments are sources
    /// and stay as they are.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        // SAFETY: the slice is readable for its length.
        unsafe { self.write_raw(offset, bytes.as_ptr(), bytes.len()) }
    }

    /// As [`Segments::write`], from memory that may change while it is copied.
    ///
    /// # Safety
    /// `from` must be readable for `len` bytes.
    pub(crate) unsafe fn write_raw(&self, offset: u64, from: *const u8, len: usize) {
        debug_assert!(!matches!(self.keep, Keep::Private { .. }), "private segments are sources");
        if matches!(self.keep, Keep::Private { .. }) {
            return;
        }
        self.runs(offset, len, |at, done, n| {
            // SAFETY: as in `read`, the other way round; the caller vouches for `from`. `copy`
            // and not `copy_nonoverlapping`: the source may be mapped memory of any kind.
            unsafe { ptr::copy(from.add(done), at, n) }
        });
    }

    /// As [`Segments::read`], into memory that other threads may touch at the same time.
    ///
    /// # Safety
    /// `to` must be writable for `len` bytes.
    pub(crate) unsafe fn read_raw(&self, offset: u64, to: *mut u8, len: usize) {
        self.runs(offset, len, |at, done, n| {
            // SAFETY: as in `write_raw`, the other way round.
            unsafe { ptr::copy(at, to.add(done), n) }
        });
    }

    /// As [`Segments::read_raw`], past the caches: for what will not be read soon.
    ///
    /// # Safety
    /// As [`Segments::read_raw`].
    pub(crate) unsafe fn read_raw_past_cache(&self, offset: u64, to: *mut u8, len: usize) {
        self.runs(offset, len, |at, done, n| {
            // SAFETY: as in `read_raw`.
            unsafe { stream(at, to.add(done), n) }
        });
    }

    /// Zeroes `len` bytes from `offset` on.
    pub fn zero(&self, offset: u64, len: usize) {
        debug_assert!(!matches!(self.keep, Keep::Private { .. }), "private segments are sources");
        if matches!(self.keep, Keep::Private { .. }) {
            return;
        }
        self.runs(offset, len, |at, _, n| {
            // SAFETY: `at` is valid for n bytes (see `runs`).
            unsafe { ptr::write_bytes(at, 0, n) }
        });
    }

    /// Drops the first `n` bytes, at most all.
    pub fn advance(&mut self, n: u64) {
        let mut left = n.min(self.len);
        self.len -= left;
        let mut whole = 0;
        for v in &mut self.iov {
            if left < v.iov_len as u64 {
                // SAFETY: left < iov_len: still inside the run.
                v.iov_base = unsafe { v.iov_base.cast::<u8>().add(left as usize) }.cast();
                v.iov_len -= left as usize;
                break;
            }
            left -= v.iov_len as u64;
            whole += 1;
        }
        self.iov.drain(..whole);
    }

    /// The `len` bytes from `offset` on, at most to the end.
    pub(crate) fn slice(&self, offset: u64, len: u64) -> Segments {
        let mut iov = SmallVec::new();
        self.runs(offset, len as usize, |at, _, n| {
            iov.push(iovec { iov_base: at.cast(), iov_len: n });
        });
        let len = iov.iter().map(|v: &iovec| v.iov_len as u64).sum();
        Segments { iov, len, keep: self.keep.clone() }
    }

    /// Drops everything past the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: u64) {
        if len < self.len {
            *self = self.slice(0, len);
        }
    }

    /// Takes the last byte away and gives its place (the status byte of a virtio-blk request).
    pub(crate) fn pop_byte(&mut self) -> Option<StatusByte> {
        let last = self.iov.last_mut()?;
        // Runs are never empty.
        last.iov_len -= 1;
        // SAFETY: iov_len is now the offset of the run's last byte.
        let at = unsafe { last.iov_base.cast::<u8>().add(last.iov_len) };
        if last.iov_len == 0 {
            self.iov.pop();
        }
        self.len -= 1;
        Some(StatusByte { at, _keep: self.keep.clone() })
    }

    /// A private copy of all the bytes.
    pub fn to_private(&self) -> Arc<AlignedBuf> {
        let mut buf = AlignedBuf::zeroed(self.len as usize);
        self.read(0, buf.as_mut_slice());
        Arc::new(buf)
    }
}

/// The place of one byte in guest memory, writable as long as it lives.
#[derive(Debug)]
pub(crate) struct StatusByte {
    at: *mut u8,
    _keep: Keep,
}

// SAFETY: as for `Segments`.
unsafe impl Send for StatusByte {}

impl StatusByte {
    /// Writes it, once: the place is given up.
    pub(crate) fn write(self, value: u8) {
        // SAFETY: `at` lies in memory that `_keep` holds; volatile, because the guest watches.
        unsafe { self.at.write_volatile(value) }
    }
}

/// Copies `n` bytes with stores that do not fetch what they overwrite (non-temporal).
///
/// # Safety
/// `from` must be readable and `to` writable for `n` bytes.
#[cfg(target_arch = "x86_64")]
#[expect(clippy::cast_ptr_alignment, reason = "loads need no alignment; stores have it")]
unsafe fn stream(from: *const u8, to: *mut u8, n: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const LINE: usize = 64;
    let first = to.align_offset(LINE).min(n);
    let lines = (n - first) / LINE;
    // SAFETY: first + 64 * lines <= n; streamed stores are aligned to 64. SSE2 is part of x86-64.
    unsafe {
        ptr::copy(from, to, first);
        for line in 0..lines {
            let at = first + line * LINE;
            let (source, target) = (from.add(at).cast::<__m128i>(), to.add(at).cast::<__m128i>());
            let words = [0, 1, 2, 3].map(|i| _mm_loadu_si128(source.add(i)));
            for (i, word) in words.into_iter().enumerate() {
                _mm_stream_si128(target.add(i), word);
            }
        }
        _mm_sfence();
        let at = first + lines * LINE;
        ptr::copy(from.add(at), to.add(at), n - at);
    }
}

/// Elsewhere an ordinary copy.
///
/// # Safety
/// `from` must be readable and `to` writable for `n` bytes.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn stream(from: *const u8, to: *mut u8, n: usize) {
    // SAFETY: the caller vouches for both.
    unsafe { ptr::copy(from, to, n) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a streamed copy is a copy, and touches nothing else.
    /// Method: every pair of alignments within a line, lengths around whole lines; the bytes on
    /// either side keep their value.
    #[test]
    fn streamed_bytes_are_all_there() {
        let source: Vec<u8> = (0..400_u32).map(|n| (n % 251) as u8).collect();
        for from in 0..64 {
            for to in 0..64 {
                for n in [0, 1, 15, 63, 64, 65, 127, 128, 191, 257] {
                    let mut target = vec![0xff_u8; 400];
                    // SAFETY: both have 400 bytes, and 63 + 257 of them are used at most.
                    unsafe { stream(source.as_ptr().add(from), target.as_mut_ptr().add(to), n) };
                    assert_eq!(target[to..to + n], source[from..from + n], "{from} {to} {n}");
                    let others = target[..to].iter().chain(&target[to + n..]);
                    assert!(others.copied().all(|byte| byte == 0xff), "{from} {to} {n}");
                }
            }
        }
    }
}
