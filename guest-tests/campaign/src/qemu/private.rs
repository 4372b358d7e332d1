//! Another QEMU beside the machine's own, unpacked and not installed.
//!
//! In: a suite. Out: a [`Qemu`] in a folder of the cache, or why it cannot run here.
//! Must not know: virtual machines.
//!
//! The C library and everything else that it needs is unpacked with it, and it is started by its
//! own loader: so a QEMU that was built against a newer library runs on an older machine.

use std::fs;
use std::path::{Path, PathBuf};

use crate::apt::{self, Apt, AptError};
use crate::cache::{Cache, file_name};
use crate::progress;

use super::{Qemu, QemuError};

/// The packages that make a QEMU for x86 without a display.
const PACKAGES: &[&str] = &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];

/// The device that fronts a vhost-user backend of any kind; QEMU 11 has it, and maps the
/// backend's shared memory.
pub const VHOST_USER_DEVICE: &str = "vhost-user-test-device-pci";

/// Suites that have a QEMU with [`VHOST_USER_DEVICE`], the one that changes less first.
const SUITES_WITH_VHOST_USER_DEVICE: [&str; 2] = ["trixie-backports", "sid"];

impl Qemu {
    /// The QEMU of `suite` (such as "bookworm-backports"), fetched and unpacked if it is not in the
    /// cache. The machine's own QEMU is not touched.
    pub fn of_suite(cache: &Cache, suite: &str) -> Result<Qemu, QemuError> {
        let _lock = cache.lock("qemu")?;
        let place = place(suite);
        let folder = cache.path(&place);
        let not_here =
            |error| QemuError::NotHere { suite: suite.to_owned(), source: Box::new(error) };
        if let Some(there) = Qemu::unpacked(&folder) {
            return there.map_err(not_here);
        }
        fetch(cache, suite, &place)?;
        Qemu::unpacked(&folder)
            .unwrap_or(Err(QemuError::NotAProgram { path: folder }))
            .map_err(not_here)
    }

    /// The QEMU of the machine's own release, fetched and unpacked if it is not in the cache: for
    /// a machine on which it cannot be installed without removing something else.
    pub fn beside(cache: &Cache) -> Result<Qemu, QemuError> {
        let release = own_release().ok_or(QemuError::NotDebian)?;
        Qemu::of_suite(cache, &release)
    }

    /// What [`Qemu::beside`] has unpacked, if it has.
    pub(super) fn unpacked_beside(cache: &Cache) -> Option<Result<Qemu, QemuError>> {
        Qemu::unpacked(&cache.path(place(&own_release()?)))
    }

    /// A QEMU that can be the front-end of a vhost-user pmem device: the machine's own, else one
    /// of a newer suite, beside it.
    pub fn with_vhost_user_pmem(cache: &Cache) -> Result<Qemu, QemuError> {
        if let Ok(own) = Qemu::find(cache)
            && own.has_device(VHOST_USER_DEVICE)?
        {
            return Ok(own);
        }
        let mut first = None;
        for suite in SUITES_WITH_VHOST_USER_DEVICE {
            match Qemu::of_suite(cache, suite) {
                Ok(qemu) if qemu.has_device(VHOST_USER_DEVICE)? => return Ok(qemu),
                Ok(_) => {}
                // The other suite may do; if not, the first says most.
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        let none = QemuError::NoDevice {
            device: VHOST_USER_DEVICE,
            suites: SUITES_WITH_VHOST_USER_DEVICE.join(" and "),
        };
        Err(first.unwrap_or(none))
    }
}

/// The folder of a suite's QEMU in the cache.
fn place(suite: &str) -> PathBuf {
    Path::new("qemu").join(file_name(suite))
}

/// The code name of this machine's Debian release, such as "bookworm".
fn own_release() -> Option<String> {
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

/// Fetches and unpacks the packages of `suite` into `place`.
fn fetch(cache: &Cache, suite: &str, place: &Path) -> Result<(), QemuError> {
    let bar = progress::bar("QEMU");
    // A backport leans on the release that it is for, and both on its security updates.
    let release = suite.split('-').next().unwrap_or(suite);
    let security = format!("{release}-security");
    let mut suites = vec![release, security.as_str()];
    if !suites.contains(&suite) {
        suites.push(suite);
    }
    let apt = Apt::open(cache, &suites)?;
    let files = apt.download_with_needs(PACKAGES, suite, &bar).map_err(|error| match error {
        AptError::Process(source) => QemuError::NotHere {
            suite: suite.to_owned(),
            source: Box::new(QemuError::Process(source)),
        },
        error => error.into(),
    })?;
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
}
