//! The front-end of the device as QEMU 11.1 is one: its order of messages, its answers, and a
//! driver's requests.
//!
//! In: a device's socket. Out: a running ring, answers to requests.
//! Must not know: where the device runs: in this process, or in one of its own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserMMap, VhostUserProtocolFeatures};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use crate::client::{PATIENCE, readable};
use crate::raw::{Guest, Piece, Ring, fd};

pub(crate) const GUEST_BYTES: u64 = 1 << 20;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;
pub(crate) const SHMEM_REGION: u64 = 1;
/// Where this front-end puts the memory.
pub(crate) const START: u64 = 0xe000_0000;

/// What the device asked its front-end to map: length and inode of each request.
#[derive(Default)]
pub(crate) struct Maps {
    seen: Mutex<Vec<(u64, u64)>>,
    refuse: bool,
}

impl VhostUserFrontendReqHandler for Maps {
    fn shmem_map(&self, request: &VhostUserMMap, fd: &dyn AsRawFd) -> HandlerResult<u64> {
        assert_eq!((request.shmid, { request.fd_offset }, { request.shm_offset }), (0, 0, 0));
        assert_eq!({ request.flags }, 1, "writable");
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let inode = std::fs::metadata(path).expect("the descriptor of the file").ino();
        self.seen.lock().expect("not poisoned").push((request.len, inode));
        if self.refuse { Err(rustix::io::Errno::EXIST.into()) } else { Ok(0) }
    }
}

/// A front-end up to the end of QEMU's construction of the device.
pub(crate) struct Qemu {
    pub(crate) frontend: Frontend,
    pub(crate) channel: FrontendReqHandler<Maps>,
    maps: Arc<Maps>,
    pub(crate) guest: Guest,
    pub(crate) ring: Ring,
}

impl Qemu {
    pub(crate) fn construct(socket: &Path, bytes: u64, refuse: bool) -> Qemu {
        let mut frontend = Frontend::connect(socket, 1).expect("connected");
        let offered = frontend.get_features().expect("GET_FEATURES");
        assert_eq!(offered & (SHMEM_REGION | VERSION_1), SHMEM_REGION | VERSION_1);
        let protocol = frontend.get_protocol_features().expect("GET_PROTOCOL_FEATURES");
        assert!(protocol.contains(VhostUserProtocolFeatures::SHMEM));
        frontend.set_protocol_features(protocol).expect("SET_PROTOCOL_FEATURES");
        let maps = Arc::new(Maps { refuse, ..Maps::default() });
        let mut channel = FrontendReqHandler::new(maps.clone()).expect("a channel");
        channel.set_reply_ack_flag(true);
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_backend_request_fd(&channel.get_tx_raw_fd()).expect("SET_BACKEND_REQ_FD");
        frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
        frontend.set_owner().expect("SET_OWNER");
        let shmem = frontend.get_shmem_config().expect("GET_SHMEM_CONFIG");
        assert_eq!((shmem.nregions, shmem.memory_sizes[0]), (1, bytes));
        let ring = Ring::new(0, 64, 0x1_0000);
        frontend.set_vring_err(0, &ring.err).expect("SET_VRING_ERR");
        Qemu { frontend, channel, maps, guest: Guest::new(GUEST_BYTES), ring }
    }

    /// The driver sets DRIVER_OK: everything up to a running ring.
    pub(crate) fn start(&mut self, features: u64) {
        let frontend = &mut self.frontend;
        frontend.set_features(features | VERSION_1 | PROTOCOL_FEATURES).expect("SET_FEATURES");
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_mem_table(&[self.guest.region()]).expect("SET_MEM_TABLE");
        frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
        frontend.set_vring_num(0, self.ring.size).expect("SET_VRING_NUM");
        frontend.set_vring_base(0, self.ring.avail_idx).expect("SET_VRING_BASE");
        frontend.set_vring_addr(0, &self.ring.addresses()).expect("SET_VRING_ADDR");
        frontend.set_vring_kick(0, &self.ring.kick).expect("SET_VRING_KICK");
        frontend.set_vring_call(0, &self.ring.call).expect("SET_VRING_CALL");
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_vring_enable(0, true).expect("SET_VRING_ENABLE");
        frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
    }

    /// Answers the device's request to map, as QEMU's main loop does when it is done with its own
    /// messages; then tells it of the new memory.
    pub(crate) fn map(&mut self, path: &Path) {
        self.answer();
        let file = File::options().read(true).write(true).open(path).expect("the file");
        let bytes = file.metadata().expect("its size").len();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: START,
            memory_size: bytes,
            userspace_addr: 0x7fff_0000_0000,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        self.frontend.set_mem_table(&[self.guest.region(), region]).expect("SET_MEM_TABLE");
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
    }

    pub(crate) fn answer(&mut self) {
        // SAFETY: the handler, and with it its socket, outlives the borrow.
        let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(self.channel.as_raw_fd()) };
        assert!(readable(socket, PATIENCE), "no SHMEM_MAP");
        assert_eq!(self.channel.handle_request().is_err(), self.maps.refuse);
    }

    pub(crate) fn mapped(&self) -> Vec<(u64, u64)> {
        self.maps.seen.lock().expect("not poisoned").clone()
    }

    /// A request in these pieces, of which the first writable one has the answer.
    pub(crate) fn request(&mut self, pieces: &[Piece]) -> u32 {
        let at = pieces.iter().find(|(_, _, write)| *write).expect("room for the answer").0;
        self.guest.put(at, &[0xff; 4]);
        let head = self.ring.add(&self.guest, pieces);
        self.ring.kick();
        assert_eq!(self.ring.wait_used(&self.guest), (head, 4));
        u32::from_le_bytes(self.guest.get(at, 4).try_into().expect("4 bytes"))
    }

    /// A flush as Linux' driver lays it out.
    pub(crate) fn flush(&mut self) -> u32 {
        self.guest.put(0x8_0000, &0_u32.to_le_bytes());
        self.request(&[(0x8_0000, 4, false), (0x8_0010, 4, true)])
    }

    /// The device gives the queue up, and says so.
    pub(crate) fn breaks(&mut self, pieces: &[Piece]) {
        self.ring.add(&self.guest, pieces);
        self.ring.kick();
        assert!(readable(fd(&self.ring.err), PATIENCE), "no error on the eventfd");
        self.ring.err.read().expect("the error");
        assert_eq!(self.ring.try_used(&self.guest), None);
    }
}
