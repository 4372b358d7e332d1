//! The supervisor: a process that does nothing until the page server is gone or tells it to, and
//! then unmounts.
//!
//! In: the mount point. Out: no mount, however the server ended.
//! Must not know: what is served.
//!
//! It learns of the server's end by the signal that the kernel sends to a child when the *thread*
//! that forked it ends (`PR_SET_PDEATHSIG`, `forget_original_parent`). A pipe or a pidfd would not
//! do: both wait for the last thread, and a server that was killed while one of its threads waited
//! for a page to be written back (`invalidate_inode_pages2_range`) has a thread that only the end
//! of the connection sets free. That end is what the supervisor brings about.
//!
//! A server that ends in good order sends the same signal itself: in its sandbox it cannot
//! unmount. The supervisor has no sandbox; it has no descriptor and takes no input but that signal.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// Tells the child that its parent is gone, or done.
const GONE: libc::c_int = libc::SIGUSR1;

/// A running supervisor.
#[derive(Debug)]
pub(super) struct Supervisor {
    child: Option<Pid>,
}

impl Supervisor {
    /// Starts one that unmounts `point` when the calling thread has ended. The process must have
    /// no other thread.
    pub(super) fn start(point: &Path) -> Result<Supervisor, Errno> {
        let point = CString::new(point.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
        let parent = rustix::process::getpid();
        // Whatever happens, the child must not end by the signal that it is to wait for.
        let before = block_gone();
        // SAFETY: the process has one thread (see `Mount::new`), so nothing the child may use is
        // in the middle of something; the child calls async-signal-safe functions only and never
        // returns.
        let forked = unsafe { libc::fork() };
        if forked != 0 {
            restore(&before);
        }
        match forked {
            -1 => {
                Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::AGAIN))
            }
            0 => watch(parent.as_raw_nonzero().get(), &point),
            child => Ok(Supervisor { child: Pid::from_raw(child) }),
        }
    }

    /// Has it unmount now, and waits until it has and is gone. `false`: it has not.
    ///
    /// The server does not unmount itself: in its sandbox it has no right to.
    pub(super) fn unmount(&mut self) -> bool {
        let Some(child) = self.child.take() else {
            return false;
        };
        let _ = kill_process(child, Signal::USR1);
        loop {
            match waitpid(Some(child), WaitOptions::empty()) {
                Ok(Some((_, status))) => return status.exit_status() == Some(0),
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return false,
            }
        }
    }
}

/// Blocks [`GONE`] in the calling thread; gives the mask that it had.
fn block_gone() -> libc::sigset_t {
    // SAFETY: plain system calls on values of this function, initialised before they are used.
    unsafe {
        let mut before = std::mem::zeroed();
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, GONE);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, &raw mut before);
        before
    }
}

fn restore(mask: &libc::sigset_t) {
    // SAFETY: a mask that `block_gone` gave.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

/// The supervisor's whole life.
fn watch(parent: libc::pid_t, point: &CString) -> ! {
    // SAFETY: plain system calls on values of this function; `set` is initialised by
    // `sigfillset` before it is used.
    unsafe {
        // Out of the terminal's and the harness's process group: what ends the server must not
        // end the one who cleans up after it.
        libc::setsid();
        let mut set = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        // The image's lock, the connection, sockets, the pipes of whoever waits for the server.
        libc::syscall(libc::SYS_close_range, 0_u32, u32::MAX, 0_u32);
        libc::chdir(c"/".as_ptr());
        libc::prctl(libc::PR_SET_NAME, c"racegate-umount".as_ptr());
        libc::prctl(libc::PR_SET_PDEATHSIG, GONE);
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, GONE);
        // It may have ended before it could be watched.
        while libc::getppid() == parent {
            if libc::sigwaitinfo(&raw const set, std::ptr::null_mut()) == GONE {
                break;
            }
        }
        // FORCE ends the connection (`fuse_umount_begin`), so nobody stays stuck; DETACH takes the
        // mount out of sight although the VMM still has the file open.
        let failed = libc::umount2(point.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) != 0;
        // EINVAL: somebody else has unmounted it.
        let gone = !failed || *libc::__errno_location() == libc::EINVAL;
        libc::_exit(i32::from(!gone))
    }
}
