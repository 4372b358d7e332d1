//! Cache lines: the instructions that write them back, and stores that bypass them.
//!
//! In: addresses that the caller vouches for. Out: instructions.
//! Must not know: files, protocols.
//!
//! Intel SDM, volume 1, 11.4.4 and volume 2 (CLWB, CLFLUSHOPT, CLFLUSH, MOVNTDQ, SFENCE). On other
//! processors there is none of this, and mappings fall back to msync().

/// Bytes of a cache line.
pub const LINE_BYTES: u64 = 64;

/// The best instruction of this processor to write a cache line back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteBack {
    /// CLWB: the line may stay in the cache; several at once.
    Clwb,
    /// CLFLUSHOPT: the line leaves the cache; several at once.
    ClflushOpt,
    /// CLFLUSH: the line leaves the cache; one after the other.
    Clflush,
}

#[cfg(target_arch = "x86_64")]
impl WriteBack {
    /// What CPUID says (leaf 7, EBX bits 24 and 23); `CLFLUSH` is part of x86-64.
    pub fn detect() -> Option<WriteBack> {
        use std::arch::x86_64::{__cpuid_count, __get_cpuid_max};

        let (highest, _) = __get_cpuid_max(0);
        let features = if highest >= 7 { __cpuid_count(7, 0).ebx } else { 0 };
        Some(if features & 1 << 24 != 0 {
            WriteBack::Clwb
        } else if features & 1 << 23 != 0 {
            WriteBack::ClflushOpt
        } else {
            WriteBack::Clflush
        })
    }

    /// Starts to write back the lines from `at` on.
    ///
    /// # Safety
    /// `at` is aligned to a line and mapped for `len` bytes, a multiple of a line; `self` is from
    /// [`WriteBack::detect`].
    pub(super) unsafe fn lines(self, at: *const u8, len: usize) {
        use std::arch::asm;

        for skip in (0..len).step_by(LINE_BYTES as usize) {
            let line = at.wrapping_add(skip);
            // SAFETY: mapped, as the caller vouches for; the instructions exist, as `detect`
            // found; they change no contents, only where they are. The compiler takes the
            // assembler to read memory, so that stores before it stay before it.
            unsafe {
                match self {
                    WriteBack::Clwb => {
                        asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags));
                    }
                    WriteBack::ClflushOpt => {
                        asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags));
                    }
                    WriteBack::Clflush => std::arch::x86_64::_mm_clflush(line),
                }
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl WriteBack {
    /// None is known for this processor.
    pub fn detect() -> Option<WriteBack> {
        None
    }

    /// Never called: `detect` gives nothing to call it on.
    ///
    /// # Safety
    /// As on x86-64.
    pub(super) unsafe fn lines(self, _at: *const u8, _len: usize) {}
}

/// Waits until lines that were written back, and streams, are out of the processor (SFENCE).
pub(super) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

/// Copies whole lines past the cache (MOVNTDQ).
///
/// # Safety
/// `to` is aligned to a line; both are valid for `len` bytes, a multiple of a line, and do not
/// overlap.
#[cfg(target_arch = "x86_64")]
#[expect(clippy::cast_ptr_alignment, reason = "loads need none, the destination has it")]
pub(super) unsafe fn stream(to: *mut u8, from: *const u8, len: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};

    for skip in (0..len).step_by(LINE_BYTES as usize) {
        // SAFETY: inside both ranges, as the caller vouches for; SSE2 is part of x86-64.
        unsafe {
            let from = from.add(skip).cast::<__m128i>();
            let to = to.add(skip).cast::<__m128i>();
            let line = [
                _mm_loadu_si128(from),
                _mm_loadu_si128(from.add(1)),
                _mm_loadu_si128(from.add(2)),
                _mm_loadu_si128(from.add(3)),
            ];
            for (i, part) in line.into_iter().enumerate() {
                _mm_stream_si128(to.add(i), part);
            }
        }
    }
}

/// Copies; there is no way past the cache.
///
/// # Safety
/// Both are valid for `len` bytes and do not overlap.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn stream(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: as the caller vouches for.
    unsafe { std::ptr::copy_nonoverlapping(from, to, len) }
}
