//! Interrupts: SIGINT, SIGTERM and SIGHUP become one flag that every wait of the harness observes.
//!
//! In: signals. Out: [`requested`], a descriptor that is readable from the first signal on
//! ([`fd`]), and a [`Notice::Interrupted`] for every live inbox.
//! Must not know: what is being waited for. Nothing is killed here: a wait that is interrupted
//! returns an error, and the destructors of the virtual machine and the backend end them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::notice::Notice;

/// Shells report a program that ended by SIGINT as 128 + 2.
pub const EXIT_CODE: i32 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);
static NEXT_LISTENER: AtomicU64 = AtomicU64::new(0);
static LISTENERS: Mutex<Vec<(u64, Sender<Notice>)>> = Mutex::new(Vec::new());
static WAKE: OnceLock<Option<OwnedFd>> = OnceLock::new();

/// Takes over SIGINT, SIGTERM and SIGHUP for the whole program. Calling it again does nothing.
///
/// The second signal ends the program at once; the kernel then kills the children (see
/// [`crate::process`]).
pub fn install() -> Result<(), ctrlc::Error> {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if INSTALLED.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    ctrlc::set_handler(|| {
        if requested() {
            std::process::exit(EXIT_CODE);
        }
        request();
    })
}

/// Interrupts the program as a signal would.
pub fn request() {
    REQUESTED.store(true, Ordering::SeqCst);
    if let Some(fd) = fd() {
        // Fails only when the counter is full, and then the descriptor is readable already.
        let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
    }
    for (_, listener) in LISTENERS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = listener.send(Notice::Interrupted);
    }
}

/// Whether the operator asked the program to end.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// A descriptor that becomes readable with the first interrupt and stays so; never read it.
///
/// `None` when the process has no descriptor left for it; waits then end at their time limit.
pub fn fd() -> Option<BorrowedFd<'static>> {
    WAKE.get_or_init(|| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok())
        .as_ref()
        .map(AsFd::as_fd)
}

/// Registration of one inbox; ends when dropped.
#[derive(Debug)]
pub(crate) struct Listener(u64);

impl Listener {
    /// Sends [`Notice::Interrupted`] to `sender` on every interrupt, and now if there was one.
    pub(crate) fn new(sender: Sender<Notice>) -> Listener {
        let id = NEXT_LISTENER.fetch_add(1, Ordering::Relaxed);
        let mut listeners = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
        if requested() {
            let _ = sender.send(Notice::Interrupted);
        }
        listeners.push((id, sender));
        Listener(id)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        LISTENERS.lock().unwrap_or_else(PoisonError::into_inner).retain(|(id, _)| *id != self.0);
    }
}
