//! A virtual machine monitor by hand: guest memory, rings and an in-flight area that outlive the
//! daemon, and the message orders of QEMU 10.0.2 and cloud-hypervisor v54.
//!
//! In: a socket's path. Out: rings that run, again and again.
//! Must not know: what the requests are.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::socket::{
    GET_FEATURES, GET_INFLIGHT_FD, GET_PROTOCOL_FEATURES, GET_VRING_BASE, Gone, SET_FEATURES,
    SET_INFLIGHT_FD, SET_MEM_TABLE, SET_OWNER, SET_PROTOCOL_FEATURES, SET_VRING_ADDR,
    SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ENABLE, SET_VRING_KICK, SET_VRING_NUM, Socket,
};

/// Descriptors of a ring.
pub(crate) const RING_SIZE: u16 = 128;
/// Chains of three descriptors.
pub(crate) const SLOTS: u16 = RING_SIZE / 3;
pub(crate) const QUEUES: usize = 2;
/// Bytes of guest memory that a slot's header, status and data have.
const SLOT_BYTES: u64 = 0x1_0000;
/// Bytes of data of a slot, at most.
pub(crate) const DATA_BYTES: u64 = 0x8000;

const USER_BASE: u64 = 0x7f00_0000_0000;
const RING_BYTES: u64 = 0x1_0000;
const MEMORY_BYTES: u64 = QUEUES as u64 * (RING_BYTES + SLOTS as u64 * SLOT_BYTES);

/// VERSION_1, EVENT_IDX, PROTOCOL_FEATURES, FLUSH, CONFIG_WCE, MQ, WRITE_ZEROES.
const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 30 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 14;
/// MQ, REPLY_ACK, CONFIG, INFLIGHT_SHMFD, CONFIGURE_MEM_SLOTS.
const PROTOCOL_FEATURES: u64 = 1 | 1 << 3 | 1 << 9 | 1 << 12 | 1 << 15;

/// Whose order of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manners {
    Qemu,
    CloudHypervisor,
}

/// What a virtual machine keeps while its daemon is dead.
pub(crate) struct Vmm {
    memory: GuestMemoryMmap,
    file: OwnedFd,
    pub(crate) rings: Vec<Ring>,
    /// Payload and descriptor, as the daemon gave them.
    inflight: Option<(Vec<u8>, OwnedFd)>,
    socket: Option<Socket>,
}

/// The driver's side of one split ring.
pub(crate) struct Ring {
    base: u64,
    pub(crate) avail_idx: u16,
    pub(crate) used_idx: u16,
    kick: OwnedFd,
    pub(crate) call: OwnedFd,
}

impl Vmm {
    pub(crate) fn new() -> Vmm {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("guest memory");
        rustix::fs::ftruncate(&file, MEMORY_BYTES).expect("its size");
        let again = std::fs::File::from(file.try_clone().expect("a descriptor"));
        let memory = GuestMemoryMmap::from_ranges_with_files([(
            GuestAddress(0),
            MEMORY_BYTES as usize,
            Some(FileOffset::new(again, 0)),
        )])
        .expect("its mapping");
        let event = || eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
        let ring = |queue: usize| Ring {
            base: queue as u64 * RING_BYTES,
            avail_idx: 0,
            used_idx: 0,
            kick: event(),
            call: event(),
        };
        let rings = (0..QUEUES).map(ring).collect();
        Vmm { memory, file, rings, inflight: None, socket: None }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    pub(crate) fn disconnect(&mut self) {
        self.socket = None;
    }

    /// Connects and starts the rings where the front-end believes they are.
    pub(crate) fn connect(&mut self, path: &Path, manners: Manners) -> Result<(), Gone> {
        let socket = Socket::connect(path)?;
        match manners {
            Manners::Qemu => {
                socket.ask_number(GET_FEATURES)?;
                let offered = socket.ask_number(GET_PROTOCOL_FEATURES)?;
                assert_eq!(offered & PROTOCOL_FEATURES, PROTOCOL_FEATURES, "not offered");
                socket.say(SET_PROTOCOL_FEATURES, &PROTOCOL_FEATURES.to_ne_bytes(), &[])?;
                socket.say(SET_OWNER, &[], &[])?;
            }
            Manners::CloudHypervisor => {
                socket.say(SET_OWNER, &[], &[])?;
                socket.ask_number(GET_FEATURES)?;
                socket.say(SET_PROTOCOL_FEATURES, &PROTOCOL_FEATURES.to_ne_bytes(), &[])?;
            }
        }
        self.start(&socket, manners)?;
        self.socket = Some(socket);
        Ok(())
    }

    /// What is sent when the driver says DRIVER_OK, or after a reconnection.
    fn start(&mut self, socket: &Socket, manners: Manners) -> Result<(), Gone> {
        socket.say(SET_FEATURES, &FEATURES.to_ne_bytes(), &[])?;
        let regions = [1_u64, 0, MEMORY_BYTES, USER_BASE, 0].map(u64::to_ne_bytes).concat();
        let memory = |socket: &Socket| socket.order(SET_MEM_TABLE, &regions, &[self.file.as_fd()]);
        if manners == Manners::CloudHypervisor {
            memory(socket)?;
            for (index, _) in self.rings.iter().enumerate() {
                socket.order(SET_VRING_NUM, &pair(index, RING_SIZE.into()), &[])?;
            }
        }
        if self.inflight.is_none() {
            // The padding is not initialised by cloud-hypervisor.
            let mut asked = [0x5A; 24];
            asked[..16].fill(0);
            asked[16..18].copy_from_slice(&(QUEUES as u16).to_ne_bytes());
            asked[18..20].copy_from_slice(&RING_SIZE.to_ne_bytes());
            let (payload, mut fds) = socket.ask(GET_INFLIGHT_FD, &asked)?;
            self.inflight = Some((payload, fds.pop().expect("an in-flight area")));
        }
        let (payload, fd) = self.inflight.as_ref().expect("just asked for");
        match manners {
            Manners::Qemu => socket.say(SET_INFLIGHT_FD, payload, &[fd.as_fd()])?,
            Manners::CloudHypervisor => socket.order(SET_INFLIGHT_FD, payload, &[fd.as_fd()])?,
        }
        if manners == Manners::Qemu {
            memory(socket)?;
        }
        for (index, ring) in self.rings.iter().enumerate() {
            let queue = (index as u64).to_ne_bytes();
            let (kick, call) = (ring.kick.as_fd(), ring.call.as_fd());
            match manners {
                Manners::Qemu => {
                    let base = self.used_in_memory(index);
                    socket.say(SET_VRING_CALL, &queue, &[call])?;
                    socket.say(SET_VRING_NUM, &pair(index, RING_SIZE.into()), &[])?;
                    socket.say(SET_VRING_BASE, &pair(index, base.into()), &[])?;
                    socket.say(SET_VRING_ADDR, &ring.addresses(index), &[])?;
                    socket.say(SET_VRING_KICK, &queue, &[kick])?;
                }
                Manners::CloudHypervisor => {
                    socket.order(SET_VRING_ADDR, &ring.addresses(index), &[])?;
                    let base = pair(index, ring.avail_idx.into());
                    socket.order(SET_VRING_BASE, &base, &[])?;
                    socket.order(SET_VRING_CALL, &queue, &[call])?;
                    socket.order(SET_VRING_KICK, &queue, &[kick])?;
                }
            }
        }
        for index in 0..self.rings.len() {
            socket.order(SET_VRING_ENABLE, &pair(index, 1), &[])?;
        }
        Ok(())
    }

    /// Stops the rings; gives the indices that the daemon tells.
    pub(crate) fn stop(&mut self) -> Result<Vec<u16>, Gone> {
        let socket = self.socket.as_ref().ok_or(Gone)?;
        for index in 0..self.rings.len() {
            socket.order(SET_VRING_ENABLE, &pair(index, 0), &[])?;
        }
        (0..self.rings.len())
            .map(|index| {
                let (payload, _) = socket.ask(GET_VRING_BASE, &pair(index, 0))?;
                Ok(u16::from_ne_bytes([payload[4], payload[5]]))
            })
            .collect()
    }

    /// Starts the rings again on the same connection; after `reset` they, and the in-flight area,
    /// are new.
    pub(crate) fn start_again(&mut self, reset: bool) -> Result<(), Gone> {
        if reset {
            self.inflight = None;
            for ring in &mut self.rings {
                (ring.avail_idx, ring.used_idx) = (0, 0);
                let zeroes = vec![0; RING_BYTES as usize];
                self.memory.write_slice(&zeroes, GuestAddress(ring.base)).expect("in memory");
            }
        }
        let socket = self.socket.take().ok_or(Gone)?;
        let started = self.start(&socket, Manners::Qemu);
        self.socket = Some(socket);
        started
    }

    pub(crate) fn put(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).expect("in guest memory");
    }

    pub(crate) fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).expect("in guest memory");
        bytes
    }

    /// Where a slot's header is; its status byte is 32 bytes on, its data a page.
    pub(crate) fn slot_addr(queue: usize, slot: u16) -> u64 {
        QUEUES as u64 * RING_BYTES
            + (queue as u64 * u64::from(SLOTS) + u64::from(slot)) * SLOT_BYTES
    }

    /// Makes the chain of a slot available: header, data, status.
    pub(crate) fn offer(&mut self, queue: usize, slot: u16, data_len: u32, data_in: bool) {
        let addr = Vmm::slot_addr(queue, slot);
        let head = 3 * slot;
        let ring = &self.rings[queue];
        let put = |index: u16, addr: u64, len: u32, write: bool, next: Option<u16>| {
            let flags = u16::from(next.is_some()) | u16::from(write) << 1;
            let mut bytes = addr.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.unwrap_or(0).to_le_bytes());
            self.put(ring.base + 16 * u64::from(index), &bytes);
        };
        let status = head + 2;
        if data_len == 0 {
            put(head, addr, 16, false, Some(status));
        } else {
            put(head, addr, 16, false, Some(head + 1));
            put(head + 1, addr + 0x1000, data_len, data_in, Some(status));
        }
        put(status, addr + 0x20, 1, true, None);
        let ring = &mut self.rings[queue];
        let at = ring.avail() + 4 + 2 * u64::from(ring.avail_idx % RING_SIZE);
        ring.avail_idx = ring.avail_idx.wrapping_add(1);
        let (idx, idx_at) = (ring.avail_idx, GuestAddress(ring.avail() + 2));
        self.put(at, &head.to_le_bytes());
        self.memory.store(idx, idx_at, Ordering::SeqCst).expect("in guest memory");
    }

    pub(crate) fn kick(&self, queue: usize) {
        rustix::io::write(&self.rings[queue].kick, &1_u64.to_ne_bytes()).expect("a kick");
    }

    pub(crate) fn used_in_memory(&self, queue: usize) -> u16 {
        let at = GuestAddress(self.rings[queue].used() + 2);
        self.memory.load(at, Ordering::SeqCst).expect("in guest memory")
    }

    /// The next used element, if there is one: head and length.
    pub(crate) fn next_used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let idx = self.used_in_memory(queue);
        let ring = &mut self.rings[queue];
        if idx == ring.used_idx {
            return None;
        }
        let at = ring.used() + 4 + 8 * u64::from(ring.used_idx % RING_SIZE);
        ring.used_idx = ring.used_idx.wrapping_add(1);
        // For EVENT_IDX: call for the next one.
        let (event, next) = (ring.avail() + 4 + 2 * u64::from(RING_SIZE), ring.used_idx);
        self.put(event, &next.to_le_bytes());
        let bytes = self.get(at, 8);
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Some((word(0), word(4)))
    }
}

impl Ring {
    fn avail(&self) -> u64 {
        self.base + 0x4000
    }

    fn used(&self) -> u64 {
        self.base + 0x8000
    }

    /// Payload of SET_VRING_ADDR.
    fn addresses(&self, index: usize) -> Vec<u8> {
        let mut bytes = pair(index, 0);
        for at in [self.base, self.used(), self.avail()] {
            bytes.extend((USER_BASE + at).to_ne_bytes());
        }
        bytes.extend(0_u64.to_ne_bytes());
        bytes
    }
}

/// Payload of a vring state: index and number.
fn pair(index: usize, number: u32) -> Vec<u8> {
    [index as u32, number].map(u32::to_ne_bytes).concat()
}
