//! The cache folder: downloaded kernels, base images, a second QEMU.
//!
//! In: names and writers. Out: files and folders that are either whole or absent: everything is
//! made under a temporary name beside its place and renamed into it.
//! Must not know: what is stored.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::interrupt;

/// The cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Neither variable names a folder.
    #[error("No cache folder: set XDG_CACHE_HOME or HOME")]
    NoHome,
    /// A file or folder could not be made or renamed.
    #[error("Could not {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The operator asked racegate to end while another racegate held the lock.
    #[error("Interrupted while another racegate was using {}", path.display())]
    Interrupted {
        /// The lock file.
        path: PathBuf,
    },
}

/// The folder of everything that can be made again.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$XDG_CACHE_HOME/racegate`, or `~/.cache/racegate`.
    pub fn open() -> Result<Cache, CacheError> {
        let folder = |name| {
            // The XDG base directory specification: relative paths are to be ignored.
            std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
        };
        let base = folder("XDG_CACHE_HOME")
            .or_else(|| folder("HOME").map(|home| home.join(".cache")))
            .ok_or(CacheError::NoHome)?;
        Cache::at(base.join("racegate"))
    }

    /// A cache in `root`, which is made if it is not there.
    pub fn at(root: PathBuf) -> Result<Cache, CacheError> {
        make_folder(&root)?;
        Ok(Cache { root })
    }

    /// Where the cache is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of `name` inside the cache; says nothing about whether it is there.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// The folder `name`, made if it is not there.
    pub fn folder(&self, name: impl AsRef<Path>) -> Result<PathBuf, CacheError> {
        let path = self.path(name);
        make_folder(&path)?;
        Ok(path)
    }

    /// Waits until no other racegate works on `name`; the lock ends with the value.
    pub fn lock(&self, name: &str) -> Result<Lock, CacheError> {
        let path = self.folder("locks")?.join(format!("{}.lock", file_name(name)));
        let failed = |source| CacheError::Io { action: "lock", path: path.clone(), source };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(failed(error.into())),
        }
        tracing::info!(lock = %path.display(), "another racegate is at work; waiting for it");
        // A lock cannot be waited for together with an interrupt, so a thread waits for it.
        let (done, locked) = mpsc::channel();
        std::thread::spawn(move || {
            let result = flock(file.as_fd(), FlockOperation::LockExclusive);
            let _ = done.send(result.map(|()| file));
        });
        loop {
            match locked.recv_timeout(Duration::from_millis(200)) {
                Ok(Ok(file)) => return Ok(Lock { _file: file }),
                Ok(Err(error)) => return Err(failed(error.into())),
                Err(RecvTimeoutError::Timeout) if !interrupt::requested() => {}
                Err(_) => return Err(CacheError::Interrupted { path }),
            }
        }
    }

    /// A folder beside the cached ones to prepare something in; removed when dropped.
    pub fn scratch(&self) -> Result<TempDir, CacheError> {
        let folder = self.folder("tmp")?;
        tempfile::Builder::new()
            .prefix("making-")
            .tempdir_in(&folder)
            .map_err(|source| CacheError::Io { action: "make a folder in", path: folder, source })
    }

    /// Moves `from` (inside a [`Cache::scratch`]) to its place `name`, replacing what is there.
    pub fn publish(&self, from: &Path, name: impl AsRef<Path>) -> Result<PathBuf, CacheError> {
        let to = self.path(name);
        if let Some(parent) = to.parent() {
            make_folder(parent)?;
        }
        if to.is_dir() {
            // A folder cannot be replaced in one step; the old one goes first, and a racegate that
            // dies here leaves nothing, which is a state that every reader knows.
            fs::remove_dir_all(&to).map_err(|source| CacheError::Io {
                action: "replace",
                path: to.clone(),
                source,
            })?;
        }
        fs::rename(from, &to).map_err(|source| CacheError::Io {
            action: "publish",
            path: to.clone(),
            source,
        })?;
        Ok(to)
    }

    /// Writes `bytes` as the file `name`, whole or not at all.
    pub fn write(&self, name: impl AsRef<Path>, bytes: &[u8]) -> Result<PathBuf, CacheError> {
        let to = self.path(name);
        let failed = |source| CacheError::Io { action: "write", path: to.clone(), source };
        let folder = to.parent().unwrap_or(&self.root);
        make_folder(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        file.persist(&to).map_err(|error| failed(error.error))?;
        Ok(to)
    }
}

/// The right to work on one name of the cache.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// `name` as a file name: everything but letters, digits and `.+~-_` becomes `_`.
pub fn file_name(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".+~-_".contains(c);
    name.chars().map(|c| if plain(c) { c } else { '_' }).collect()
}

fn make_folder(path: &Path) -> Result<(), CacheError> {
    fs::create_dir_all(path).map_err(|source| CacheError::Io {
        action: "make the folder",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("racegate")).unwrap();
        (folder, cache)
    }

    #[test]
    fn publishes_whole_folders_and_leaves_no_scratch() {
        let (_folder, cache) = cache();
        for text in ["first", "second"] {
            let scratch = cache.scratch().unwrap();
            let made = scratch.path().join("kernel");
            fs::create_dir(&made).unwrap();
            fs::write(made.join("file"), text).unwrap();
            let place = cache.publish(&made, "kernels/k").unwrap();
            drop(scratch);
            assert_eq!(fs::read_to_string(place.join("file")).unwrap(), text);
        }
        assert_eq!(fs::read_dir(cache.path("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_lock_is_held_by_one_at_a_time() {
        let (_folder, cache) = cache();
        let first = cache.lock("a/b").unwrap();
        let other = cache.clone();
        let (sender, receiver) = mpsc::channel();
        let waiter = std::thread::spawn(move || {
            let lock = other.lock("a/b").unwrap();
            sender.send(()).unwrap();
            lock
        });
        assert!(receiver.try_recv().is_err());
        drop(first);
        receiver.recv_timeout(Duration::from_secs(20)).expect("the lock passes on");
        drop(waiter.join().unwrap());
    }
}
