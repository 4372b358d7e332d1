//! Goal: persistent memory that cannot be had is one line that says what to do, before anything
//! is started.
//! Method: guests with images of odd sizes, and with a QEMU that lacks the device.

use std::fs::File;

use anyhow::{Result, bail, ensure};
use campaign::device::Device;
use campaign::guest::Guest;
use campaign::qemu::VHOST_USER_DEVICE;
use libtest_mimic::Trial;

use crate::machine::{Machine, Which};

const KERNEL: &str = "debian-6.12.107";

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    let has = machine.qemu().has_device(VHOST_USER_DEVICE).unwrap_or(false);
    let why_not = has.then_some("this machine's own QEMU has every device");
    vec![
        machine.test("pmem_errors::sizes", Which::Own, sizes),
        machine.test_unless(why_not, "pmem_errors::qemu_without_device", Which::Own, lacking),
    ]
}

fn sizes(machine: &Machine) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("odd");
    for (device, bytes, next) in
        [(Device::Nvdimm, (64 << 20) + 4096, 66_u64 << 20), (Device::VirtioPmem, 1 << 20, 2 << 20)]
    {
        File::create(&image)?.set_len(bytes)?;
        let mut config = machine.guest(Which::Own, KERNEL, &image)?;
        config.backend.device = device;
        refused(Guest::boot(&config), &["odd", device.name(), &format!("truncate -s {next}")])?;
    }
    Ok(())
}

fn lacking(machine: &Machine) -> Result<()> {
    let mut config = machine.guest(Which::Own, KERNEL, &machine.image(64)?)?;
    config.backend.device = Device::VhostUserPmem;
    refused(Guest::boot(&config), &[VHOST_USER_DEVICE, "vhost-user-pmem", "--qemu"])
}

fn refused<E: std::fmt::Display>(booted: Result<Guest, E>, words: &[&str]) -> Result<()> {
    let Err(error) = booted else { bail!("the guest has booted") };
    let text = error.to_string();
    ensure!(!text.contains('\n'), "more than a line: {text}");
    for word in words {
        ensure!(text.contains(word), "no \"{word}\" in: {text}");
    }
    Ok(())
}
