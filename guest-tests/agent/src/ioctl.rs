//! The ioctls of ext4: those that look into the extents of a file, and the one that stops all.
//!
//! In: a file. Out: extents, in bytes. With `mapping` and `background`, the only unsafe code of the
//! agent.

use std::fs::File;
use std::io;

use rustix::ioctl::{NoArg, Opcode, Setter, Updater, ioctl, opcode};

/// Extents taken at a time: more than a file of a list can have, so one call is enough.
const ROOM: usize = 128;

/// `struct fiemap_extent` (include/uapi/linux/fiemap.h).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Extent {
    /// `fe_logical`: first byte in the file.
    pub(crate) logical: u64,
    /// `fe_physical`: first byte on the disk.
    pub(crate) physical: u64,
    /// `fe_length`, in bytes.
    pub(crate) length: u64,
    /// Nothing.
    pub(crate) reserved64: [u64; 2],
    /// `fe_flags`.
    pub(crate) flags: u32,
    /// Nothing.
    pub(crate) reserved: [u32; 3],
}

/// `struct fiemap`, up to its extents.
#[derive(Clone, Copy)]
#[repr(C)]
struct Header {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

#[repr(C)]
struct Fiemap {
    header: Header,
    extents: [Extent; ROOM],
}

const FIEMAP: Opcode = opcode::read_write::<Header>(b'f', 11);
const GET_ES_CACHE: Opcode = opcode::read_write::<Header>(b'f', 42);
const CLEAR_ES_CACHE: Opcode = opcode::none(b'f', 40);
const SHUTDOWN: Opcode = opcode::read::<u32>(b'X', 125);
/// EXT4_GOING_FLAGS_NOLOGFLUSH (fs/ext4/ext4.h).
const NO_LOG_FLUSH: u32 = 2;

/// FS_IOC_FIEMAP without flags: what the file's bytes `start..start + length` are mapped to.
pub(crate) fn fiemap(file: &File, start: u64, length: u64) -> io::Result<Vec<Extent>> {
    let mut request = Fiemap::new(start, length);
    // SAFETY: the opcode takes a `struct fiemap` with room for `extent_count` extents behind it,
    // which is what `Fiemap` is; the kernel writes nothing else.
    unsafe { ioctl(file, Updater::<FIEMAP, Fiemap>::new(&mut request)) }?;
    Ok(request.extents())
}

/// EXT4_IOC_GET_ES_CACHE: the extent status tree from byte `start` on. The answer is empty if
/// `start` has no entry, whatever follows it.
pub(crate) fn es_cache(file: &File, start: u64, length: u64) -> io::Result<Vec<Extent>> {
    let mut request = Fiemap::new(start, length);
    // SAFETY: as for FIEMAP, whose argument this ioctl shares (fs/ext4/ioctl.c).
    unsafe { ioctl(file, Updater::<GET_ES_CACHE, Fiemap>::new(&mut request)) }?;
    Ok(request.extents())
}

/// EXT4_IOC_CLEAR_ES_CACHE: entries of the extent status tree that may go are removed.
pub(crate) fn clear_es_cache(file: &File) -> io::Result<()> {
    // SAFETY: the opcode takes no argument.
    unsafe { ioctl(file, NoArg::<CLEAR_ES_CACHE>::new()) }?;
    Ok(())
}

/// EXT4_IOC_SHUTDOWN: the file system stops, and its journal with it, without writing anything more.
pub(crate) fn shut_down(file: &File) -> io::Result<()> {
    // SAFETY: the opcode reads a 32-bit word, in spite of its name, and writes nothing.
    unsafe { ioctl(file, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }?;
    Ok(())
}

impl Fiemap {
    fn new(start: u64, length: u64) -> Fiemap {
        Fiemap {
            header: Header {
                start,
                length,
                flags: 0,
                mapped_extents: 0,
                extent_count: ROOM as u32,
                reserved: 0,
            },
            extents: [Extent::default(); ROOM],
        }
    }

    fn extents(&self) -> Vec<Extent> {
        let count = (self.header.mapped_extents as usize).min(ROOM);
        self.extents[..count].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_and_numbers_are_those_of_the_kernel() {
        assert_eq!(size_of::<Header>(), 32);
        assert_eq!(size_of::<Extent>(), 56);
        assert_eq!(std::mem::offset_of!(Extent, flags), 40);
        assert_eq!((FIEMAP, GET_ES_CACHE, CLEAR_ES_CACHE), (0xc020_660b, 0xc020_662a, 0x6628));
        assert_eq!(SHUTDOWN, 0x8004_587d);
    }
}
