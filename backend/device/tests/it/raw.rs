//! A guest by hand: memory in a memfd, split rings written byte by byte, so that a test can lay
//! out, and lie about, anything.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, memfd_create};
use vhost::{VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::client::{PATIENCE, readable};

/// Where the front-end says its own mapping of guest address 0 is.
const USER_BASE: u64 = 0x7f00_0000_0000;

/// Guest memory, to be handed to a device.
pub(crate) struct Guest {
    pub(crate) memory: GuestMemoryMmap,
    file: std::fs::File,
    len: u64,
}

impl Guest {
    /// `len` bytes from guest address 0 on.
    pub(crate) fn new(len: u64) -> Guest {
        let file =
            std::fs::File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("guest memory"));
        file.set_len(len).expect("its size");
        let offset = FileOffset::new(file.try_clone().expect("a descriptor"), 0);
        let memory = GuestMemoryMmap::from_ranges_with_files([(
            GuestAddress(0),
            len as usize,
            Some(offset),
        )])
        .expect("its mapping");
        Guest { memory, file, len }
    }

    /// The region as ADD_MEM_REG or SET_MEM_TABLE wants it.
    pub(crate) fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: self.len,
            userspace_addr: USER_BASE,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    pub(crate) fn put(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).expect("in guest memory");
    }

    pub(crate) fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).expect("in guest memory");
        bytes
    }

    pub(crate) fn put_header(&self, addr: u64, kind: u32, sector: u64) {
        self.put(addr, &[u64::from(kind).to_le_bytes(), sector.to_le_bytes()].concat());
    }
}

/// Address, length, written by the device.
pub(crate) type Piece = (u64, u32, bool);

/// A split ring of 16-byte descriptors at `base`.
pub(crate) struct Ring {
    pub(crate) index: usize,
    pub(crate) size: u16,
    base: u64,
    next_descriptor: u16,
    pub(crate) avail_idx: u16,
    used_idx: u16,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    pub(crate) err: EventFd,
}

impl Ring {
    /// A ring in the 64 KiB from `base` on.
    pub(crate) fn new(index: usize, size: u16, base: u64) -> Ring {
        let event = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        Ring {
            index,
            size,
            base,
            next_descriptor: 0,
            avail_idx: 0,
            used_idx: 0,
            kick: event(),
            call: event(),
            err: event(),
        }
    }

    fn avail(&self) -> u64 {
        self.base + 0x4000
    }

    fn used(&self) -> u64 {
        self.base + 0x8000
    }

    /// As a fresh driver finds it.
    pub(crate) fn reset(&mut self, guest: &Guest) {
        guest.put(self.base, &vec![0; 0xC000]);
        (self.next_descriptor, self.avail_idx, self.used_idx) = (0, 0, 0);
    }

    pub(crate) fn addresses(&self) -> VringConfigData {
        VringConfigData {
            queue_max_size: self.size,
            queue_size: self.size,
            flags: 0,
            desc_table_addr: USER_BASE + self.base,
            used_ring_addr: USER_BASE + self.used(),
            avail_ring_addr: USER_BASE + self.avail(),
            log_addr: None,
        }
    }

    pub(crate) fn put_descriptor(
        &self,
        guest: &Guest,
        index: u16,
        addr: u64,
        len: u32,
        flags: u32,
        next: u16,
    ) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend((flags as u16).to_le_bytes());
        bytes.extend(next.to_le_bytes());
        guest.put(self.base + 16 * u64::from(index), &bytes);
    }

    /// Makes a chain of these pieces available (without a kick), and gives its head.
    pub(crate) fn add(&mut self, guest: &Guest, pieces: &[Piece]) -> u16 {
        let head = self.next_descriptor;
        for (i, &(addr, len, write)) in pieces.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let next = if i + 1 < pieces.len() { VRING_DESC_F_NEXT } else { 0 };
            let flags = next | if write { VRING_DESC_F_WRITE } else { 0 };
            self.put_descriptor(guest, index, addr, len, flags, self.next_descriptor);
        }
        self.offer(guest, head);
        head
    }

    /// Makes whatever is at `head` available.
    pub(crate) fn offer(&mut self, guest: &Guest, head: u16) {
        let slot = self.avail() + 4 + 2 * u64::from(self.avail_idx % self.size);
        guest.put(slot, &head.to_le_bytes());
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.publish(guest, self.avail_idx);
    }

    /// Writes the index of the avail ring.
    pub(crate) fn publish(&self, guest: &Guest, idx: u16) {
        guest
            .memory
            .store(idx.to_le(), GuestAddress(self.avail() + 2), Ordering::SeqCst)
            .expect("in guest memory");
    }

    pub(crate) fn kick(&self) {
        self.kick.write(1).expect("a kick");
    }

    pub(crate) fn used_in_memory(&self, guest: &Guest) -> u16 {
        guest.memory.load(GuestAddress(self.used() + 2), Ordering::SeqCst).expect("in memory")
    }

    /// The next used element, if it is there: head and length.
    pub(crate) fn try_used(&mut self, guest: &Guest) -> Option<(u16, u32)> {
        if self.used_in_memory(guest) == self.used_idx {
            return None;
        }
        let slot = self.used() + 4 + 8 * u64::from(self.used_idx % self.size);
        let bytes = guest.get(slot, 8);
        self.used_idx = self.used_idx.wrapping_add(1);
        // For drivers with EVENT_IDX: call for the next one.
        let event = self.avail() + 4 + 2 * u64::from(self.size);
        guest.put(event, &self.used_idx.to_le_bytes());
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Some((word(0) as u16, word(4)))
    }

    /// Waits for the next used element.
    pub(crate) fn wait_used(&mut self, guest: &Guest) -> (u16, u32) {
        loop {
            if let Some(used) = self.try_used(guest) {
                return used;
            }
            assert!(readable(fd(&self.call), PATIENCE), "queue {}: no call", self.index);
            let _ = self.call.read();
        }
    }

    /// One request from kick to call: its status and the used length.
    pub(crate) fn run(&mut self, guest: &Guest, pieces: &[Piece]) -> (u8, u32) {
        let head = self.add(guest, pieces);
        self.kick();
        let (done, len) = self.wait_used(guest);
        assert_eq!(done, head, "queue {}: another chain", self.index);
        let status = pieces.iter().rev().find(|(_, len, write)| *write && *len > 0);
        let &(addr, bytes, _) = status.expect("a status byte");
        (guest.get(addr + u64::from(bytes) - 1, 1)[0], len)
    }
}

pub(crate) fn fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as its owner is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
