//! The guest's initramfs: a cpio archive written here, byte for byte the same for the same input.
//!
//! In: the agent's program, kernel modules, host programs with the libraries that they need, any
//! other file. Out: the bytes of a "newc" archive (kernel: `Documentation/driver-api/early-userspace/
//! buffer-format.rst`).
//! Must not know: what the agent does with it, QEMU.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use agent::MODULE_LIST;

use crate::kernels::Module;
use crate::process::{self, ProcessError};
use crate::unpacked::{LOADER, Unpacked};

mod cpio;

/// The initramfs could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// A file of the host could not be read.
    #[error("Could not read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program to pack is not there.
    #[error("{program} is not installed; install it with: apt-get install {package}")]
    NoProgram {
        /// The program.
        program: String,
        /// The Debian package that has it.
        package: String,
    },
    /// A program to pack is in none of the packages that were unpacked.
    #[error("There is no {program} among the packages unpacked in {}; remove that folder to have \
             them fetched again", folder.display())]
    NotUnpacked {
        /// The program.
        program: String,
        /// Where they were unpacked.
        folder: PathBuf,
    },
    /// A library that a program needs is not there.
    #[error("{} needs {library}, which this machine does not have", program.display())]
    NoLibrary {
        /// The program.
        program: PathBuf,
        /// The library.
        library: String,
    },
    /// `ldd` did not work.
    #[error("Could not list the libraries of {}", program.display())]
    Ldd {
        /// The program.
        program: PathBuf,
        /// Why.
        source: ProcessError,
    },
    /// A path that is not absolute, or has `..` in it.
    #[error("{} cannot be a path in the initramfs", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// A file too large for the format (4 GiB).
    #[error("{} is too large for a cpio archive", path.display())]
    TooLarge {
        /// The path in the archive.
        path: PathBuf,
    },
}

/// What an initramfs is made of, by path.
#[derive(Clone, Debug, Default)]
pub struct Initramfs {
    entries: BTreeMap<PathBuf, cpio::Entry>,
}

impl Initramfs {
    /// An initramfs whose `/init` is `program` (a static executable), with the folders that every
    /// init needs and `/dev/console`.
    pub fn new(program: &[u8]) -> Result<Initramfs, InitramfsError> {
        let mut initramfs = Initramfs::default();
        for folder in ["/dev", "/proc", "/sys", "/tmp", "/run", "/mnt", "/etc"] {
            initramfs.insert(Path::new(folder), cpio::Entry::folder())?;
        }
        initramfs.insert(Path::new("/dev/console"), cpio::Entry::char_device(0o600, 5, 1))?;
        initramfs.insert(Path::new("/etc/mtab"), cpio::Entry::link("/proc/self/mounts"))?;
        initramfs.file("/init", 0o755, program.to_vec())?;
        Ok(initramfs)
    }

    /// Adds or replaces a regular file; folders above it are made.
    pub fn file(
        &mut self,
        path: impl AsRef<Path>,
        mode: u32,
        bytes: Vec<u8>,
    ) -> Result<&mut Initramfs, InitramfsError> {
        self.insert(path.as_ref(), cpio::Entry::file(mode, bytes))
    }

    /// Adds kernel modules, which must be in load order, and [`agent::MODULE_LIST`].
    pub fn modules(&mut self, modules: &[Module]) -> Result<&mut Initramfs, InitramfsError> {
        let mut list = String::new();
        for module in modules {
            let path = format!("/modules/{}.ko", module.name);
            self.file(&path, 0o644, read(&module.path)?)?;
            list.push_str(&path);
            list.push('\n');
        }
        self.file(MODULE_LIST, 0o644, list.into_bytes())
    }

    /// Adds a program of the host (a name looked up in `PATH`, from Debian package `package`) at
    /// `/bin/NAME`, with its shared libraries at their own paths.
    pub fn program(
        &mut self,
        program: &str,
        package: &str,
    ) -> Result<&mut Initramfs, InitramfsError> {
        let path = process::find_program(program).ok_or_else(|| InitramfsError::NoProgram {
            program: program.to_owned(),
            package: package.to_owned(),
        })?;
        for library in libraries(&path)? {
            if !self.entries.contains_key(&library) {
                let bytes = read(&library)?;
                self.file(&library, 0o755, bytes)?;
            }
        }
        let bytes = read(&path)?;
        self.file(Path::new("/bin").join(program), 0o755, bytes)
    }

    /// Adds a program of unpacked packages at `/bin/NAME`, with its shared libraries where every
    /// loader looks. A library that is there already, of the same release, serves it too.
    pub fn unpacked_program(
        &mut self,
        program: &str,
        unpacked: &Unpacked,
    ) -> Result<&mut Initramfs, InitramfsError> {
        let path = unpacked.program(program).ok_or_else(|| InitramfsError::NotUnpacked {
            program: program.to_owned(),
            folder: unpacked.folder().to_owned(),
        })?;
        let failed = |source| InitramfsError::Ldd { program: path.clone(), source };
        let listed = unpacked.list_libraries(&path).map_err(failed)?;
        let libraries = parse_ldd(&listed)
            .map_err(|library| InitramfsError::NoLibrary { program: path.clone(), library })?;
        for library in libraries {
            let Some(name) = library.file_name() else { continue };
            let folder = if name == LOADER { "/lib64" } else { "/lib/x86_64-linux-gnu" };
            let place = Path::new(folder).join(name);
            if !self.entries.contains_key(&place) {
                self.file(&place, 0o755, read(&library)?)?;
            }
        }
        self.file(Path::new("/bin").join(program), 0o755, read(&path)?)
    }

    /// The archive.
    pub fn build(&self) -> Result<Vec<u8>, InitramfsError> {
        cpio::archive(&self.entries)
            .map_err(|path| InitramfsError::TooLarge { path: path.to_owned() })
    }

    fn insert(
        &mut self,
        path: &Path,
        entry: cpio::Entry,
    ) -> Result<&mut Initramfs, InitramfsError> {
        let plain = path.is_absolute()
            && path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
        if !plain || path.parent().is_none() {
            return Err(InitramfsError::Path { path: path.to_owned() });
        }
        for folder in path.ancestors().skip(1).filter(|folder| folder.parent().is_some()) {
            self.entries.entry(folder.to_owned()).or_insert_with(cpio::Entry::folder);
        }
        self.entries.insert(path.to_owned(), entry);
        Ok(self)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, InitramfsError> {
    fs::read(path).map_err(|source| InitramfsError::Read { path: path.to_owned(), source })
}

/// The absolute paths of the shared libraries and of the loader that `program` needs.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, InitramfsError> {
    let failed = |source| InitramfsError::Ldd { program: program.to_owned(), source };
    let mut ldd = process::command("ldd", "libc-bin").map_err(failed)?;
    ldd.arg(program).env("LC_ALL", "C");
    let output = process::capture(ldd, Duration::from_secs(20), |_| {}).map_err(failed)?;
    // A static program is a failure for ldd, and needs nothing.
    parse_ldd(&output.text())
        .map_err(|library| InitramfsError::NoLibrary { program: program.to_owned(), library })
}

/// Reads `ldd`'s lines: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f...)`,
/// `/lib64/ld-linux-x86-64.so.2 (0x7f...)`, `linux-vdso.so.1 (0x7f...)`, `libx.so => not found`.
/// The error is the name of a library that is missing.
fn parse_ldd(text: &str) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        let (name, target) = line.split_once(" => ").unwrap_or((line, line));
        if target == "not found" {
            return Err(name.to_owned());
        }
        let path = target.split(" (0x").next().unwrap_or(target);
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
