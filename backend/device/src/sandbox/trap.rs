//! What happens at a forbidden system call: a line that names it, and the end.
//!
//! In: SIGSYS. Out: the line on standard error; the process ends by that signal.
//! Must not know: which calls are forbidden.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use syscalls::Sysno;

/// Where the kernel puts the number of the call (`_sigsys._syscall` of siginfo_t, on 64-bit
/// machines: three `int`s, padding, a pointer).
const NUMBER_OFFSET: usize = 24;

/// Has forbidden system calls end the process with a line.
pub(super) fn install() -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeroes is a valid sigaction; the handler has the signature that SA_SIGINFO asks
    // for, and calls async-signal-safe functions only.
    let installed = unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = on_forbidden as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        libc::sigaction(libc::SIGSYS, action, ptr::null_mut())
    };
    if installed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_forbidden(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a whole siginfo_t to a handler with SA_SIGINFO.
    let number = unsafe { info.byte_add(NUMBER_OFFSET).cast::<libc::c_int>().read() };
    let name = usize::try_from(number).ok().and_then(Sysno::new).map_or("unknown", |of| of.name());
    let mut line = Line::default();
    line.text("sandbox: the system call ");
    line.text(name);
    line.text(" (");
    line.number(number.unsigned_abs());
    line.text(") is not allowed here, the daemon ends; --sandbox=off runs it without a sandbox\n");
    // SAFETY: plain system calls; `line` outlives them. With the default action in place the
    // second SIGSYS ends the process.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len);
        libc::signal(libc::SIGSYS, libc::SIG_DFL);
        libc::syscall(
            libc::SYS_tgkill,
            libc::getpid(),
            libc::syscall(libc::SYS_gettid),
            libc::SIGSYS,
        );
        libc::_exit(128 + libc::SIGSYS);
    }
}

/// A line put together without an allocation.
struct Line {
    bytes: [u8; 192],
    len: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line { bytes: [0; 192], len: 0 }
    }
}

impl Line {
    fn text(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(room) = self.bytes.get_mut(self.len) {
                *room = byte;
                self.len += 1;
            }
        }
    }

    fn number(&mut self, number: u32) {
        if number > 9 {
            self.number(number / 10);
        }
        let digit = [b'0' + (number % 10) as u8];
        self.text(std::str::from_utf8(&digit).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::Line;

    #[test]
    fn a_line_is_put_together_and_never_overflows() {
        let mut line = Line::default();
        line.text("socket (");
        line.number(41);
        line.text(")");
        assert_eq!(&line.bytes[..line.len], b"socket (41)");
        line.text(&"x".repeat(400));
        assert_eq!(line.len, line.bytes.len());
    }
}
