//! What must be installed, and how it gets installed.
//!
//! In: the machine. Out: a list of what is missing, and its mend: apt-get, or the line to type.
//! Must not know: what the programs are used for in detail.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use indicatif::ProgressBar;

use crate::cache::Cache;
use crate::process::{self, ProcessError};
use crate::progress;
use crate::qemu::{Qemu, QemuError};

/// Installing packages; a slow mirror is slow.
const INSTALL_LIMIT: Duration = Duration::from_secs(20 * 60);

/// A program that racegate runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The program.
    pub program: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
    /// What it is for.
    pub purpose: &'static str,
}

const fn need(program: &'static str, package: &'static str, purpose: &'static str) -> Need {
    Need { program, package, purpose }
}

const QEMU: Need = need("qemu-system-x86_64", "qemu-system-x86", "runs the guest");

/// Everything that reproducing a bug on a packaged kernel takes.
pub const NEEDS: &[Need] = &[
    QEMU,
    need("mkfs.ext4", "e2fsprogs", "makes base images"),
    need("debugfs", "e2fsprogs", "checks images"),
    need("apt-get", "apt", "fetches packaged kernels"),
    need("dpkg-deb", "dpkg", "unpacks packaged kernels"),
    need("xz", "xz-utils", "unpacks modules of newer kernels"),
    need("ldd", "libc-bin", "finds the libraries of programs that the guest runs"),
    need("setpriv", "util-linux", "lets no child outlive racegate"),
];

/// What building a kernel takes besides; a path is a file that the package brings.
pub const BUILD_NEEDS: &[Need] = &[
    need("gcc", "gcc", "compiles kernels"),
    need("make", "make", "builds kernels"),
    need("flex", "flex", "reads the kernel's configuration language"),
    need("bison", "bison", "reads the kernel's configuration language"),
    need("bc", "bc", "computes the kernel's timer constants"),
    need("/usr/include/libelf.h", "libelf-dev", "lets objtool read the kernel's objects"),
    need("/usr/include/openssl/opensslv.h", "libssl-dev", "builds the kernel's signing tool"),
    need("tar", "tar", "unpacks kernel sources"),
];

/// What fuzzing takes besides.
pub const FUZZ_NEEDS: &[Need] = &[need("c++", "g++", "compiles libFuzzer")];

/// The machine cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Something is missing, and it is not for racegate to install it.
    #[error("{missing} missing; install with: {line}")]
    Missing {
        /// The programs.
        missing: String,
        /// What to type.
        line: String,
    },
    /// Something is missing, and there is no apt.
    #[error(
        "{missing} missing, and this machine has no apt-get; install them with its own \
             package manager"
    )]
    NoApt {
        /// The programs.
        missing: String,
    },
    /// apt-get cannot install QEMU, and it cannot be unpacked beside the machine's packages either.
    #[error("Could not install {} ({installing}), nor run it from a folder of its own", QEMU.package)]
    Qemu {
        /// What apt-get said.
        installing: ProcessError,
        /// Why it cannot be had otherwise.
        source: Box<QemuError>,
    },
    /// apt-get failed.
    #[error("Could not install {packages}")]
    Install {
        /// The packages.
        packages: String,
        /// Why.
        source: ProcessError,
    },
}

/// The needs that this machine does not meet.
fn missing(cache: &Cache) -> Vec<Need> {
    let mut needs = missing_of(NEEDS);
    if needs.contains(&QEMU) && Qemu::find(cache).is_ok() {
        needs.retain(|need| *need != QEMU);
    }
    needs
}

fn missing_of(needs: &[Need]) -> Vec<Need> {
    let is_there = |need: &Need| match need.program {
        path if path.starts_with('/') => Path::new(path).exists(),
        program => process::find_program(program).is_some(),
    };
    needs.iter().filter(|need| !is_there(need)).copied().collect()
}

/// Sees to it that nothing is missing: installs what is if this is root and `may_install`, else the
/// error has the line to type. Gives the packages that were installed. Nothing is removed: a QEMU
/// that apt-get would remove another package for is unpacked into the cache instead.
pub fn ensure(may_install: bool, cache: &Cache) -> Result<Vec<&'static str>, SetupError> {
    let needs = missing(cache);
    if needs.is_empty() {
        return Ok(Vec::new());
    }
    let mut packages = packages(&needs);
    let bar = begin(&needs, may_install)?;
    let joined = packages.join(", ");
    let failed = |source| SetupError::Install { packages: joined.clone(), source };
    if let Err(installing) = install(&packages) {
        if !packages.contains(&QEMU.package) {
            return Err(failed(installing));
        }
        packages.retain(|package| *package != QEMU.package);
        if !packages.is_empty() {
            install(&packages).map_err(failed)?;
        }
        Qemu::beside(cache)
            .map_err(|source| SetupError::Qemu { installing, source: source.into() })?;
    }
    bar.finish_and_clear();
    let still = missing(cache);
    if still.is_empty() {
        return Ok(packages);
    }
    Err(is_missing(&still))
}

/// The same for what else is needed: [`BUILD_NEEDS`], [`FUZZ_NEEDS`].
pub fn ensure_more(more: &[Need], may_install: bool) -> Result<Vec<&'static str>, SetupError> {
    let needs = missing_of(more);
    if needs.is_empty() {
        return Ok(Vec::new());
    }
    let packages = packages(&needs);
    let bar = begin(&needs, may_install)?;
    let failed = |source| SetupError::Install { packages: packages.join(", "), source };
    install(&packages).map_err(failed)?;
    bar.finish_and_clear();
    Ok(packages)
}

/// Sees to it that the packages of `needs` can be installed; they are not yet.
fn begin(needs: &[Need], may_install: bool) -> Result<ProgressBar, SetupError> {
    if process::find_program("apt-get").is_none() {
        return Err(SetupError::NoApt { missing: names(needs) });
    }
    if !may_install || !is_root() {
        return Err(is_missing(needs));
    }
    let packages = packages(needs).join(", ");
    let bar = progress::bar("setup");
    if lists_are_missing() {
        bar.set_message("reading package lists");
        apt_get(&["update"])
            .map_err(|source| SetupError::Install { packages: packages.clone(), source })?;
    }
    bar.set_message(format!("installing {packages}"));
    Ok(bar)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn is_missing(needs: &[Need]) -> SetupError {
    SetupError::Missing { missing: names(needs), line: line(&packages(needs), is_root()) }
}

fn install(packages: &[&str]) -> Result<(), ProcessError> {
    let mut arguments = vec!["install", "--yes", "--no-install-recommends", "--no-remove"];
    arguments.extend(packages);
    apt_get(&arguments)
}

fn apt_get(arguments: &[&str]) -> Result<(), ProcessError> {
    let mut command = process::command("apt-get", "apt")?;
    command.args(["-q", "-o", "DPkg::Lock::Timeout=120"]).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    process::run(command, INSTALL_LIMIT).map(drop)
}

/// Whether apt has never fetched a list; a fresh container's is empty.
fn lists_are_missing() -> bool {
    let lists = fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
    !lists.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

fn names(needs: &[Need]) -> String {
    let names: Vec<&str> = needs.iter().map(|need| need.program).collect();
    format!("{} {}", names.join(", "), if names.len() == 1 { "is" } else { "are" })
}

fn packages(needs: &[Need]) -> Vec<&'static str> {
    let mut packages: Vec<&str> = needs.iter().map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// The line to type.
fn line(packages: &[&str], root: bool) -> String {
    let sudo = if root { "" } else { "sudo " };
    format!("{sudo}apt-get install --no-install-recommends {}", packages.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_once_with_its_package() {
        let needs = [
            need("no-such-program-1", "package-b", ""),
            need("sh", "dash", ""),
            need("no-such-program-2", "package-a", ""),
            need("no-such-program-3", "package-b", ""),
        ];
        let missing = missing_of(&needs);
        assert_eq!(names(&missing), "no-such-program-1, no-such-program-2, no-such-program-3 are");
        let line = line(&packages(&missing), false);
        assert_eq!(line, "sudo apt-get install --no-install-recommends package-a package-b");
    }
}
