//! Listening Unix sockets with a path: made private, never over somebody else's file, removed
//! at the end.
//!
//! In: a path. Out: a listener, and a guard that removes the file it made.
//! Must not know: what is spoken over the socket.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, sockopt};
use thiserror::Error;

use crate::front_end::Transport;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// Why there is no socket at a path.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SocketError {
    /// A program listens there.
    #[error(
        "socket {} is in use by a running program; stop that one, or give another path",
        path.display()
    )]
    Live {
        /// The path.
        path: PathBuf,
    },
    /// There is something that is not a socket.
    #[error(
        "{} exists and is not a socket; it was left alone: give another path, or remove it",
        path.display()
    )]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The path does not fit into a socket address.
    #[error("socket path {} is too long; 107 bytes at most: give a shorter one", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// The folder is missing.
    #[error("no folder {} for socket {}; create it, or give another path",
        folder.display(), path.display())]
    NoFolder {
        /// The path.
        path: PathBuf,
        /// Its folder.
        folder: PathBuf,
    },
    /// The number names no open file.
    #[error("file descriptor {fd} is not open, or is 0 to 2; pass the number of an open one")]
    NotOpen {
        /// The number.
        fd: i32,
    },
    /// The file descriptor is something else.
    #[error(
        "file descriptor {fd} is not a Unix stream socket; pass a listening or a connected one"
    )]
    NotAUnixSocket {
        /// The number.
        fd: i32,
    },
    /// The system refused.
    #[error("cannot listen on socket {}; check the permissions of its folder", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Removes a socket file when dropped, if it is still the one that was made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Listens on a new socket at `path`, mode 0600. The file of a program that is gone is replaced.
///
/// # Errors
/// A program listens there already, the file is not a socket, or the system refuses.
pub fn listen_at(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let wrap = |source: io::Error| SocketError::Io { path: path.to_owned(), source };
    let address =
        SocketAddrUnix::new(path).map_err(|_| SocketError::TooLong { path: path.to_owned() })?;
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => remove_if_dead(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = match path.parent() {
                Some(folder) if folder != Path::new("") => folder,
                _ => Path::new("."),
            };
            if !folder.is_dir() {
                let folder = folder.to_owned();
                return Err(SocketError::NoFolder { path: path.to_owned(), folder });
            }
        }
        Err(error) => return Err(wrap(error)),
    }
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| wrap(errno.into()))?;
    // Linux gives the file the mode of the socket: there is no moment at which others may
    // connect (`unix_bind_bsd`).
    fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|errno| wrap(errno.into()))?;
    bind(&socket, &address).map_err(|errno| match errno {
        rustix::io::Errno::ADDRINUSE => SocketError::Live { path: path.to_owned() },
        errno => wrap(errno.into()),
    })?;
    let file = SocketFile::of(path).map_err(wrap)?;
    listen(&socket, BACKLOG).map_err(|errno| wrap(errno.into()))?;
    Ok((UnixListener::from(socket), file))
}

/// A file descriptor that the program inherited under a number given on the command line. To be
/// called once for each number, before the program opens anything of its own.
///
/// # Errors
/// It is one of the standard three, or not open.
pub fn inherited(fd: i32) -> Result<OwnedFd, SocketError> {
    // SAFETY: the descriptor is only asked for its flags, and only if `fcntl` knows it.
    let open = fd > 2 && unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
    if !open {
        return Err(SocketError::NotOpen { fd });
    }
    // SAFETY: it is open, and whoever started the program handed it over by its number; nothing
    // in this process opened it (see above), so nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // The program's own children, had it any, would have no business with it.
    let _ = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC);
    Ok(fd)
}

/// Finds out what kind of socket was inherited: one that listens, or one that is connected.
///
/// # Errors
/// It is not a Unix stream socket.
pub fn inherited_transport(fd: OwnedFd) -> Result<Transport, SocketError> {
    let number = fd.as_raw_fd();
    let is_unix_stream = sockopt::socket_domain(&fd).is_ok_and(|d| d == AddressFamily::UNIX)
        && sockopt::socket_type(&fd).is_ok_and(|t| t == SocketType::STREAM);
    if !is_unix_stream {
        return Err(SocketError::NotAUnixSocket { fd: number });
    }
    if sockopt::socket_acceptconn(&fd).unwrap_or(false) {
        return Ok(Transport::Listener(UnixListener::from(fd)));
    }
    let connected = UnixStream::from(fd);
    if connected.peer_addr().is_err() {
        return Err(SocketError::NotAUnixSocket { fd: number });
    }
    Ok(Transport::Connected(connected))
}

fn remove_if_dead(path: &Path) -> Result<(), SocketError> {
    let wrap = |source: io::Error| SocketError::Io { path: path.to_owned(), source };
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(wrap)
        }
        // Also when its queue of connections is full, or it is no stream socket: somebody's.
        _ => Err(SocketError::Live { path: path.to_owned() }),
    }
}

impl SocketFile {
    /// The folder that it is in.
    pub fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        }
    }

    fn of(path: &Path) -> io::Result<SocketFile> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(SocketFile { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::{SocketError, listen_at};

    #[test]
    fn private_and_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let (listener, file) = listen_at(&path).expect("listens");
        let mode = fs::metadata(&path).expect("socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).expect("connects");
        drop((listener, file));
        assert!(!path.exists());
    }

    #[test]
    fn dead_is_replaced_live_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).expect("binds"));
        assert!(path.exists(), "std leaves the file: it is dead now");
        let held = listen_at(&path).expect("replaces the dead one");
        assert!(matches!(listen_at(&path), Err(SocketError::Live { .. })));
        drop(held);
        assert!(!path.exists());
    }

    #[test]
    fn other_files_are_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("precious");
        fs::write(&path, "data").expect("writes");
        assert!(matches!(listen_at(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).expect("still there"), "data");
        let missing = folder.path().join("no").join("s");
        assert!(matches!(listen_at(&missing), Err(SocketError::NoFolder { .. })));
        let long = folder.path().join("x".repeat(200));
        assert!(matches!(listen_at(&long), Err(SocketError::TooLong { .. })));
    }

    #[test]
    fn a_successor_is_not_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let (_listener, file) = listen_at(&path).expect("listens");
        fs::remove_file(&path).expect("somebody removes it");
        let _successor = UnixListener::bind(&path).expect("and takes its place");
        drop(file);
        assert!(path.exists());
    }
}
