//! The mount of a page server: where its file appears, and how it disappears.
//!
//! In: an empty folder. Out: a FUSE connection, the path under which others open the file, and
//! the promise that nothing stays mounted.
//! Must not know: what is served.
//!
//! Where mounting is not permitted the process takes a user and a mount namespace of its own; the
//! file is then reached through `/proc/PID/root`. To be called before the process has a second
//! thread: a user namespace belongs to a process, and the supervisor is forked.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{getegid, geteuid, getpid};
use rustix::thread::UnshareFlags;
use thiserror::Error;

use super::PAGE_BYTES;
use super::supervisor::Supervisor;

/// Name of the file in the mount.
pub const FILE_NAME: &str = "pmem";

/// Where the kernel's FUSE connections come from.
const FUSE_DEVICE: &str = "/dev/fuse";

/// Why there is no mount.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MountError {
    /// The folder is not there.
    #[error("the mount point {} does not exist: create it (mkdir {})", .0.display(), .0.display())]
    Missing(PathBuf),
    /// It is a file.
    #[error("the mount point {} is not a folder: name an empty folder", .0.display())]
    NotAFolder(PathBuf),
    /// Something would be hidden.
    #[error("the mount point {} is not empty: name an empty folder", .0.display())]
    NotEmpty(PathBuf),
    /// What a server left behind that was killed together with its supervisor.
    #[error("a dead mount is left at {}: remove it (umount -l {})", .0.display(), .0.display())]
    Dead(PathBuf),
    /// The folder cannot be looked into.
    #[error("cannot look into the mount point {}", path.display())]
    Unreadable {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No FUSE in the kernel or in the container.
    #[error(
        "there is no {FUSE_DEVICE}: load the module (modprobe fuse), or pass the device into the \
         container (--device {FUSE_DEVICE})"
    )]
    NoFuse,
    /// The device's permissions.
    #[error(
        "no permission to open {FUSE_DEVICE}: run as root, or allow it (chmod 666 {FUSE_DEVICE})"
    )]
    FusePermission,
    /// Another failure of the device.
    #[error("cannot open {FUSE_DEVICE}")]
    Fuse(#[source] Errno),
    /// Neither mounting nor a namespace of our own is permitted.
    #[error(
        "mounting is not permitted, nor are user namespaces: run as root, or allow them (sysctl \
         kernel.unprivileged_userns_clone=1, user.max_user_namespaces=1000, and what AppArmor or \
         the container forbids)"
    )]
    NoNamespace(#[source] Errno),
    /// The namespace is there, but cannot be used.
    #[error("cannot set up the user namespace")]
    Namespace(#[source] io::Error),
    /// Too late.
    #[error("a namespace or a supervisor was asked for after a second thread was started")]
    Threads,
    /// mount(2) failed for another reason.
    #[error("cannot mount at {}", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// No process to watch over us.
    #[error("cannot start the supervisor")]
    Supervisor(#[source] Errno),
}

/// Where and how to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// An empty folder.
    pub mount_point: PathBuf,
    /// Nobody may write.
    pub read_only: bool,
    /// Use a namespace of our own even where it is not needed: nobody else sees the mount.
    pub own_namespace: bool,
}

/// A mount that is taken away when this is dropped, or by the supervisor.
#[derive(Debug)]
pub struct Mount {
    fuse: Option<OwnedFd>,
    point: PathBuf,
    own_namespace: bool,
    supervisor: Supervisor,
    mounted: bool,
}

impl Mount {
    /// Mounts. The kernel waits with everything until a server answers on the connection.
    ///
    /// # Errors
    /// What is wrong with the folder, or not permitted.
    pub fn new(options: &MountOptions) -> Result<Mount, MountError> {
        let point = check_mount_point(&options.mount_point)?;
        if threads() != Some(1) {
            return Err(MountError::Threads);
        }
        let tried = if options.own_namespace {
            Err(Errno::PERM)
        } else {
            let fuse = open_fuse()?;
            mount_fuse(&fuse, &point, options.read_only, Visible::ToAll).map(|()| fuse)
        };
        let (fuse, own_namespace) = match tried {
            Ok(fuse) => (fuse, false),
            Err(Errno::PERM) => {
                enter_namespace()?;
                // A connection belongs to the user namespace in which it was opened.
                let fuse = open_fuse()?;
                mount_fuse(&fuse, &point, options.read_only, Visible::ToOwner)
                    .map_err(|source| MountError::Mount { path: point.clone(), source })?;
                (fuse, true)
            }
            Err(source) => return Err(MountError::Mount { path: point, source }),
        };
        let supervisor = Supervisor::start(&point).map_err(|source| {
            let _ = unmount(&*point, UnmountFlags::FORCE | UnmountFlags::DETACH);
            MountError::Supervisor(source)
        })?;
        Ok(Mount { fuse: Some(fuse), point, own_namespace, supervisor, mounted: true })
    }

    /// The path under which a process outside opens the file.
    pub fn path(&self) -> PathBuf {
        let inside = self.point.join(FILE_NAME);
        if !self.own_namespace {
            return inside;
        }
        let root = PathBuf::from(format!("/proc/{}/root", getpid().as_raw_nonzero()));
        match inside.strip_prefix("/") {
            Ok(relative) => root.join(relative),
            // The mount point was made absolute.
            Err(_) => inside,
        }
    }

    /// Whether the mount is in a namespace of our own.
    pub fn own_namespace(&self) -> bool {
        self.own_namespace
    }

    /// The connection, once.
    pub(super) fn take_fuse(&mut self) -> Option<OwnedFd> {
        self.fuse.take()
    }

    /// Ends the connection and takes the mount away: whoever has the file open and touches a page
    /// that is not cached gets SIGBUS from now on.
    pub(super) fn unmount(&mut self) {
        if !std::mem::take(&mut self.mounted) {
            return;
        }
        if self.supervisor.unmount() {
            return;
        }
        // Somebody ended it. Without a sandbox we can do it ourselves.
        match unmount(&*self.point, UnmountFlags::FORCE | UnmountFlags::DETACH) {
            // EINVAL: somebody else has unmounted it.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => {
                tracing::warn!(path = %self.point.display(), %error, "cannot unmount");
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.unmount();
    }
}

fn check_mount_point(path: &Path) -> Result<PathBuf, MountError> {
    let owned = || path.to_owned();
    let unreadable = |source: io::Error| match source.raw_os_error() {
        Some(libc::ENOENT) => MountError::Missing(owned()),
        Some(libc::ENOTCONN | libc::ECONNABORTED) => MountError::Dead(owned()),
        Some(libc::ENOTDIR) => MountError::NotAFolder(owned()),
        _ => MountError::Unreadable { path: owned(), source },
    };
    let mut entries = fs::read_dir(path).map_err(unreadable)?;
    if entries.next().is_some() {
        return Err(MountError::NotEmpty(owned()));
    }
    path.canonicalize().map_err(unreadable)
}

/// How many threads the process has.
fn threads() -> Option<usize> {
    Some(fs::read_dir("/proc/self/task").ok()?.count())
}

fn open_fuse() -> Result<OwnedFd, MountError> {
    open(FUSE_DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => MountError::NoFuse,
        Errno::ACCESS | Errno::PERM => MountError::FusePermission,
        other => MountError::Fuse(other),
    })
}

/// Who may look at the mount.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Visible {
    /// Whoever the file's mode permits.
    ToAll,
    /// Processes of the same user, in whatever namespace (`fuse_allow_current_process`).
    ToOwner,
}

fn mount_fuse(
    fuse: &OwnedFd,
    point: &Path,
    read_only: bool,
    visible: Visible,
) -> Result<(), Errno> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let mut data = format!(
        "fd={},rootmode=40555,user_id={user},group_id={group},default_permissions,\
         max_read={PAGE_BYTES}",
        fuse.as_raw_fd()
    );
    if visible == Visible::ToAll {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let mut flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    mount("racegate-pmem", point, "fuse.racegate", flags, &*data)
}

/// A user namespace in which we are who we were, and a mount namespace in which we may mount.
fn enter_namespace() -> Result<(), MountError> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: descriptors are not unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }
        .map_err(MountError::NoNamespace)?;
    let write = |file: &str, text: String| {
        use std::io::Write;
        // One write(2): the kernel takes a map in one piece.
        File::options().write(true).open(file)?.write_all(text.as_bytes())
    };
    write("/proc/self/uid_map", format!("{user} {user} 1"))
        // Without it an unprivileged process may not map its group (user_namespaces(7)).
        .and_then(|()| write("/proc/self/setgroups", "deny".to_owned()))
        .and_then(|()| write("/proc/self/gid_map", format!("{group} {group} 1")))
        .map_err(MountError::Namespace)
}
