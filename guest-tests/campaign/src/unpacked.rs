//! Debian packages unpacked beside the machine's own, with everything that they need.
//!
//! In: a suite and packages. Out: a folder of the cache with their files, and the libraries that a
//! program in it needs. Nothing is installed and nothing of the packages is run to unpack them.
//! Must not know: what the programs are for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::apt::{self, Apt, AptError};
use crate::cache::{Cache, file_name};
use crate::process::{self, ProcessError};
use crate::progress;

/// The dynamic loader, in one of [`LIBRARIES`].
pub(crate) const LOADER: &str = "ld-linux-x86-64.so.2";

/// Where Debian's packages have their libraries, before and after the merge of /usr.
pub(crate) const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// Where programs are.
const PROGRAMS: [&str; 4] = ["usr/bin", "usr/sbin", "bin", "sbin"];

/// A folder of unpacked packages, the C library among them.
#[derive(Clone, Debug)]
pub struct Unpacked {
    folder: PathBuf,
    /// The dynamic loader of its C library.
    loader: PathBuf,
}

impl Unpacked {
    /// Packages of the machine's own release, fetched and unpacked if they are not in the cache.
    /// Programs of them fit the machine's own libraries, and may be mixed with its programs.
    ///
    /// # Errors
    /// The machine's mirror does not have them, or cannot be reached.
    pub fn of_own_release(cache: &Cache, packages: &[&str]) -> Result<Unpacked, AptError> {
        let suite = own_release().ok_or_else(|| AptError::NoMirror { suite: "stable".into() })?;
        let _lock = cache.lock("unpacked")?;
        let place = format!("{suite}-{}", packages.join("+"));
        let place = Path::new("unpacked").join(file_name(&place));
        if let Some(there) = Unpacked::at(&cache.path(&place)) {
            return Ok(there);
        }
        fetch(cache, &suite, packages, &place)?;
        let folder = cache.path(&place);
        let missing = io::Error::new(io::ErrorKind::NotFound, format!("no {LOADER} in it"));
        Unpacked::at(&folder).ok_or(AptError::Io { path: folder, source: missing })
    }

    /// What was unpacked in `folder`; `None` if there is no loader in it.
    pub(crate) fn at(folder: &Path) -> Option<Unpacked> {
        let mut loaders = LIBRARIES.iter().map(|path| folder.join(path).join(LOADER));
        let loader = loaders.find(|path| path.is_file())?;
        Some(Unpacked { folder: folder.to_owned(), loader })
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of a program, if one of the packages has it.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        let mut paths = PROGRAMS.iter().map(|path| self.folder.join(path).join(name));
        paths.find(|path| process::is_executable(path))
    }

    /// The loader, told to find libraries here and nowhere else. The caller adds the program.
    pub(crate) fn loader(&self) -> Command {
        let mut command = process::command_at(&self.loader);
        let libraries = std::env::join_paths(self.library_folders());
        // A cache path with a colon in it cannot be said to the loader; it then names the library
        // that it misses.
        command.arg("--inhibit-cache").arg("--library-path").arg(libraries.unwrap_or_default());
        command
    }

    /// What the loader says of the shared libraries that `program` needs, as `ldd` would.
    ///
    /// # Errors
    /// The loader cannot be run.
    pub(crate) fn list_libraries(&self, program: &Path) -> Result<String, ProcessError> {
        let mut command = self.loader();
        command.arg("--list").arg(program).env("LC_ALL", "C");
        // A library that is missing is a failure for it, and is named in what it prints.
        Ok(process::capture(command, Duration::from_secs(20), |_| {})?.text())
    }

    /// The folders of libraries, and those below them in which packages keep some apart.
    fn library_folders(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for top in LIBRARIES.map(|path| self.folder.join(path)) {
            let below = fs::read_dir(&top).into_iter().flatten().flatten().map(|of| of.path());
            let mut below: Vec<PathBuf> = below.filter(|path| has_library(path)).collect();
            below.sort();
            found.push(top);
            found.extend(below);
        }
        found
    }
}

/// Whether there is a shared library of a kind that programs link with in the folder.
fn has_library(folder: &Path) -> bool {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|of| of.file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .any(|name| name.starts_with("lib") && name.contains(".so."))
}

/// The code name of this machine's Debian release, such as "bookworm".
pub(crate) fn own_release() -> Option<String> {
    release_of(&fs::read_to_string("/etc/os-release").ok()?)
}

/// Reads the file of os-release(5).
fn release_of(text: &str) -> Option<String> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    (field("ID")? == "debian").then(|| field("VERSION_CODENAME")).flatten()
}

/// Fetches and unpacks packages of `suite`, with what they need, into `place` of the cache.
pub(crate) fn fetch(
    cache: &Cache,
    suite: &str,
    packages: &[&str],
    place: &Path,
) -> Result<(), AptError> {
    let bar = progress::bar(packages.first().copied().unwrap_or("packages"));
    // A backport leans on the release that it is for, and both on its security updates.
    let release = suite.split('-').next().unwrap_or(suite);
    let security = format!("{release}-security");
    let mut suites = vec![release, security.as_str()];
    if !suites.contains(&suite) {
        suites.push(suite);
    }
    let apt = Apt::open(cache, &suites)?;
    let files = apt.download_with_needs(packages, suite, &bar)?;
    let scratch = cache.scratch()?;
    let root = scratch.path().join("root");
    for file in &files {
        bar.set_message(format!("unpacking {}", file.display()));
        apt::unpack(file, &root)?;
    }
    cache.publish(&root, place)?;
    for file in &files {
        // What stays behind costs space, nothing else.
        let _ = fs::remove_file(file);
    }
    bar.finish_and_clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_from_os_release() {
        let debian = "NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(release_of(debian).as_deref(), Some("bookworm"));
        assert_eq!(release_of(&debian.replace("ID=debian", "ID=ubuntu")), None);
        assert_eq!(release_of("ID=debian\n"), None);
    }

    #[test]
    fn a_folder_without_a_loader_is_not_whole() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Unpacked::at(folder.path()).is_none());
    }

    #[test]
    fn libraries_that_are_kept_apart_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join(LIBRARIES[0]);
        fs::create_dir_all(top.join("apart")).unwrap();
        fs::create_dir_all(top.join("plugins")).unwrap();
        for file in [LOADER, "apart/libone.so.1", "plugins/one.so"] {
            fs::write(top.join(file), "").unwrap();
        }
        let unpacked = Unpacked::at(folder.path()).unwrap();
        let folders = unpacked.library_folders();
        assert!(folders.contains(&top) && folders.contains(&top.join("apart")));
        assert!(!folders.contains(&top.join("plugins")));
        assert!(unpacked.program("fio").is_none());
    }
}
