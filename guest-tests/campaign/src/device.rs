//! Which device a guest keeps its file system on.
//!
//! In: a name. Out: a [`Device`], the drivers that a guest needs for it.
//! Must not know: how the device is served.

use std::fmt;

use pipeline::Op;

/// Bytes of a huge page.
const PMEM_BYTES: u64 = 2 << 20;

/// A way of attaching the image to a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// A vhost-user-blk disk.
    #[default]
    Blk,
    /// An NVDIMM whose backing file racegate serves page by page.
    Nvdimm,
    /// QEMU's virtio-pmem device with such a backing file.
    VirtioPmem,
    /// A vhost-user device of type pmem, mapped from such a file; QEMU 11 has it.
    VhostUserPmem,
}

impl Device {
    /// All of them.
    pub const ALL: [Device; 4] =
        [Device::Blk, Device::Nvdimm, Device::VirtioPmem, Device::VhostUserPmem];

    /// Its name on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Device::Blk => "blk",
            Device::Nvdimm => "nvdimm",
            Device::VirtioPmem => "virtio-pmem",
            Device::VhostUserPmem => "vhost-user-pmem",
        }
    }

    /// The device of that name.
    pub fn parse(name: &str) -> Option<Device> {
        Device::ALL.into_iter().find(|device| device.name() == name)
    }

    /// Whether the guest sees memory, not a disk.
    pub fn is_pmem(self) -> bool {
        self != Device::Blk
    }

    /// What a guest can ask of it, as [`Op::bit`]s.
    pub fn ops(self) -> u8 {
        let ops: &[Op] = if self.is_pmem() {
            &[Op::Fault, Op::Store, Op::Flush]
        } else {
            &[Op::Read, Op::Write, Op::Flush, Op::Discard, Op::WriteZeroes]
        };
        ops.iter().fold(0, |bits, op| bits | op.bit())
    }

    /// The next size that it can have, if it cannot have this one: QEMU takes whole huge pages for
    /// memory in a slot, and a power of two for a PCI region (`pci_register_bar`).
    pub fn next_fit(self, bytes: u64) -> Option<u64> {
        let fit = match self {
            Device::Blk => bytes,
            Device::Nvdimm | Device::VirtioPmem => bytes.next_multiple_of(PMEM_BYTES),
            Device::VhostUserPmem => bytes.max(PMEM_BYTES).next_power_of_two(),
        };
        (fit != bytes).then_some(fit)
    }

    /// Modules that a guest needs for it and for the link disk, whatever the kernel has built in.
    pub fn modules(self) -> &'static [&'static str] {
        match self {
            Device::Blk => &["virtio_pci", "virtio_blk"],
            Device::Nvdimm => &["virtio_pci", "virtio_blk", "nfit", "nd_pmem"],
            Device::VirtioPmem | Device::VhostUserPmem => {
                &["virtio_pci", "virtio_blk", "nd_pmem", "virtio_pmem"]
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Device;

    #[test]
    fn sizes_that_fit() {
        let mib = 1 << 20;
        assert_eq!(Device::Nvdimm.next_fit(66 * mib), None);
        assert_eq!(Device::Nvdimm.next_fit(67 * mib), Some(68 * mib));
        assert_eq!(Device::VirtioPmem.next_fit(4096), Some(2 * mib));
        assert_eq!(Device::VhostUserPmem.next_fit(66 * mib), Some(128 * mib));
        assert_eq!(Device::VhostUserPmem.next_fit(64 * mib), None);
        assert_eq!(Device::Blk.next_fit(512), None);
    }

    #[test]
    fn names_read_back() {
        for device in Device::ALL {
            assert_eq!(Device::parse(device.name()), Some(device));
        }
        assert_eq!(Device::parse("floppy"), None);
    }
}
