//! Another QEMU beside the machine's own, unpacked and not installed.
//!
//! In: a suite. Out: a [`Qemu`] in a folder of the cache, or why it cannot run here.
//! Must not know: virtual machines.
//!
//! The C library and everything else that it needs is unpacked with it, and it is started by its
//! own loader: so a QEMU that was built against a newer library runs on an older machine.

use std::path::{Path, PathBuf};

use crate::apt::AptError;
use crate::cache::{Cache, file_name};
use crate::unpacked::{self, own_release};

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
        unpacked::fetch(cache, suite, PACKAGES, &place).map_err(|error| match error {
            AptError::Process(source) => not_here(QemuError::Process(source)),
            error => error.into(),
        })?;
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
