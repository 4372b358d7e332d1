//! The machine of a guest: what QEMU is told, and the file that its kernel unpacks.
//!
//! In: a [`GuestConfig`], a backend. Out: a [`VmConfig`], an initramfs.
//! Must not know: what a guest is asked.

use std::io::Write as _;
use std::path::Path;

use tempfile::NamedTempFile;

use super::snapshot::Memory;
use super::{AGENT, GuestConfig, GuestError};
use crate::backend::{Attachment, Backend, BackendConfig};
use crate::device::Device;
use crate::initramfs::Initramfs;
use crate::qemu::{Disk, Pmem, VmConfig};

/// Memory of every guest.
pub(super) const MEMORY_BYTES: u64 = 512 << 20;
/// Entries of the link disk's virtqueue; the agent has two requests in flight.
const LINK_QUEUE_SIZE: u16 = 64;

/// A machine with the disks of `backend`. In `memory` it can be saved, and waits to be loaded if it is
/// `incoming`; else it boots.
pub(super) fn of(
    config: &GuestConfig,
    backend: &Backend,
    initramfs: &Path,
    memory: Option<&Memory>,
    incoming: bool,
) -> Result<VmConfig, GuestError> {
    let mut vm = VmConfig::new(
        config.qemu.clone(),
        config.accel,
        config.kernel.image.clone(),
        initramfs.to_owned(),
    );
    vm.vcpus = config.vcpus;
    vm.memory_mib = (MEMORY_BYTES >> 20) as u32;
    vm.memory = memory.map(Memory::path);
    vm.qmp = memory.map(|_| backend.qmp_socket());
    vm.incoming = incoming;
    vm.cmdline.clone_from(&config.cmdline);
    vm.extra.clone_from(&config.qemu_args);
    let disk = |id: &str, socket: &Path, queues, queue_size| Disk {
        id: id.to_owned(),
        socket: socket.to_owned(),
        queues,
        queue_size,
    };
    let BackendConfig { device, queues, queue_size, .. } = config.backend;
    match (backend.attachment(), device) {
        (Attachment::Socket(socket), Device::Blk) => {
            vm.disks.push(disk("disk", socket, queues, queue_size));
        }
        (Attachment::Socket(socket), _) => {
            vm.pmem = Some(Pmem::VhostUser { socket: socket.clone() });
        }
        (Attachment::File(path), _) => {
            let bytes = image_bytes(&config.backend)?;
            vm.pmem = Some(Pmem::Mapped { device, path: path.clone(), bytes });
        }
    }
    if device.is_pmem() {
        vm.cmdline.push(format!("{}=pmem0", agent::DISK_PARAMETER));
    }
    if let Some(socket) = backend.link_socket() {
        vm.disks.push(disk("link", socket, 1, LINK_QUEUE_SIZE));
    }
    vm.environment = backend.environment().to_vec();
    Ok(vm)
}

/// Size of the image, which is that of the memory.
pub(super) fn image_bytes(config: &BackendConfig) -> Result<u64, GuestError> {
    let path = &config.image;
    let found = std::fs::metadata(path);
    Ok(found.map_err(|source| GuestError::Image { path: path.clone(), source })?.len())
}

/// Writes the initramfs of the guest to a file that lives as long as the value.
pub(super) fn initramfs(config: &GuestConfig) -> Result<NamedTempFile, GuestError> {
    let mut initramfs = Initramfs::new(AGENT)?;
    initramfs.modules(&config.kernel.modules(config.backend.device.modules())?)?;
    for (program, package) in &config.programs {
        initramfs.program(program, package)?;
    }
    for (program, unpacked) in &config.unpacked {
        initramfs.unpacked_program(program, unpacked)?;
    }
    let bytes = initramfs.build()?;
    let failed = |source| GuestError::Write { source };
    let mut file = NamedTempFile::with_prefix("racegate-initramfs-").map_err(failed)?;
    file.write_all(&bytes).map_err(failed)?;
    Ok(file)
}
