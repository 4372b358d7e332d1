//! Another QEMU beside the machine's own, unpacked and not installed.
//!
//! In: a suite. Out: a [`Qemu`] in a folder of the cache, or why it cannot run here.
//! Must not know: virtual machines.
//!
//! Only what the machine does not have already is fetched; libraries that are there are used. So
//! it works where the suite's QEMU can be built against the machine's C library, which backports
//! are; a newer suite's QEMU on an older machine is reported as not to be had.

use std::fs;
use std::path::Path;

use crate::apt::{self, Apt, AptError, Installed};
use crate::cache::{Cache, file_name};
use crate::progress;

use super::{Qemu, QemuError};

/// The packages that make a QEMU for x86 without a display.
const PACKAGES: &[&str] = &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];

impl Qemu {
    /// The QEMU of `suite` (such as "bookworm-backports"), fetched and unpacked if it is not in the
    /// cache. The machine's own QEMU is not touched.
    pub fn of_suite(cache: &Cache, suite: &str) -> Result<Qemu, QemuError> {
        let _lock = cache.lock("qemu")?;
        let place = Path::new("qemu").join(file_name(suite));
        if !cache.path(&place).is_dir() {
            fetch(cache, suite, &place)?;
        }
        Qemu::unpacked(&cache.path(&place)).map_err(|error| QemuError::NotHere {
            suite: suite.to_owned(),
            source: Box::new(error),
        })
    }
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
    let apt = Apt::open(cache, &suites, Installed::Machine)?;
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
