//! A guest that was booted once and starts as often as one likes: restored, not booted.
//!
//! In: a guest whose agent is ready and has mounted nothing. Out: guests in that very state, each
//! with a backend of its own and the disk in its first state.
//! Must not know: trials.
//!
//! QEMU saves the devices to a stream; the guest's memory is a file that it maps, and is copied
//! (`x-ignore-shared`). Both are memory of this process (memfd_create(2)), which QEMU opens through
//! /proc, so nothing is left when this process is gone. The disks migrate as every vhost-user-blk
//! disk does: QEMU stops the rings of the old backend (GET_VRING_BASE), which first answers what is in
//! flight, polls of the link disk included, and tells the new one where they stand
//! (SET_VRING_BASE). The agent notices nothing but an empty answer to its poll. It is told to
//! greet, since the new backend has not seen the greeting of the boot, by which a shadow knows the
//! kernel. The host learns the guest's clock before each trial anyway.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::Arc;

use agent::wire::ToGuest;
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::io::Errno;
use tempfile::NamedTempFile;
use thiserror::Error;

use super::{ANSWER_LIMIT, Guest, GuestConfig, GuestError};
use crate::device::Device;
use crate::qemu::{Qmp, QmpError};

/// Why there is no snapshot.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The device has a state that QEMU does not know.
    #[error("a guest with {device} cannot be restored")]
    Device {
        /// The device.
        device: Device,
    },
    /// The guest was not booted for it.
    #[error("the guest was not booted for a snapshot")]
    NotPrepared,
    /// The guest does not answer.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// QEMU did not save it.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// No memory for it.
    #[error("Could not make memory for a snapshot")]
    Memory(#[source] io::Error),
}

/// A guest at the moment in which its agent was ready.
#[derive(Debug)]
pub struct Snapshot {
    config: GuestConfig,
    initramfs: Arc<NamedTempFile>,
    /// Boots that came before; the first guest that is restored tells of them.
    failed_boots: Vec<GuestError>,
    memory: Memory,
    /// What QEMU knows of processors and devices.
    state: Memory,
}

impl Snapshot {
    /// Whether guests with that device can be restored; asked before one is booted for it.
    ///
    /// # Errors
    /// The reason why not.
    pub fn is_possible(device: Device) -> Result<(), SnapshotError> {
        // A page server has a state of its own (which pages are mapped) that nobody migrates.
        if device == Device::Blk { Ok(()) } else { Err(SnapshotError::Device { device }) }
    }

    /// Boots a guest whose snapshot can be taken.
    ///
    /// # Errors
    /// Those of [`Guest::boot`].
    pub fn boot(config: &GuestConfig) -> Result<Guest, GuestError> {
        Guest::boot_as(config, true)
    }

    /// Takes the snapshot of a guest that [`Snapshot::boot`] gave, and ends the guest: its memory is
    /// the snapshot's. The guest must have done nothing yet, or a restored one finds a disk that its
    /// kernel knows otherwise.
    ///
    /// # Errors
    /// The guest was booted otherwise, or QEMU does not save it.
    pub fn take(mut guest: Guest, config: &GuestConfig) -> Result<Snapshot, SnapshotError> {
        // The agent serves: everything after its greeting is behind it.
        guest.ping()?;
        let memory = guest.memory.take().ok_or(SnapshotError::NotPrepared)?;
        let state = Memory::new("racegate-state", 0).map_err(SnapshotError::Memory)?;
        guest.qmp()?.save(&format!("exec:cat > {}", state.path().display()))?;
        let initramfs = Arc::clone(&guest.initramfs);
        let failed_boots = std::mem::take(&mut guest.failed_boots);
        drop(guest);
        Ok(Snapshot { config: config.clone(), initramfs, failed_boots, memory, state })
    }

    /// Starts a guest in the snapshot's state. Its events go to `event_log`; a disk that keeps its
    /// bytes in the image finds there what was written since.
    ///
    /// # Errors
    /// A part that does not start, and a guest that does not answer.
    pub fn restore(&mut self, event_log: Option<PathBuf>) -> Result<Guest, GuestError> {
        let mut config = self.config.clone();
        config.backend.event_log = event_log;
        let memory = self.memory.copy().map_err(|source| GuestError::Memory { source })?;
        let (initramfs, state) = (Arc::clone(&self.initramfs), self.state.path());
        let mut guest = Guest::start(&config, initramfs, Some(memory), true)?;
        let loaded =
            guest.qmp().and_then(|mut qmp| qmp.load(&format!("exec:cat {}", state.display())));
        // QEMU's own words tell more than that it has ended.
        guest.send(&ToGuest::Greet)?;
        guest.greeted(ANSWER_LIMIT)?;
        loaded?;
        guest.failed_boots = std::mem::take(&mut self.failed_boots);
        Ok(guest)
    }
}

impl Guest {
    /// QEMU's machine protocol; a guest is asked for it once.
    fn qmp(&mut self) -> Result<Qmp, QmpError> {
        let listener = self.qmp.take().ok_or(QmpError::NoConnection)?;
        Qmp::accept(&listener, self.vm.pidfd())
    }
}

/// Memory of this process that others can open.
#[derive(Debug)]
pub(super) struct Memory(File);

impl Memory {
    /// So many bytes of zeroes.
    pub(super) fn new(name: &str, bytes: u64) -> io::Result<Memory> {
        let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
        file.set_len(bytes)?;
        Ok(Memory(file))
    }

    /// Where a process of the same user opens it, as long as this value lives.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// A copy; what was never written stays a hole.
    fn copy(&mut self) -> io::Result<Memory> {
        let bytes = self.0.metadata()?.len();
        let copy = Memory::new("racegate-memory", bytes)?;
        let mut end = 0;
        loop {
            let start = match seek(&self.0, SeekFrom::Data(end)) {
                Ok(start) => start,
                // No data after this.
                Err(Errno::NXIO) => return Ok(copy),
                Err(error) => return Err(error.into()),
            };
            end = seek(&self.0, SeekFrom::Hole(start))?;
            self.0.seek(io::SeekFrom::Start(start))?;
            (&copy.0).seek(io::SeekFrom::Start(start))?;
            io::copy(&mut (&self.0).take(end - start), &mut &copy.0)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn a_copy_has_the_bytes_and_the_holes() {
        let bytes = 64 << 20;
        let mut memory = Memory::new("test", bytes).unwrap();
        for at in [0, 5 << 20, (5 << 20) + 8192, bytes - 3] {
            memory.0.write_all_at(b"abc", at).unwrap();
        }
        let copy = memory.copy().unwrap();
        assert!(fs::read(copy.path()).unwrap() == fs::read(memory.path()).unwrap());
        let held = copy.0.metadata().unwrap().blocks() * 512;
        assert!(held <= 1 << 20, "{held} bytes are held");
        // It is another one.
        copy.0.write_all_at(b"x", 0).unwrap();
        let mut first = [0];
        memory.0.read_exact_at(&mut first, 0).unwrap();
        assert_eq!(&first, b"a");
    }

    #[test]
    fn memory_of_zeroes_copies_to_the_same() {
        let copy = Memory::new("test", 4096).unwrap().copy().unwrap();
        assert!(fs::read(copy.path()).unwrap() == [0; 4096]);
    }
}
