//! What init does before it can talk: the kernel's own file systems, and modules.
//!
//! In: the initramfs. Out: a system with /proc, /sys, /dev and loaded drivers.

use std::fs::{self, File};
use std::io::ErrorKind;

use agent::{MODULE_LIST, MOUNT_POINT};
use anyhow::Context;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// Mount point, type, and whether a trial can do without.
const KERNEL_FILE_SYSTEMS: [(&str, &str, bool); 6] = [
    ("/proc", "proc", false),
    ("/sys", "sysfs", false),
    ("/dev", "devtmpfs", false),
    ("/sys/kernel/debug", "debugfs", true),
    ("/sys/kernel/tracing", "tracefs", true),
    ("/tmp", "tmpfs", true),
];

/// Mounts /proc, /sys, /dev, debugfs, tracefs and /tmp, and makes the mount point of the disk.
pub(crate) fn mount_kernel_file_systems() -> anyhow::Result<()> {
    for (point, kind, optional) in KERNEL_FILE_SYSTEMS {
        let made = fs::create_dir_all(point);
        let mounted = mount(kind, point, kind, MountFlags::empty(), None);
        match (made, mounted) {
            // Busy: the kernel has mounted it already.
            (_, Ok(()) | Err(Errno::BUSY)) => {}
            _ if optional => {}
            (Err(error), _) => return Err(error).with_context(|| format!("creating {point}")),
            (_, Err(error)) => return Err(error).with_context(|| format!("mounting {point}")),
        }
    }
    fs::create_dir_all(MOUNT_POINT).with_context(|| format!("creating {MOUNT_POINT}"))
}

/// Loads every module of the list, in its order.
pub(crate) fn load_modules() -> anyhow::Result<()> {
    let list = match fs::read_to_string(MODULE_LIST) {
        Ok(list) => list,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(MODULE_LIST),
    };
    for path in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let module = File::open(path).with_context(|| path.to_owned())?;
        match rustix::system::finit_module(&module, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("loading {path}")),
        }
    }
    Ok(())
}
