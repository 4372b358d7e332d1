//! The file system that the kernel sees: a folder with one file in it.
//!
//! In: FUSE requests. Out: answers about names and attributes; reads, writes and flushes of the
//! file go on to [`Requests`].
//! Must not know: what becomes of those.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::PAGE_BYTES;
use super::mount::FILE_NAME;
use super::requests::Requests;

/// The file.
pub(super) const FILE: INodeNo = INodeNo(2);

/// Names and attributes never change.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

/// Bytes of one WRITE at most: a write-back takes adjacent dirty pages together.
const WRITE_BYTES: u32 = 1 << 20;

/// Who may open the file.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    uid: u32,
    gid: u32,
    /// Permission bits.
    mode: u16,
    changed: SystemTime,
}

impl Attributes {
    /// Whoever may open the image may open the file.
    ///
    /// # Errors
    /// The image has no time of change.
    pub fn of_image(image: &Metadata) -> Attributes {
        let changed = image.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let mode = (image.mode() & 0o666) as u16;
        Attributes { uid: image.uid(), gid: image.gid(), mode, changed }
    }

    /// Only we may: for a namespace in which other users have no number.
    pub fn private() -> Attributes {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let changed = SystemTime::UNIX_EPOCH;
        Attributes { uid: uid.as_raw(), gid: gid.as_raw(), mode: 0o600, changed }
    }
}

/// The folder and the file.
pub(super) struct Files {
    attributes: Attributes,
    bytes: u64,
    requests: Arc<Requests>,
}

impl Files {
    pub(super) fn new(attributes: Attributes, bytes: u64, requests: Arc<Requests>) -> Files {
        Files { attributes, bytes, requests }
    }

    fn attributes_of(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size, nlink) = match ino {
            INodeNo::ROOT => (FileType::Directory, 0o555, 0, 2),
            FILE => (FileType::RegularFile, self.attributes.mode, self.bytes, 1),
            _ => return None,
        };
        let Attributes { uid, gid, changed, .. } = self.attributes;
        Some(FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: changed,
            mtime: changed,
            ctime: changed,
            crtime: changed,
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev: 0,
            blksize: PAGE_BYTES as u32,
            flags: 0,
        })
    }

    fn answer_attributes(&self, ino: INodeNo, reply: ReplyAttr) {
        match self.attributes_of(ino) {
            Some(attributes) => reply.attr(&FOR_EVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }
}

/// The kernel does not take a limit.
fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("FUSE does not take our {what}"))
}

impl Filesystem for Files {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // One byte is less than a page, which is none at all; 0 is refused by the crate.
        config.set_max_readahead(1).map_err(|_| refused("readahead"))?;
        config.set_max_write(WRITE_BYTES).map_err(|_| refused("size of writes"))?;
        // Reads around and write-backs count as background; one that is parked must not take the
        // place of another.
        config.set_max_background(u16::MAX).map_err(|_| refused("number of requests"))?;
        config.set_congestion_threshold(u16::MAX).map_err(|_| refused("number of requests"))?;
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let file = (parent == INodeNo::ROOT && name == FILE_NAME).then_some(FILE);
        match file.and_then(|file| self.attributes_of(file)) {
            Some(attributes) => reply.entry(&FOR_EVER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.answer_attributes(ino, reply);
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if size.is_some_and(|size| size != self.bytes) {
            return reply.error(Errno::EINVAL);
        }
        if mode.is_some() || uid.is_some() || gid.is_some() {
            return reply.error(Errno::EPERM);
        }
        // Times are not kept.
        self.answer_attributes(ino, reply);
    }

    fn open(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if ino == FILE {
            // Without KEEP_CACHE each open would throw out every page (`fuse_finish_open`).
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        } else {
            reply.error(Errno::EISDIR);
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if ino != FILE {
            return reply.error(Errno::EISDIR);
        }
        if u64::from(size) > PAGE_BYTES {
            // A kernel that does not keep to `max_read`; a short answer would mean the file's end.
            return reply.error(Errno::EIO);
        }
        let len = u64::from(size).min(self.bytes.saturating_sub(offset));
        if len == 0 {
            return reply.data(&[]);
        }
        let direct = flags.0 & libc::O_DIRECT != 0;
        self.requests.read(offset, len as usize, direct, reply);
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if ino != FILE {
            return reply.error(Errno::EISDIR);
        }
        let room = self.bytes.saturating_sub(offset);
        if room < data.len() as u64 {
            return reply.error(Errno::ENOSPC);
        }
        let write_back = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        self.requests.write(offset, data, write_back, reply);
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // close(2) promises nothing.
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.requests.fsync(reply);
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if ino != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (FILE, FileType::RegularFile, FILE_NAME),
        ];
        for (next, (ino, kind, name)) in (1..).zip(entries).skip(offset as usize) {
            if reply.add(ino, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // `default_permissions`: the kernel checks.
        reply.ok();
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        // Not asked again after that.
        reply.error(Errno::ENOSYS);
    }
}
