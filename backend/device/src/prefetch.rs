//! Hints to the processor: that will be read soon.
//!
//! In: addresses, of anything. Out: nothing that can be observed but time.
//! Must not know: what lies there.

/// Has the processor fetch the line of its cache that holds `at`, while it does something else.
/// Any address will do.
#[inline]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch accesses nothing as far as the program can tell, and never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    // Elsewhere there is no intrinsic that is stable.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Lines at the start of a range that are fetched ahead; the processor goes on by itself.
const LINES: usize = 8;

/// The same for the start of `len` bytes, where a copy of them waits longest.
#[inline]
pub(crate) fn prefetch_start(at: *const u8, len: u64) {
    for line in 0..LINES.min(len as usize / LINE) {
        prefetch(at.wrapping_add(line * LINE));
    }
}
