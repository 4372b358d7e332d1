//! Reads of a mapped file that may have lost its pages: it shrank, or its disk cannot read them.
//!
//! In: a range of a mapping, and something that reads it. Out: whether all of the range was there.
//! Must not know: what is mapped, what the bytes are for.
//!
//! The kernel answers such a read with SIGBUS, which ends a process. Here the handler puts a page
//! of zeroes where the missing one should be, so that the read goes on, and the reader is told that
//! what it has read is not what was mapped. Every other SIGBUS does what it did before.

use std::ops::Range;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence};

/// Bytes of a page.
const PAGE: usize = 4096;

/// What this thread reads now. Without a destructor, so that a signal handler may look at it.
struct Watched {
    first: AtomicUsize,
    end: AtomicUsize,
    gone: AtomicBool,
}

thread_local! {
    static WATCHED: Watched = const {
        Watched {
            first: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
        }
    };
}

/// What a SIGBUS did before, and does where it is none of ours.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Whether the handler is there, once somebody wanted it.
static INSTALLED: OnceLock<bool> = OnceLock::new();

/// A page was missing; there is a page of zeroes in its place now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// The handler is there; what [`read`] needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guarded(());

impl Guarded {
    /// Installs the handler, once in a process; `None` if the system refuses. Whoever comes
    /// meanwhile waits until it is there.
    pub(crate) fn install() -> Option<Guarded> {
        INSTALLED.get_or_init(set_handler).then_some(Guarded(()))
    }
}

fn set_handler() -> bool {
    // SAFETY: all zeroes is a valid sigaction, which the first call fills. The handler has the
    // signature that SA_SIGINFO asks for, and is async-signal-safe; it is installed after what
    // it looks at was set.
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before) != 0 {
            return false;
        }
        BEFORE.get_or_init(|| before);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) == 0
    }
}

/// Runs `read`, which reads `range`.
///
/// # Errors
/// Some of the range was missing, and reads as zeroes from now on: the mapping is of no use.
///
/// # Safety
/// The range lies in a mapping that nobody else reads, since a page of it may become another.
#[inline]
pub(crate) unsafe fn read(
    _installed: Guarded,
    range: Range<usize>,
    read: impl FnOnce(),
) -> Result<(), Gone> {
    WATCHED.with(|watched| {
        watched.first.store(range.start, Ordering::Relaxed);
        watched.end.store(range.end, Ordering::Relaxed);
        // The handler runs in this thread: it is enough that the compiler keeps the order.
        compiler_fence(Ordering::SeqCst);
        read();
        compiler_fence(Ordering::SeqCst);
        watched.end.store(0, Ordering::Relaxed);
        if watched.gone.load(Ordering::Relaxed) {
            watched.gone.store(false, Ordering::Relaxed);
            return Err(Gone);
        }
        Ok(())
    })
}

/// Whether this thread reads that address, and is told from now on that it is gone.
fn is_watched(at: usize) -> bool {
    let told = WATCHED.try_with(|watched| {
        let range = watched.first.load(Ordering::Relaxed)..watched.end.load(Ordering::Relaxed);
        let ours = range.contains(&at);
        if ours {
            watched.gone.store(true, Ordering::Relaxed);
        }
        ours
    });
    told.unwrap_or(false)
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a whole siginfo_t to a handler with SA_SIGINFO.
    let (at, sent) = unsafe { ((*info).si_addr() as usize, (*info).si_code <= 0) };
    if !sent && is_watched(at) {
        let page = (at & !(PAGE - 1)) as *mut libc::c_void;
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: plain system calls, which may be used here; errno is left as it was. The page
        // lies in a mapping of which `read` was promised that nobody else reads it.
        unsafe {
            let errno = *libc::__errno_location();
            let zeroes = libc::mmap(page, PAGE, libc::PROT_READ, flags, -1, 0);
            *libc::__errno_location() = errno;
            if zeroes != libc::MAP_FAILED {
                return;
            }
        }
    }
    // The access is tried again, or the signal sent again, without this handler.
    if let Some(before) = BEFORE.get() {
        // SAFETY: plain system calls, with what the kernel gave.
        unsafe {
            libc::sigaction(signal, before, ptr::null_mut());
            if sent {
                libc::raise(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::os::fd::AsRawFd;

    use super::*;

    /// Goal: a page that is gone is told of, and only to who reads it; then all goes on.
    /// Method: a file of two pages loses the second one, two threads read it.
    #[test]
    fn a_page_that_is_gone() {
        let guarded = Guarded::install().expect("a handler");
        let file = tempfile::tempfile().expect("a file");
        let bytes = 2 * PAGE;
        file.set_len(bytes as u64).expect("two pages");
        let last_byte = |at: usize| {
            let byte = (at + PAGE - 1) as *const u8;
            // SAFETY: inside the mapping, of which each thread has its own.
            unsafe {
                read(guarded, at..at + PAGE, || {
                    black_box(byte.read_volatile());
                })
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    // SAFETY: a new mapping at an address of the kernel's choice.
                    let at = unsafe {
                        let (shared, fd) = (libc::MAP_SHARED, file.as_raw_fd());
                        libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ, shared, fd, 0)
                    } as usize;
                    assert_ne!(at, libc::MAP_FAILED as usize);
                    assert_eq!(last_byte(at), Ok(()));
                    file.set_len(PAGE as u64).expect("shrinks");
                    assert_eq!(last_byte(at + PAGE), Err(Gone));
                    assert_eq!(last_byte(at + PAGE), Ok(()), "zeroes now");
                    assert_eq!(last_byte(at), Ok(()));
                    // SAFETY: mapped above, and no longer used.
                    unsafe { libc::munmap(at as *mut libc::c_void, bytes) };
                });
            }
        });
    }
}
