//! A hint to the processor: that line will be read soon.
//!
//! In: an address, of anything. Out: nothing that can be observed but time.
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
