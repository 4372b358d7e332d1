//! A mapped file or DAX device, and how its stores become durable.
//!
//! In: a path. Out: a [`Domain`], and which way to durability it has.
//! Must not know: protocols.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
use thiserror::Error;

use super::Domain;
use super::lines::{self, LINE_BYTES, WriteBack};

/// Bytes of a page, the unit of msync().
const PAGE_BYTES: u64 = 4096;

/// How stores to a mapping become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The mapping is the persistent memory itself (MAP_SYNC): cache lines are written back by
    /// this instruction, without a system call.
    Lines(WriteBack),
    /// The mapping is a cache of the file, in the kernel or in a device: msync().
    Msync,
}

/// Why a file cannot be mapped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DaxError {
    /// It cannot be opened for reading and writing.
    #[error("cannot open {} for reading and writing", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is neither a file nor a DAX device, or has no bytes.
    #[error("{} has no bytes to map; name a file that is not empty, or a DAX device (/dev/dax0.0)",
        path.display())]
    NoBytes {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot map {bytes} bytes of {}", path.display())]
    Map {
        /// The file.
        path: PathBuf,
        /// How much.
        bytes: u64,
        /// Why.
        source: Errno,
    },
}

/// A file or DAX device in memory, shared with whoever else maps it.
#[derive(Debug)]
pub struct DaxFile {
    base: NonNull<u8>,
    bytes: u64,
    durability: Durability,
}

// SAFETY: the mapping belongs to no thread. All access is by raw copies and atomic words, never
// through references, and any mix of concurrently written bytes is a value, as on a disk.
unsafe impl Send for DaxFile {}
// SAFETY: as above.
unsafe impl Sync for DaxFile {}

impl DaxFile {
    /// Maps the whole of `path`: with MAP_SYNC where the file system and the processor have what
    /// it takes, else as any file; [`DaxFile::durability`] says which.
    pub fn open(path: &Path) -> Result<DaxFile, DaxError> {
        let (file, bytes) = open(path)?;
        let failed = |source| DaxError::Map { path: path.to_owned(), bytes, source };
        if let Some(write_back) = WriteBack::detect() {
            let flags = MapFlags::SHARED_VALIDATE | MapFlags::SYNC;
            match map(&file, bytes, flags) {
                Ok(base) => {
                    let durability = Durability::Lines(write_back);
                    return Ok(DaxFile { base, bytes, durability });
                }
                // No persistent memory, or a kernel before 4.15.
                Err(Errno::OPNOTSUPP | Errno::INVAL) => {}
                Err(source) => return Err(failed(source)),
            }
        }
        let base = map(&file, bytes, MapFlags::SHARED).map_err(failed)?;
        Ok(DaxFile { base, bytes, durability: Durability::Msync })
    }

    /// Maps the whole of `path` and takes it for persistent memory, whatever the file system says:
    /// for memory that outlives the machine's power in another way, and for measurements. Without
    /// the instructions for it, as [`DaxFile::open`].
    pub fn open_as_persistent(path: &Path) -> Result<DaxFile, DaxError> {
        let mut file = DaxFile::open(path)?;
        if let Some(write_back) = WriteBack::detect() {
            file.durability = Durability::Lines(write_back);
        }
        Ok(file)
    }

    /// How stores become durable.
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// Copies bytes at `offset` to `buf`.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let at = self.at(offset, buf.len() as u64)?;
        // SAFETY: `at` was checked for buf.len() bytes; `buf` is ours alone, so not in the mapping.
        unsafe { ptr::copy_nonoverlapping(at, buf.as_mut_ptr(), buf.len()) };
        Ok(())
    }

    /// The word at `offset`, a multiple of 8, in one piece.
    pub fn read_word(&self, offset: u64) -> Result<u64, Errno> {
        Ok(self.word(offset)?.load(Ordering::Acquire))
    }

    /// The address of a range, if it is inside.
    fn at(&self, offset: u64, len: u64) -> Result<*mut u8, Errno> {
        Self::inside(self.base, self.bytes, offset, len)
    }

    fn inside(base: NonNull<u8>, bytes: u64, offset: u64, len: u64) -> Result<*mut u8, Errno> {
        match offset.checked_add(len) {
            Some(end) if end <= bytes => {
                // SAFETY: offset <= end <= bytes, which are mapped.
                Ok(unsafe { base.as_ptr().add(offset as usize) })
            }
            _ => Err(Errno::INVAL),
        }
    }

    #[expect(clippy::cast_ptr_alignment, reason = "checked: see the safety comment")]
    fn word(&self, offset: u64) -> Result<&AtomicU64, Errno> {
        if !offset.is_multiple_of(8) {
            return Err(Errno::INVAL);
        }
        let at = self.at(offset, 8)?.cast::<u64>();
        // SAFETY: inside the mapping, which lives as long as `self`, and aligned: mappings begin
        // at a page. Racing plain copies of other bytes are by raw pointers only.
        Ok(unsafe { AtomicU64::from_ptr(at) })
    }
}

impl Domain for DaxFile {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn granule(&self) -> u64 {
        match self.durability {
            Durability::Lines(_) => LINE_BYTES,
            Durability::Msync => PAGE_BYTES,
        }
    }

    fn stream_bypasses_cache(&self) -> bool {
        matches!(self.durability, Durability::Lines(_))
    }

    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let at = self.at(offset, bytes.len() as u64)?;
        // SAFETY: `at` was checked for bytes.len() bytes; a slice of ours is not in the mapping.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
        Ok(())
    }

    fn store_word(&self, offset: u64, word: u64) -> Result<(), Errno> {
        self.word(offset)?.store(word, Ordering::Release);
        Ok(())
    }

    fn stream(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let at = self.at(offset, bytes.len() as u64)?;
        if !offset.is_multiple_of(LINE_BYTES) || !bytes.len().is_multiple_of(LINE_BYTES as usize) {
            return Err(Errno::INVAL);
        }
        // SAFETY: `at` was checked for bytes.len() bytes, whole lines; mappings begin at a page,
        // so it is aligned as `offset` is; a slice of ours is not in the mapping.
        unsafe { lines::stream(at, bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn write_back(&self, range: Range<u64>) -> Result<(), Errno> {
        // The last page of a file is mapped as a whole.
        let mapped = self.bytes.next_multiple_of(PAGE_BYTES);
        let len = range.end.checked_sub(range.start).ok_or(Errno::INVAL)?;
        let at = Self::inside(self.base, mapped, range.start, len)?;
        if !(range.start | len).is_multiple_of(self.granule()) {
            return Err(Errno::INVAL);
        }
        match self.durability {
            Durability::Lines(write_back) => {
                // SAFETY: `at` was checked for len bytes, whole lines; the instruction is that of
                // `WriteBack::detect`.
                unsafe { write_back.lines(at, len as usize) };
                Ok(())
            }
            // SAFETY: whole pages of the mapping.
            Durability::Msync => unsafe { msync(at.cast(), len as usize, MsyncFlags::SYNC) },
        }
    }

    fn fence(&self) {
        match self.durability {
            Durability::Lines(_) => lines::fence(),
            // msync() has waited.
            Durability::Msync => {}
        }
    }
}

impl Drop for DaxFile {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with that length, unmapped once, and no address of it outlives
        // `self`. Failure would only leak.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes as usize) };
    }
}

/// Opens a file or DAX device and finds its size.
fn open(path: &Path) -> Result<(File, u64), DaxError> {
    let failed = |source| DaxError::Open { path: path.to_owned(), source };
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let bytes = if metadata.file_type().is_char_device() {
        device_bytes(metadata.rdev())
    } else {
        Some(metadata.len())
    };
    match bytes {
        Some(bytes) if bytes > 0 => Ok((file, bytes)),
        _ => Err(DaxError::NoBytes { path: path.to_owned() }),
    }
}

/// The size of a DAX device (Documentation/ABI/testing/sysfs-bus-dax).
fn device_bytes(device: u64) -> Option<u64> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let text = std::fs::read_to_string(format!("/sys/dev/char/{major}:{minor}/size")).ok()?;
    text.trim().parse().ok()
}

fn map(file: &File, bytes: u64, flags: MapFlags) -> Result<NonNull<u8>, Errno> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { mmap(ptr::null_mut(), bytes as usize, protection, flags, file, 0) }?;
    NonNull::new(at.cast()).ok_or(Errno::NOMEM)
}
