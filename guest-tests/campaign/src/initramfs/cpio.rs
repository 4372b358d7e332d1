//! The "newc" cpio format, as much of it as an initramfs needs.
//!
//! In: entries by path. Out: the archive.
//! Must not know: what the files are.
//!
//! Each member is a header of 110 ASCII bytes (a magic of 6, then 13 numbers of 8 hexadecimal
//! digits), the name with its NUL, padding to 4 bytes, the data, padding to 4 bytes. A member named
//! `TRAILER!!!` ends the archive. Owner, times and device numbers are 0 and inodes count up, so
//! that equal input gives equal bytes. A link's data is its target.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

const MAGIC: &str = "070701";
const TRAILER: &[u8] = b"TRAILER!!!";
/// The archive's length is rounded up to this, as GNU cpio does.
const BLOCK: usize = 512;

const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// One member without its name.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    mode: u32,
    device: (u32, u32),
    data: Vec<u8>,
}

impl Entry {
    pub(super) fn folder() -> Entry {
        Entry { mode: S_IFDIR | 0o755, device: (0, 0), data: Vec::new() }
    }

    pub(super) fn file(mode: u32, data: Vec<u8>) -> Entry {
        Entry { mode: S_IFREG | (mode & 0o7777), device: (0, 0), data }
    }

    pub(super) fn link(target: &str) -> Entry {
        Entry { mode: S_IFLNK | 0o777, device: (0, 0), data: target.as_bytes().to_vec() }
    }

    pub(super) fn char_device(mode: u32, major: u32, minor: u32) -> Entry {
        Entry { mode: S_IFCHR | (mode & 0o7777), device: (major, minor), data: Vec::new() }
    }
}

/// The archive of `entries`; the kernel wants a folder before what is in it, which is the map's
/// order. The error is the path whose data is longer than the format can say.
pub(super) fn archive(entries: &BTreeMap<PathBuf, Entry>) -> Result<Vec<u8>, &Path> {
    let data: usize = entries.values().map(|entry| entry.data.len() + 256).sum();
    let mut out = Vec::with_capacity(data + BLOCK);
    for (inode, (path, entry)) in (1u32..).zip(entries) {
        let name = path.strip_prefix("/").unwrap_or(path).as_os_str().as_bytes();
        member(&mut out, inode, name, entry).ok_or(path.as_path())?;
    }
    let trailer = Entry { mode: 0, device: (0, 0), data: Vec::new() };
    // An empty member always fits.
    let _ = member(&mut out, 0, TRAILER, &trailer);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    Ok(out)
}

fn member(out: &mut Vec<u8>, inode: u32, name: &[u8], entry: &Entry) -> Option<()> {
    let size = u32::try_from(entry.data.len()).ok()?;
    let name_size = u32::try_from(name.len() + 1).ok()?;
    let links = if entry.mode & S_IFDIR != 0 && entry.mode & S_IFREG == 0 { 2 } else { 1 };
    let (major, minor) = entry.device;
    // inode, mode, uid, gid, links, mtime, size, device of the file (2), device that the file is
    // (2), length of the name, check sum (0 in this variant).
    let numbers = [inode, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
    out.extend_from_slice(MAGIC.as_bytes());
    for number in numbers {
        out.extend_from_slice(format!("{number:08X}").as_bytes());
    }
    out.extend_from_slice(name);
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(&entry.data);
    out.resize(out.len().next_multiple_of(4), 0);
    Some(())
}
