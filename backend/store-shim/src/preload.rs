//! `mmap`, `fsync` and `fdatasync` in front of those of the C library.
//!
//! In: the calls of the process. Out: the same, and the reader is told of those that concern the
//! watched file.
//! Must not know: what the process is.
//!
//! A mapping that cannot be watched fails with EPERM after one line on standard error: a store
//! that nobody sees would make the reader's log a lie.

use std::ffi::{c_int, c_long, c_void};
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::uffd::Uffd;
use crate::wire::{DONE, MESSAGE_BYTES, Message, Step, Target, VARIABLE};

/// Pages of a mapping are registered whole.
const PAGE_BYTES: u64 = 4096;

/// How long the reader may take for an answer; it needs some microseconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A connection for each mapping. The reader takes the end of a connection for the end of the
/// process, so they are never closed.
static READERS: Mutex<Vec<UnixStream>> = Mutex::new(Vec::new());

/// # Safety
/// As mmap(2).
#[cfg_attr(feature = "preload", unsafe(no_mangle))]
pub unsafe extern "C" fn mmap(
    address: *mut c_void,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    // SAFETY: the caller's own arguments, as mmap(2) takes them.
    let at =
        unsafe { libc::syscall(libc::SYS_mmap, address, bytes, protection, flags, fd, offset) };
    let mapped = at as *mut c_void;
    let shared = matches!(flags & libc::MAP_TYPE, libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE);
    if mapped == libc::MAP_FAILED || fd < 0 || !shared || protection & libc::PROT_WRITE == 0 {
        return mapped;
    }
    let Some(target) = watched(fd) else {
        return mapped;
    };
    match announce(target, at as u64, bytes as u64, offset as u64) {
        Ok(reader) => {
            READERS.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
            mapped
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "racegate: the memory cannot be watched: {error}");
            // SAFETY: the mapping was made above and nobody has heard of it yet. errno belongs to
            // this thread.
            unsafe {
                libc::munmap(mapped, bytes);
                *libc::__errno_location() = libc::EPERM;
            }
            libc::MAP_FAILED
        }
    }
}

/// # Safety
/// As mmap(2).
#[cfg_attr(feature = "preload", unsafe(no_mangle))]
pub unsafe extern "C" fn mmap64(
    address: *mut c_void,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off64_t,
) -> *mut c_void {
    // SAFETY: as the caller's; off_t has 64 bits on every machine that this is built for.
    unsafe { mmap(address, bytes, protection, flags, fd, offset) }
}

/// fsync(2).
#[cfg_attr(feature = "preload", unsafe(no_mangle))]
pub extern "C" fn fsync(fd: c_int) -> c_int {
    flush(libc::SYS_fsync, fd)
}

/// fdatasync(2).
#[cfg_attr(feature = "preload", unsafe(no_mangle))]
pub extern "C" fn fdatasync(fd: c_int) -> c_int {
    flush(libc::SYS_fdatasync, fd)
}

/// Tells the readers first: a store that comes while the flush runs may miss it, and must be seen
/// again.
fn flush(call: c_long, fd: c_int) -> c_int {
    if watched(fd).is_some() {
        for reader in READERS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // A reader that is gone has ended its protection, and misses nothing any more.
            let _ = ask(reader, Message::Flush, None);
        }
    }
    // SAFETY: the call takes a file descriptor and touches no memory.
    (unsafe { libc::syscall(call, fd) }) as c_int
}

/// What is watched, if the file behind `fd` is it.
fn watched(fd: c_int) -> Option<&'static Target> {
    static TARGET: OnceLock<Option<Target>> = OnceLock::new();
    let read = || Target::from_variable(&std::env::var_os(VARIABLE)?);
    let target = TARGET.get_or_init(read).as_ref()?;
    if fd < 0 {
        return None;
    }
    // SAFETY: the caller of this process's mmap or fsync keeps it open during the call; if it is
    // not open, fstat says so.
    let found = rustix::fs::fstat(unsafe { BorrowedFd::borrow_raw(fd) }).ok()?;
    (found.st_dev == target.device && found.st_ino == target.inode).then_some(target)
}

/// Registers a mapping of this process and hands it to the reader. When this returns, all of it is
/// protected; the connection is to be kept for as long as the process may store there.
pub fn announce(
    target: &Target,
    address: u64,
    bytes: u64,
    file_offset: u64,
) -> io::Result<UnixStream> {
    let reader = UnixStream::connect(&target.socket)?;
    reader.set_read_timeout(Some(ANSWER_LIMIT))?;
    let bytes = bytes.next_multiple_of(PAGE_BYTES);
    match registered(address, bytes) {
        Ok((uffd, user_mode_only)) => {
            let message = Message::Mapped { address, bytes, file_offset, user_mode_only };
            ask(&reader, message, Some(&uffd))?;
            Ok(reader)
        }
        Err((step, errno)) => {
            let _ = ask(&reader, Message::Refused { step, errno: errno.raw_os_error() }, None);
            Err(errno.into())
        }
    }
}

fn registered(address: u64, bytes: u64) -> Result<(Uffd, bool), (Step, Errno)> {
    let (uffd, user_mode_only) = Uffd::open().map_err(|errno| (Step::Open, errno))?;
    uffd.enable().map_err(|errno| (Step::Features, errno))?;
    uffd.register(address, bytes).map_err(|errno| (Step::Register, errno))?;
    Ok((uffd, user_mode_only))
}

/// Sends a message, maybe with a userfaultfd, and waits until the reader has acted upon it.
pub fn ask(mut reader: &UnixStream, message: Message, with: Option<&Uffd>) -> io::Result<()> {
    let bytes: [u8; MESSAGE_BYTES] = message.encode();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = with.iter().map(|uffd| uffd.as_fd()).collect();
    if !fds.is_empty() {
        // There is room for one.
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    // The buffer of a fresh socket takes a message whole.
    let sent = sendmsg(reader, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    let mut answer = [0];
    reader.read_exact(&mut answer)?;
    if sent == MESSAGE_BYTES && answer[0] == DONE {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}
