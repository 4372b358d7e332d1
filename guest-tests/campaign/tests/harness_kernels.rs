//! Goal: packaged kernels arrive, boot and tell about it, and nothing is left behind.
//! Method: real packages from the machine's mirror, real QEMU, the machine's own programs as init.
//! The init is a shell script, so that these tests need nothing of the agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use campaign::cache::Cache;
use campaign::device::Device;
use campaign::initramfs::Initramfs;
use campaign::kernels::{Kernel, Kernels, Spec};
use campaign::notice::{Inbox, Notice, WaitError};
use campaign::qemu::{Qemu, VHOST_USER_DEVICE, Vm, VmConfig};

const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Names the modules that it finds, and the kernel that it runs on, and stays.
const INIT: &str = "#!/bin/sh\n\
    mount -t proc proc /proc\n\
    while read -r module; do [ -s \"$module\" ] && echo \"module $module\"; done < /modules/list\n\
    read -r line < /proc/sys/kernel/osrelease\n\
    echo \"release $line\"\n\
    read -r nothing\n";

/// What bullseye's kernel needs for a virtio disk, in load order.
const BULLSEYE: &[&str] = &[
    "/modules/virtio_ring.ko",
    "/modules/virtio.ko",
    "/modules/virtio_pci.ko",
    "/modules/virtio_blk.ko",
];
/// trixie's has the rest built in.
const TRIXIE: &[&str] = &["/modules/virtio_blk.ko"];

fn kernel(cache: &Cache, name: &str) -> Kernel {
    Kernels::new(cache).fetch(&Spec::parse(name, None).unwrap()).unwrap()
}

fn initramfs(folder: &Path, kernel: &Kernel) -> PathBuf {
    let mut initramfs = Initramfs::new(INIT.as_bytes()).unwrap();
    for (program, package) in [("sh", "dash"), ("mount", "mount")] {
        initramfs.program(program, package).unwrap();
    }
    initramfs.modules(&kernel.modules(Device::Blk.modules()).unwrap()).unwrap();
    let path = folder.join("initramfs");
    fs::write(&path, initramfs.build().unwrap()).unwrap();
    path
}

fn boots(qemu: &Qemu, name: &str, release: &str, expected: &[&str]) {
    let cache = Cache::open().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel(&cache, name);
    let initramfs = initramfs(folder.path(), &kernel);
    let accel = qemu.accel().unwrap();
    let config = VmConfig::new(qemu.clone(), accel, kernel.image.clone(), initramfs);
    let mut inbox = Inbox::new();
    let vm = Vm::start(&config, &inbox.sender()).unwrap();
    let mut modules = Vec::new();
    let found = inbox.wait_for("the init's last line", BOOT_LIMIT, |notice| match notice {
        Notice::Console(line) => {
            modules.extend(line.text.strip_prefix("module ").map(str::to_owned));
            line.text.strip_prefix("release ").map(str::to_owned)
        }
        _ => None,
    });
    let found = found.unwrap_or_else(|error| panic!("{error}\n{}", vm.command_line()));
    assert_eq!(found, release);
    assert_eq!(modules, expected, "{}", inbox.tail());

    let pid = vm.pid();
    drop(vm);
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "QEMU is still there");
}

/// The machine's own QEMU.
fn own_qemu() -> Qemu {
    Qemu::find(&Cache::open().unwrap()).unwrap()
}

#[test]
fn the_kernel_of_the_founding_bug_boots() {
    boots(&own_qemu(), "debian-5.10.223", "5.10.0-32-cloud-amd64", BULLSEYE);
}

#[test]
fn a_kernel_with_compressed_modules_boots() {
    let release = "6.12.107+deb13-cloud-amd64";
    boots(&own_qemu(), "debian-6.12.107", release, TRIXIE);
}

#[test]
fn an_init_that_ends_is_reported_as_the_panic_that_it_is() {
    let cache = Cache::open().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel(&cache, "debian-5.10.223");
    let path = folder.path().join("initramfs");
    let initramfs = Initramfs::new(b"not a program").unwrap();
    fs::write(&path, initramfs.build().unwrap()).unwrap();
    let qemu = own_qemu();
    let accel = qemu.accel().unwrap();
    let config = VmConfig::new(qemu, accel, kernel.image, path);
    let mut inbox = Inbox::new();
    let vm = Vm::start(&config, &inbox.sender()).unwrap();
    let error = inbox.wait_for("never", BOOT_LIMIT, |_| None::<()>).unwrap_err();
    assert!(
        matches!(&error, WaitError::Panicked { panic, .. } if panic.contains("init")),
        "{error}"
    );
    assert!(vm.wait_exit(BOOT_LIMIT).unwrap().success());
}

#[test]
fn a_second_qemu_beside_the_machines_own_boots_a_kernel() {
    let own = own_qemu();
    // The two that Debian 12 has.
    let suite = if own.version().major < 8 { "bookworm-backports" } else { "bookworm" };
    let cache = Cache::open().unwrap();
    let other = Qemu::of_suite(&cache, suite).unwrap();
    assert_ne!(other.version().major, own.version().major);
    boots(&other, "debian-5.10.223", "5.10.0-32-cloud-amd64", BULLSEYE);
    assert_eq!(own_qemu().version(), own.version());
}

#[test]
fn a_qemu_of_a_newer_debian_runs_with_its_own_c_library() {
    let cache = Cache::open().unwrap();
    let qemu = Qemu::with_vhost_user_pmem(&cache).unwrap();
    assert!(qemu.version().major >= 11, "{}", qemu.version());
    assert!(qemu.has_device(VHOST_USER_DEVICE).unwrap());
    assert!(!qemu.has_device("no-such-device").unwrap());
    boots(&qemu, "debian-5.10.223", "5.10.0-32-cloud-amd64", BULLSEYE);
}
