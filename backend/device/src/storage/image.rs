//! An image: the open file or block device under a disk, checked and locked.
//!
//! In: a path and how it will be used. Out: a descriptor that is known to hold whole sectors and
//! that nobody else writes to, and the blocking operations on it.
//! Must not know: queues, overlays, io_uring.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use libc::iovec;
use rustix::fs::{
    FallocateFlags, FileType, FlockOperation, Mode, OFlags, fallocate, flock, fstat, fstatfs, open,
};
use rustix::io::Errno;

use super::{IoResult, SECTOR_BYTES, StorageError};
use crate::segments::{AlignedBuf, Segments};

/// Most entries of one scatter-gather call (UIO_MAXIOV).
pub(super) const IOV_MAX: usize = 1024;

/// Bytes written at a time where zeroes have to be written out.
pub(super) const ZERO_CHUNK: u64 = 1 << 20;

/// How long I/O of a dead process may still be under way.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(10);

/// TMPFS_MAGIC and RAMFS_MAGIC (linux/magic.h).
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// How an image will be used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Use {
    pub read_only: bool,
    /// Bypass the page cache (O_DIRECT).
    pub direct: bool,
}

/// An open, locked image.
#[derive(Debug)]
pub(super) struct Image {
    path: PathBuf,
    /// O_DIRECT if asked for.
    fd: OwnedFd,
    /// Through the page cache, for what O_DIRECT cannot do; only with O_DIRECT.
    buffered: Option<OwnedFd>,
    /// What O_DIRECT asks of offsets, lengths and addresses; 1 without it.
    align: u32,
    block_size: u32,
    regular: bool,
    in_memory: bool,
    read_only: bool,
    /// An open file description of its own that holds the lock: io_uring keeps those that it
    /// works on for some milliseconds after the process has ended, and the next one would find
    /// the image locked.
    _locked: OwnedFd,
    sectors: AtomicU64,
    can_punch: AtomicBool,
    can_zero: AtomicBool,
}

/// A way to make a range read as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ZeroStep {
    /// FALLOC_FL_PUNCH_HOLE: the room is given back.
    Punch,
    /// FALLOC_FL_ZERO_RANGE: the room stays.
    ZeroRange,
    /// Zeroes are written out.
    Write,
}

impl ZeroStep {
    /// The mode of fallocate(2), if it is the way.
    pub(super) fn mode(self) -> Option<FallocateFlags> {
        match self {
            ZeroStep::Punch => Some(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
            ZeroStep::ZeroRange => Some(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE),
            ZeroStep::Write => None,
        }
    }
}

/// Whether that error of fallocate(2) means "not here": another way has to do.
pub(super) fn is_unsupported(errno: Errno) -> bool {
    // EINVAL: a block device whose logical blocks are larger than the range's alignment.
    matches!(errno, Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL | Errno::PERM)
}

impl Image {
    pub(super) fn open(path: &Path, how: Use) -> Result<Image, StorageError> {
        let flags = if how.read_only { OFlags::RDONLY } else { OFlags::RDWR } | OFlags::CLOEXEC;
        let fd = open(path, flags | OFlags::NONBLOCK, Mode::empty())
            .map_err(|errno| open_error(path, errno, how))?;
        let image_error =
            |what| move |source| StorageError::Image { what, path: path.to_owned(), source };
        let stat = fstat(&fd).map_err(image_error("examine"))?;
        let regular = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => true,
            FileType::BlockDevice => false,
            other => {
                let what = describe(other);
                return Err(StorageError::NotAnImage { path: path.to_owned(), what });
            }
        };
        let locked = open(format!("/proc/self/fd/{}", fd.as_raw_fd()), flags, Mode::empty())
            .map_err(image_error("open again"))?;
        lock(locked.as_fd(), how.read_only).map_err(|errno| match errno {
            Errno::AGAIN | Errno::ACCESS => StorageError::Locked { path: path.to_owned() },
            source => StorageError::Image { what: "lock", path: path.to_owned(), source },
        })?;
        let bytes = size_of_file(fd.as_fd()).map_err(image_error("measure"))?;
        if bytes == 0 {
            return Err(StorageError::Empty { path: path.to_owned() });
        }
        if !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(StorageError::NotWholeSectors { path: path.to_owned(), bytes });
        }
        // NONBLOCK was only there so that opening a pipe does not wait.
        rustix::fs::fcntl_setfl(&fd, OFlags::empty()).map_err(image_error("prepare"))?;
        let in_memory =
            regular && IN_MEMORY.contains(&fstatfs(&fd).map_err(image_error("examine"))?.f_type);
        let mut block_size = SECTOR_BYTES as u32;
        if !regular {
            block_size = rustix::fs::ioctl_blksszget(&fd).map_err(image_error("examine"))?;
        }
        if !how.read_only {
            wait_for_predecessor(fd.as_fd(), path);
        }
        let (fd, buffered, align) = if how.direct {
            let direct = open(path, flags | OFlags::DIRECT, Mode::empty())
                .map_err(image_error("open with O_DIRECT"))?;
            let align = direct_alignment(direct.as_fd()).unwrap_or(AlignedBuf::ALIGN as u32);
            block_size = block_size.max(align);
            // An error here is one of `wait_for_predecessor` too.
            let _ = flock(&direct, FlockOperation::NonBlockingLockShared);
            (direct, Some(fd), align)
        } else {
            (fd, None, 1)
        };
        Ok(Image {
            path: path.to_owned(),
            fd,
            buffered,
            align,
            block_size,
            regular,
            in_memory,
            read_only: how.read_only,
            _locked: locked,
            sectors: AtomicU64::new(bytes / SECTOR_BYTES),
            can_punch: AtomicBool::new(true),
            can_zero: AtomicBool::new(true),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Relaxed)
    }

    pub(super) fn block_size(&self) -> u32 {
        self.block_size
    }

    pub(super) fn read_only(&self) -> bool {
        self.read_only
    }

    /// Whether its file system is memory: then no call on it ever waits for a device.
    pub(super) fn in_memory(&self) -> bool {
        self.in_memory
    }

    /// The descriptor for that transfer: past the page cache if everything is aligned.
    fn fd_for(&self, at: u64, data: &Segments) -> BorrowedFd<'_> {
        if self.fits_direct(at, data.len()) && data.is_aligned(self.align as usize) {
            self.fd()
        } else {
            self.buffered_fd()
        }
    }

    /// The descriptor for data that satisfies [`Image::fits_direct`].
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The descriptor that takes any offset, length and address.
    pub(super) fn buffered_fd(&self) -> BorrowedFd<'_> {
        self.buffered.as_ref().unwrap_or(&self.fd).as_fd()
    }

    /// Whether offset and length suit the descriptor; what is left is the addresses.
    pub(super) fn fits_direct(&self, offset: u64, len: u64) -> bool {
        (offset | len) & u64::from(self.align - 1) == 0
    }

    /// What O_DIRECT asks of addresses and lengths of segments; 1 without it.
    pub(super) fn align(&self) -> u32 {
        self.align
    }

    /// Changes the size: of a file by truncating or extending it; a block device must have it.
    pub(super) fn resize(&self, bytes: u64) -> Result<(), StorageError> {
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(StorageError::Size { bytes });
        }
        let error = |source| StorageError::Image {
            what: "change the size of",
            path: self.path.clone(),
            source,
        };
        if self.regular {
            rustix::fs::ftruncate(&self.fd, bytes).map_err(error)?;
        } else if size_of_file(self.fd()).map_err(error)? < bytes {
            return Err(error(Errno::NOSPC));
        }
        self.sectors.store(bytes / SECTOR_BYTES, Ordering::Relaxed);
        Ok(())
    }

    /// The first way to try for write-zeroes.
    pub(super) fn zero_step(&self, unmap: bool) -> ZeroStep {
        if unmap && self.can_punch.load(Ordering::Relaxed) {
            ZeroStep::Punch
        } else if self.can_zero.load(Ordering::Relaxed) {
            ZeroStep::ZeroRange
        } else {
            ZeroStep::Write
        }
    }

    /// Remembers that a way is not supported, and gives the next one.
    pub(super) fn after_unsupported(&self, step: ZeroStep, errno: Errno) -> ZeroStep {
        // EINVAL may depend on the range: it is no reason to give a way up for good.
        let for_good = errno != Errno::INVAL;
        match step {
            ZeroStep::Punch => {
                self.can_punch.fetch_and(!for_good, Ordering::Relaxed);
                ZeroStep::ZeroRange
            }
            ZeroStep::ZeroRange => {
                self.can_zero.fetch_and(!for_good, Ordering::Relaxed);
                ZeroStep::Write
            }
            ZeroStep::Write => ZeroStep::Write,
        }
    }

    /// Whether the room of a range can be given back.
    pub(super) fn can_punch(&self) -> bool {
        self.can_punch.load(Ordering::Relaxed)
    }

    /// Remembers that it cannot.
    pub(super) fn no_punch(&self, errno: Errno) {
        let for_good = errno != Errno::INVAL;
        self.can_punch.fetch_and(!for_good, Ordering::Relaxed);
    }

    /// Reads the whole of `to`, blocking.
    pub(super) fn read(&self, offset: u64, mut to: Segments) -> IoResult {
        let mut at = offset;
        while !to.is_empty() {
            let iov = &to.iovecs()[..to.iovecs().len().min(IOV_MAX)];
            // SAFETY: `to` holds the memory that its addresses name, writable.
            let n = unsafe { preadv(self.fd_for(at, &to), iov, at)? };
            if n == 0 {
                // The file shrank under us.
                return Err(Errno::IO);
            }
            to.advance(n);
            at += n;
        }
        Ok(())
    }

    /// Writes the whole of `from`, blocking; advances it by what was written.
    pub(super) fn write(&self, offset: u64, from: &mut Segments, durable: bool) -> IoResult {
        let mut at = offset;
        while !from.is_empty() {
            let iov = &from.iovecs()[..from.iovecs().len().min(IOV_MAX)];
            // SAFETY: `from` holds the memory that its addresses name, readable.
            let n = unsafe { pwritev(self.fd_for(at, from), iov, at, durable)? };
            if n == 0 {
                return Err(Errno::IO);
            }
            from.advance(n);
            at += n;
        }
        Ok(())
    }

    /// Reads the whole of `to` if that needs no waiting for a device (RWF_NOWAIT): the file's
    /// pages are in the page cache. False: not all of it was read, for whatever reason.
    pub(super) fn read_cached(&self, offset: u64, to: &Segments) -> Result<bool, Errno> {
        if to.iovecs().len() > IOV_MAX {
            return Ok(false);
        }
        // SAFETY: `to` holds the memory that its addresses name, writable.
        let read = unsafe { preadv_cached(self.buffered_fd(), to.iovecs(), offset) };
        match read {
            Ok(n) => Ok(n == to.len()),
            Err(Errno::OPNOTSUPP) => Err(Errno::OPNOTSUPP),
            Err(_) => Ok(false),
        }
    }

    /// Fills `buf`, blocking.
    pub(super) fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> IoResult {
        while !buf.is_empty() {
            match rustix::io::pread(self.buffered_fd(), &mut *buf, offset) {
                Ok(0) => return Err(Errno::IO),
                Ok(n) => {
                    buf = &mut buf[n..];
                    offset += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Stores `bytes`, blocking.
    pub(super) fn write_at(&self, mut offset: u64, mut bytes: &[u8]) -> IoResult {
        while !bytes.is_empty() {
            match rustix::io::pwrite(self.buffered_fd(), bytes, offset) {
                Ok(0) => return Err(Errno::IO),
                Ok(n) => {
                    bytes = &bytes[n..];
                    offset += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Makes everything written so far durable, blocking.
    pub(super) fn sync(&self) -> IoResult {
        rustix::fs::fdatasync(&self.fd)
    }

    /// Gives the room of a range back where that can be done, blocking.
    pub(super) fn discard(&self, offset: u64, len: u64) -> IoResult {
        let Some(mode) = ZeroStep::Punch.mode() else {
            return Ok(());
        };
        if !self.can_punch() {
            return Ok(());
        }
        match fallocate(self.buffered_fd(), mode, offset, len) {
            Err(errno) if is_unsupported(errno) => {
                // A discard is advice: not following it is no error.
                self.no_punch(errno);
                Ok(())
            }
            other => other,
        }
    }

    /// Makes a range read as zeroes, blocking.
    pub(super) fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        unmap: bool,
        durable: bool,
    ) -> IoResult {
        let mut step = self.zero_step(unmap);
        while let Some(mode) = step.mode() {
            match fallocate(self.buffered_fd(), mode, offset, len) {
                Ok(()) => return if durable { self.sync() } else { Ok(()) },
                Err(Errno::INTR) => {}
                Err(errno) if is_unsupported(errno) => step = self.after_unsupported(step, errno),
                Err(errno) => return Err(errno),
            }
        }
        let zeroes = std::sync::Arc::new(AlignedBuf::zeroed(len.min(ZERO_CHUNK) as usize));
        let mut at = offset;
        while at < offset + len {
            let mut chunk = Segments::private(zeroes.clone());
            chunk.truncate(offset + len - at);
            let n = chunk.len();
            self.write(at, &mut chunk, durable)?;
            at += n;
        }
        Ok(())
    }
}

fn open_error(path: &Path, errno: Errno, how: Use) -> StorageError {
    let path = path.to_owned();
    match errno {
        Errno::NOENT => StorageError::Missing { path },
        Errno::ISDIR => StorageError::NotAnImage { path, what: "a directory" },
        Errno::ACCESS | Errno::PERM | Errno::ROFS if !how.read_only => {
            StorageError::NotWritable { path }
        }
        source => StorageError::Open { path, source },
    }
}

fn describe(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Directory => "a directory",
        FileType::CharacterDevice => "a character device",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        _ => "of an unknown kind",
    }
}

/// Locks the whole file against other open file descriptions (F_OFD_SETLK): shared to read,
/// exclusive to write. QEMU's image locks conflict with it, as they should.
fn lock(fd: BorrowedFd<'_>, shared: bool) -> Result<(), Errno> {
    let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
    let lock = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: `lock` is a valid flock for the duration of the call, which only reads it.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}

/// Waits until nothing is under way any more that a process began which is dead. Its direct I/O
/// may still reach the disk, or the guest's memory, when io_uring has outlived it, and would undo
/// what is done from now on. Every descriptor that data passes through holds a shared lock
/// (flock(2), which its open file description keeps as long as io_uring works on it) that is
/// asked for exclusively here.
fn wait_for_predecessor(fd: BorrowedFd<'_>, path: &Path) {
    if flock(fd, FlockOperation::NonBlockingLockExclusive) == Err(Errno::AGAIN)
        && let Ok(same) = fd.try_clone_to_owned()
    {
        let (free, waiting) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = flock(&same, FlockOperation::LockExclusive);
            let _ = flock(&same, FlockOperation::LockShared);
            let _ = free.send(());
        });
        if waiting.recv_timeout(PREDECESSOR_LIMIT).is_err() {
            tracing::warn!(image = %path.display(), "somebody else holds its flock(2): going on");
        }
    }
    // On a file system without such locks nothing can be waited for.
    let _ = flock(fd, FlockOperation::NonBlockingLockShared);
}

/// Size in bytes, of files and block devices alike.
fn size_of_file(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0))
}

/// What O_DIRECT asks for on that file (STATX_DIOALIGN, Linux 6.1), if the kernel says.
fn direct_alignment(fd: BorrowedFd<'_>) -> Option<u32> {
    // SAFETY: statx is plain data, for which all zeroes is a value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor itself; `stat` is writable.
    let result = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut stat,
        )
    };
    let align = stat.stx_dio_mem_align.max(stat.stx_dio_offset_align);
    (result == 0
        && stat.stx_mask & libc::STATX_DIOALIGN != 0
        && align.is_power_of_two()
        && align <= AlignedBuf::ALIGN as u32)
        .then_some(align)
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// # Safety
/// Every entry of `iov` must be writable memory.
unsafe fn preadv(fd: BorrowedFd<'_>, iov: &[iovec], offset: u64) -> Result<u64, Errno> {
    let count = c_int::try_from(iov.len()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the caller vouches for the entries.
    retry(|| unsafe { libc::preadv64(fd.as_raw_fd(), iov.as_ptr(), count, offset.cast_signed()) })
}

/// # Safety
/// Every entry of `iov` must be writable memory.
unsafe fn preadv_cached(fd: BorrowedFd<'_>, iov: &[iovec], offset: u64) -> Result<u64, Errno> {
    let count = c_int::try_from(iov.len()).map_err(|_| Errno::INVAL)?;
    let (iov, offset, flags) = (iov.as_ptr(), offset.cast_signed(), libc::RWF_NOWAIT);
    // SAFETY: the caller vouches for the entries.
    retry(|| unsafe { libc::preadv2(fd.as_raw_fd(), iov, count, offset, flags) })
}

/// # Safety
/// Every entry of `iov` must be readable memory.
unsafe fn pwritev(
    fd: BorrowedFd<'_>,
    iov: &[iovec],
    offset: u64,
    durable: bool,
) -> Result<u64, Errno> {
    let count = c_int::try_from(iov.len()).map_err(|_| Errno::INVAL)?;
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    retry(|| {
        // SAFETY: the caller vouches for the entries.
        unsafe { libc::pwritev2(fd.as_raw_fd(), iov.as_ptr(), count, offset.cast_signed(), flags) }
    })
}

fn retry(mut call: impl FnMut() -> isize) -> Result<u64, Errno> {
    loop {
        match u64::try_from(call()) {
            Ok(n) => return Ok(n),
            Err(_) => match last_errno() {
                Errno::INTR => {}
                errno => return Err(errno),
            },
        }
    }
}
