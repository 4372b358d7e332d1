//! A userfaultfd in write-protect mode, and nothing else that userfaultfd can do.
//!
//! In: ranges of addresses. Out: who stored first to which page of them.
//! Must not know: files, sockets.
//!
//! Only UFFDIO_REGISTER_MODE_WP is asked for. Loads never reach the reader, and a page that is in
//! no page table yet keeps its protection as a marker there (`pte_marker_uffd_wp`, Linux 5.19), so
//! that its first store is seen as a store. With minor faults registered too, such a page would be
//! reported as a minor fault first, and resolving that (UFFDIO_CONTINUE) drops the marker unless
//! UFFDIO_CONTINUE_MODE_WP is there to put it back.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use linux_raw_sys::general as abi;
use linux_raw_sys::ioctl as opcode;
use rustix::io::Errno;
use rustix::ioctl::Updater;
use rustix::mm::UserfaultfdFlags;

/// USERFAULTFD_IOC_NEW of `linux/userfaultfd.h`: `_IO(0xAA, 0x00)`.
const USERFAULTFD_IOC_NEW: libc::Ioctl = 0xaa00;

/// UFFDIO_WRITEPROTECT_MODE_WP of `linux/userfaultfd.h`, a macro that binding generators miss.
const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;

/// What an event must say: that it is a store, to which byte, by which thread; for tmpfs too.
const FEATURES: u32 = abi::UFFD_FEATURE_PAGEFAULT_FLAG_WP
    | abi::UFFD_FEATURE_WP_HUGETLBFS_SHMEM
    | abi::UFFD_FEATURE_EXACT_ADDRESS
    | abi::UFFD_FEATURE_THREAD_ID;

/// Bytes of `struct uffd_msg`.
const EVENT_BYTES: usize = 32;
/// Events that are read at once.
const EVENTS: usize = 16;

/// A store that waits until its page may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Address of the first byte stored to.
    pub address: u64,
    /// The thread, as gettid() gives it there.
    pub tid: u32,
}

/// The file descriptor. When the last copy of it is closed, protection ends and waiting stores go
/// on (`userfaultfd_release`).
#[derive(Debug)]
pub struct Uffd(OwnedFd);

impl From<OwnedFd> for Uffd {
    fn from(fd: OwnedFd) -> Uffd {
        Uffd(fd)
    }
}

impl AsFd for Uffd {
    /// Readable when stores wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Uffd {
    /// A new one for this process, and whether it sees stores in user mode only: the most that the
    /// system permits.
    pub fn open() -> rustix::io::Result<(Uffd, bool)> {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        // SAFETY: nothing is registered yet; `register` says what becomes of memory that is.
        match unsafe { rustix::mm::userfaultfd(flags) } {
            Err(Errno::PERM) => {}
            opened => return Ok((Uffd(opened?), false)),
        }
        if let Ok(fd) = from_device(flags) {
            return Ok((Uffd(fd), false));
        }
        let user_mode = UserfaultfdFlags::from_bits_retain(abi::UFFD_USER_MODE_ONLY);
        // SAFETY: as above.
        Ok((Uffd(unsafe { rustix::mm::userfaultfd(flags | user_mode) }?), true))
    }

    /// Asks for the features; EINVAL if the kernel, older than 5.19, does not have them.
    pub fn enable(&self) -> rustix::io::Result<()> {
        let mut api =
            abi::uffdio_api { api: abi::UFFD_API.into(), features: FEATURES.into(), ioctls: 0 };
        // SAFETY: UFFDIO_API reads and writes one `uffdio_api`.
        unsafe {
            rustix::ioctl::ioctl(&self.0, Updater::<{ opcode::UFFDIO_API }, _>::new(&mut api))
        }
    }

    /// Registers a mapping of this process, whole pages. No load or store changes its meaning;
    /// from the first [`Uffd::protect`] on, stores wait.
    pub fn register(&self, address: u64, bytes: u64) -> rustix::io::Result<()> {
        let mut register = abi::uffdio_register {
            range: abi::uffdio_range { start: address, len: bytes },
            mode: abi::UFFDIO_REGISTER_MODE_WP.into(),
            ioctls: 0,
        };
        // SAFETY: UFFDIO_REGISTER reads and writes one `uffdio_register`. Memory in write-protect
        // mode keeps its bytes; whoever stores to it waits for the reader.
        unsafe {
            rustix::ioctl::ioctl(
                &self.0,
                Updater::<{ opcode::UFFDIO_REGISTER }, _>::new(&mut register),
            )
        }
    }

    /// From now on the first store to each page of the range waits.
    pub fn protect(&self, address: u64, bytes: u64) -> rustix::io::Result<()> {
        self.write_protect(address, bytes, UFFDIO_WRITEPROTECT_MODE_WP)
    }

    /// Lets the stores to the range go on, those that wait and those to come.
    pub fn let_store(&self, address: u64, bytes: u64) -> rustix::io::Result<()> {
        self.write_protect(address, bytes, 0)
    }

    fn write_protect(&self, address: u64, bytes: u64, mode: u64) -> rustix::io::Result<()> {
        let range = abi::uffdio_range { start: address, len: bytes };
        let mut order = abi::uffdio_writeprotect { range, mode };
        // SAFETY: UFFDIO_WRITEPROTECT reads one `uffdio_writeprotect`, and changes no byte of the
        // range.
        unsafe {
            rustix::ioctl::ioctl(
                &self.0,
                Updater::<{ opcode::UFFDIO_WRITEPROTECT }, _>::new(&mut order),
            )
        }
    }

    /// Gives the stores that have begun to wait to `each`, the oldest first, as far as there are
    /// any now.
    pub fn read(&self, mut each: impl FnMut(Fault)) -> rustix::io::Result<()> {
        let mut buf = [0; EVENT_BYTES * EVENTS];
        loop {
            let read = match rustix::io::read(&self.0, &mut buf) {
                Ok(read) => read,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            // Another kind of event is never asked for.
            let events = buf[..read].as_chunks::<EVENT_BYTES>().0;
            events
                .iter()
                .filter(|event| u32::from(event[0]) == abi::UFFD_EVENT_PAGEFAULT)
                .for_each(|event| {
                    let address = u64::from_le_bytes(std::array::from_fn(|at| event[16 + at]));
                    let tid = u32::from_le_bytes(std::array::from_fn(|at| event[24 + at]));
                    each(Fault { address, tid });
                });
            if read < buf.len() {
                return Ok(());
            }
        }
    }
}

/// Through the device file, whose permissions say who may.
fn from_device(flags: UserfaultfdFlags) -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
    // SAFETY: the request takes its argument by value and touches no memory of ours.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags.bits()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
