//! The message orders of real front-ends, replayed with the `vhost` crate's front-end.
//!
//! Goal: what QEMU 10.0.2 and cloud-hypervisor v54 send, in that order, gives a working disk.
//! Method: the orders as they were traced; a write and a read prove that the disk works.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use device::blk::DeviceOptions;
use device::storage::Storage;
use tempfile::{TempDir, tempdir};
use vhost::VhostBackend;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler,
};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_config::{
    VIRTIO_F_IN_ORDER, VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::client::readable;
use crate::raw::{Guest, Ring};
use crate::served::{Served, image};
use crate::storages::open;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;

pub(crate) const fn bit(feature: u32) -> u64 {
    1 << feature
}

pub(crate) struct Setting {
    pub(crate) served: Served,
    pub(crate) guest: Guest,
    pub(crate) storage: Arc<dyn Storage>,
    _dir: TempDir,
}

pub(crate) fn setting(queues: u16, kind: &str) -> Setting {
    let dir = tempdir().expect("a directory");
    let storage = open(kind, &image(&dir, 4 * MIB));
    let options = DeviceOptions { num_queues: queues, queue_size: 128, ..DeviceOptions::default() };
    let served = Served::start(options, storage.clone(), None);
    Setting { served, guest: Guest::new(4 * MIB), storage, _dir: dir }
}

pub(crate) fn rings(n: usize) -> Vec<Ring> {
    (0..n).map(|i| Ring::new(i, 128, 0x1_0000 * (i as u64 + 1))).collect()
}

/// Connects; the socket is there, the device may be busy with the front-end before.
pub(crate) fn connect(socket: &Path, queues: u64) -> Frontend {
    Frontend::connect(socket, queues).expect("connected")
}

/// Writes a pattern and reads it back.
pub(crate) fn disk_works(guest: &Guest, ring: &mut Ring, sector: u64, fill: u8) {
    guest.put_header(0x20_0000, VIRTIO_BLK_T_OUT, sector);
    guest.put(0x20_1000, &[fill; 1024]);
    let write = [(0x20_0000, 16, false), (0x20_1000, 1024, false), (0x20_0020, 1, true)];
    assert_eq!(ring.run(guest, &write), (0, 1));
    guest.put_header(0x20_0000, VIRTIO_BLK_T_IN, sector);
    let read = [(0x20_0000, 16, false), (0x20_2000, 1024, true), (0x20_0020, 1, true)];
    assert_eq!(ring.run(guest, &read), (0, 1025));
    assert_eq!(guest.get(0x20_2000, 1024), [fill; 1024]);
}

/// Offers that would oblige the device to something it does not do.
fn check_offered(features: u64) {
    for never in [VIRTIO_F_IN_ORDER, VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_RING_PACKED] {
        assert_eq!(features & bit(never), 0, "feature {never} is offered");
    }
    assert_ne!(features & PROTOCOL_FEATURES, 0);
}

/// cloud-hypervisor v54: construction, then activation when the guest sets DRIVER_OK.
#[test]
fn cloud_hypervisor_message_order() {
    let Setting { served, guest, .. } = setting(2, "file");
    let mut frontend = connect(&served.socket, 2);
    let mut rings = rings(2);

    frontend.set_owner().expect("SET_OWNER");
    let offered = frontend.get_features().expect("GET_FEATURES");
    check_offered(offered);
    let protocol = frontend.get_protocol_features().expect("GET_PROTOCOL_FEATURES");
    let wanted = VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::DEVICE_STATE;
    frontend.set_protocol_features(protocol & wanted).expect("SET_PROTOCOL_FEATURES");
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(frontend.get_queue_num().expect("GET_QUEUE_NUM"), 2);
    let (_, config) = frontend
        .get_config(0, 60, VhostUserConfigFlags::WRITABLE, &[0; 60])
        .expect("GET_CONFIG of 60 bytes");
    assert_eq!(config.len(), 60);
    assert_eq!(config[..8], (4 * MIB / 512).to_le_bytes());

    // Activation.
    let features = offered
        & !bit(VIRTIO_BLK_F_RO)
        & (bit(VIRTIO_F_VERSION_1)
            | bit(VIRTIO_BLK_F_FLUSH)
            | bit(VIRTIO_BLK_F_CONFIG_WCE)
            | bit(VIRTIO_BLK_F_MQ)
            | bit(VIRTIO_RING_F_INDIRECT_DESC)
            | bit(VIRTIO_RING_F_EVENT_IDX)
            | PROTOCOL_FEATURES);
    frontend.set_features(features).expect("SET_FEATURES");
    frontend.set_mem_table(&[guest.region()]).expect("SET_MEM_TABLE");
    for ring in &rings {
        frontend.set_vring_num(ring.index, ring.size).expect("SET_VRING_NUM");
    }
    for ring in &rings {
        frontend.set_vring_addr(ring.index, &ring.addresses()).expect("SET_VRING_ADDR");
        frontend.set_vring_base(ring.index, 0).expect("SET_VRING_BASE");
        frontend.set_vring_call(ring.index, &ring.call).expect("SET_VRING_CALL");
        frontend.set_vring_kick(ring.index, &ring.kick).expect("SET_VRING_KICK");
    }
    for ring in &rings {
        frontend.set_vring_enable(ring.index, true).expect("SET_VRING_ENABLE");
    }
    for (ring, fill) in rings.iter_mut().zip([0x11, 0x22]) {
        disk_works(&guest, ring, 8 * u64::from(fill), fill);
    }

    // Pause: what is made available meanwhile is served on resume, without a kick: its driver may
    // have been asked for none.
    for ring in &rings {
        frontend.set_vring_enable(ring.index, false).expect("SET_VRING_ENABLE 0");
        // One that was not taken yet would be found on resume.
        let _ = ring.kick.read();
    }
    guest.put_header(0x20_0000, VIRTIO_BLK_T_IN, 0);
    let read = [(0x20_0000, 16, false), (0x20_2000, 512, true), (0x20_0020, 1, true)];
    let head = rings[0].add(&guest, &read);
    assert_eq!(rings[0].try_used(&guest), None, "served while disabled");
    for ring in &rings {
        frontend.set_vring_enable(ring.index, true).expect("SET_VRING_ENABLE");
    }
    assert_eq!(rings[0].wait_used(&guest), (head, 513));

    hotplug_like_cloud_hypervisor(&mut frontend, &guest, &mut rings[1]);
    // Poweroff: a plain close.
    drop(frontend);

    reconnect_like_cloud_hypervisor(&served, &guest, &mut rings[0], features, protocol & wanted);
}

/// Memory hotplug while the rings run. Sectors 136 and 137 hold 0x11.
fn hotplug_like_cloud_hypervisor(frontend: &mut Frontend, guest: &Guest, ring: &mut Ring) {
    let more = Guest::new(MIB);
    let mut region = more.region();
    region.guest_phys_addr = 16 * MIB;
    region.userspace_addr += 16 * MIB;
    frontend.add_mem_region(&region).expect("ADD_MEM_REG");
    guest.put_header(0x20_0000, VIRTIO_BLK_T_IN, 8 * 0x11);
    let read = [(0x20_0000, 16, false), (16 * MIB, 1024, true), (0x20_0020, 1, true)];
    assert_eq!(ring.run(guest, &read), (0, 1025));
    assert_eq!(more.get(0, 1024), [0x11; 1024]);
}

/// Reconnection: no GET_PROTOCOL_FEATURES, no GET_CONFIG; the rings go on where they were.
fn reconnect_like_cloud_hypervisor(
    served: &Served,
    guest: &Guest,
    ring: &mut Ring,
    features: u64,
    protocol: VhostUserProtocolFeatures,
) {
    let mut frontend = connect(&served.socket, 2);
    frontend.set_owner().expect("SET_OWNER");
    frontend.get_features().expect("GET_FEATURES");
    // The crate's front-end insists on acknowledging bit 30 before protocol features.
    frontend.set_features(features).expect("SET_FEATURES");
    frontend.get_protocol_features().expect("the crate insists");
    frontend.set_protocol_features(protocol).expect("SET_PROTOCOL_FEATURES");
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_mem_table(&[guest.region()]).expect("SET_MEM_TABLE");
    frontend.set_vring_num(0, ring.size).expect("SET_VRING_NUM");
    frontend.set_vring_addr(0, &ring.addresses()).expect("SET_VRING_ADDR");
    frontend.set_vring_base(0, ring.avail_idx).expect("SET_VRING_BASE");
    frontend.set_vring_call(0, &ring.call).expect("SET_VRING_CALL");
    frontend.set_vring_kick(0, &ring.kick).expect("SET_VRING_KICK");
    frontend.set_vring_enable(0, true).expect("SET_VRING_ENABLE");
    disk_works(guest, ring, 800, 0x33);
}

/// QEMU 10.0.2: construction, the SeaBIOS phase with queue 0 alone, a stop, the start by Linux.
#[test]
fn qemu_message_order() {
    let Setting { served, guest, .. } = setting(2, "overlay");
    let mut frontend = connect(&served.socket, 2);
    let mut rings = rings(2);

    // Construction.
    let offered = frontend.get_features().expect("GET_FEATURES");
    check_offered(offered);
    let protocol = frontend.get_protocol_features().expect("GET_PROTOCOL_FEATURES");
    frontend.set_protocol_features(protocol).expect("SET_PROTOCOL_FEATURES");
    assert_eq!(frontend.get_queue_num().expect("GET_QUEUE_NUM"), 2);
    assert!(frontend.get_max_mem_slots().expect("GET_MAX_MEM_SLOTS") >= 8);
    let handler =
        FrontendReqHandler::new(Arc::new(Changes::default())).expect("a back-end channel");
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_backend_request_fd(&handler.get_tx_raw_fd()).expect("SET_BACKEND_REQ_FD");
    frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
    frontend.set_owner().expect("SET_OWNER");
    frontend.get_features().expect("GET_FEATURES");
    for ring in &rings {
        frontend.set_vring_call(ring.index, &ring.call).expect("SET_VRING_CALL");
        frontend.set_vring_err(ring.index, &ring.err).expect("SET_VRING_ERR");
    }
    let (_, config) = frontend
        .get_config(0, 57, VhostUserConfigFlags::empty(), &[0; 57])
        .expect("GET_CONFIG of 57 bytes");
    assert_eq!(config.len(), 57);

    // SeaBIOS: no EVENT_IDX, no MQ, queue 0 only; but every queue is enabled.
    let seabios = bit(VIRTIO_F_VERSION_1) | PROTOCOL_FEATURES;
    start(&mut frontend, &guest, &rings, 1, seabios, true);
    disk_works(&guest, &mut rings[0], 0, 0x55);
    for ring in &rings {
        frontend.set_vring_enable(ring.index, false).expect("SET_VRING_ENABLE 0");
    }
    let base = frontend.get_vring_base(0).expect("GET_VRING_BASE");
    assert_eq!(base, u32::from(rings[0].avail_idx));

    // Linux: other features, no new memory.
    for ring in &mut rings {
        ring.reset(&guest);
    }
    let linux = offered
        & (bit(VIRTIO_F_VERSION_1)
            | PROTOCOL_FEATURES
            | bit(VIRTIO_BLK_F_FLUSH)
            | bit(VIRTIO_BLK_F_CONFIG_WCE)
            | bit(VIRTIO_BLK_F_MQ)
            | bit(VIRTIO_BLK_F_DISCARD)
            | bit(VIRTIO_BLK_F_WRITE_ZEROES)
            | bit(VIRTIO_RING_F_INDIRECT_DESC)
            | bit(VIRTIO_RING_F_EVENT_IDX));
    start(&mut frontend, &guest, &rings, 2, linux, false);
    for (ring, fill) in rings.iter_mut().zip([0x66, 0x77]) {
        disk_works(&guest, ring, 8 * u64::from(fill), fill);
    }

    // The guest turns the write cache off and on.
    frontend.set_config(32, VhostUserConfigFlags::empty(), &[0]).expect("SET_CONFIG");
    let (_, config) = frontend
        .get_config(32, 1, VhostUserConfigFlags::empty(), &[0])
        .expect("GET_CONFIG of a byte");
    assert_eq!(config, [0]);
    disk_works(&guest, &mut rings[1], 16, 0x88);

    // Not on an overlay: the change of size fails, and nobody is told.
    served.device.resize(8 * MIB).expect_err("an overlay has its base's size");
    for ring in &rings {
        frontend.set_vring_enable(ring.index, false).expect("SET_VRING_ENABLE 0");
        let base = frontend.get_vring_base(ring.index).expect("GET_VRING_BASE");
        assert_eq!(base, u32::from(ring.avail_idx));
    }
    // SAFETY: the handler, and with it its socket, lives to the end of the test.
    let channel = unsafe { BorrowedFd::borrow_raw(handler.as_raw_fd()) };
    assert!(!readable(channel, Duration::ZERO), "a message on the back-end channel");
}

/// What QEMU sends when the driver sets DRIVER_OK.
pub(crate) fn start(
    frontend: &mut Frontend,
    guest: &Guest,
    rings: &[Ring],
    configured: usize,
    features: u64,
    memory: bool,
) {
    frontend.set_features(features).expect("SET_FEATURES");
    for ring in &rings[..configured] {
        frontend.set_vring_call(ring.index, &ring.call).expect("SET_VRING_CALL");
    }
    frontend.set_features(features).expect("SET_FEATURES again");
    if memory {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.add_mem_region(&guest.region()).expect("ADD_MEM_REG");
        frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
    }
    for ring in &rings[..configured] {
        frontend.set_vring_num(ring.index, ring.size).expect("SET_VRING_NUM");
        frontend.set_vring_base(ring.index, 0).expect("SET_VRING_BASE");
        frontend.set_vring_addr(ring.index, &ring.addresses()).expect("SET_VRING_ADDR");
        frontend.set_vring_kick(ring.index, &ring.kick).expect("SET_VRING_KICK");
    }
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    for ring in rings {
        frontend.set_vring_enable(ring.index, true).expect("SET_VRING_ENABLE");
    }
    frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
}

/// Counts configuration changes.
#[derive(Default)]
struct Changes(AtomicU64);

impl VhostUserFrontendReqHandler for Changes {
    fn handle_config_change(&self) -> HandlerResult<u64> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(0)
    }
}

/// A quick way to a running ring for tests about something else.
pub(crate) fn bring_up(
    served: &Served,
    guest: &Guest,
    rings: &[Ring],
    extra_features: u64,
) -> Frontend {
    let mut frontend = connect(&served.socket, rings.len() as u64);
    frontend.set_owner().expect("SET_OWNER");
    frontend.get_features().expect("GET_FEATURES");
    let protocol = frontend.get_protocol_features().expect("GET_PROTOCOL_FEATURES");
    frontend.set_protocol_features(protocol).expect("SET_PROTOCOL_FEATURES");
    for ring in rings {
        frontend.set_vring_err(ring.index, &ring.err).expect("SET_VRING_ERR");
    }
    let features = bit(VIRTIO_F_VERSION_1) | PROTOCOL_FEATURES | extra_features;
    start(&mut frontend, guest, rings, rings.len(), features, true);
    frontend
}

/// Goal: a guest hears of a new size (VHOST_USER_BACKEND_CONFIG_CHANGE_MSG), and can use it.
#[test]
fn resize_is_announced() {
    let Setting { served, guest, storage, .. } = setting(1, "file");
    let mut rings = rings(1);
    let mut frontend = bring_up(&served, &guest, &rings, 0);
    let changes = Arc::new(Changes::default());
    let mut handler = FrontendReqHandler::new(changes.clone()).expect("a back-end channel");
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_backend_request_fd(&handler.get_tx_raw_fd()).expect("SET_BACKEND_REQ_FD");
    served.device.resize(8 * MIB).expect("a file can grow");
    handler.handle_request().expect("CONFIG_CHANGE_MSG");
    assert_eq!(changes.0.load(Ordering::SeqCst), 1);
    let (_, config) =
        frontend.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8]).expect("GET_CONFIG");
    assert_eq!(config, (8 * MIB / 512).to_le_bytes());
    assert_eq!(storage.capacity_sectors(), 8 * MIB / 512);
    disk_works(&guest, &mut rings[0], 8 * MIB / 512 - 2, 0x99);
}

/// Goal: configuration reads of any size and place inside the space, and behind it.
#[test]
fn configuration_in_pieces() {
    let Setting { served, .. } = setting(3, "memory");
    let mut frontend = connect(&served.socket, 3);
    frontend.get_features().expect("GET_FEATURES");
    let protocol = frontend.get_protocol_features().expect("GET_PROTOCOL_FEATURES");
    frontend.set_protocol_features(protocol).expect("SET_PROTOCOL_FEATURES");
    let mut read = |offset: u32, size: u32| {
        let zeroes = vec![0; size as usize];
        let read = frontend.get_config(offset, size, VhostUserConfigFlags::empty(), &zeroes);
        read.unwrap_or_else(|e| panic!("GET_CONFIG of {size} bytes at {offset}: {e}")).1
    };
    let whole = read(0, 60);
    for size in [1, 2, 4, 8] {
        let pieces: Vec<u8> = (0..60 / size).flat_map(|i| read(i * size, size)).collect();
        assert_eq!(pieces, whole[..pieces.len()]);
    }
    assert_eq!(whole[34..36], 3_u16.to_le_bytes());
    assert_eq!(read(0, 96)[60..], [0; 36]);
    assert_eq!(read(200, 4), [0; 4]);
    frontend.set_config(0, VhostUserConfigFlags::empty(), &[1]).expect("ignored");
    let kept = frontend.get_config(0, 60, VhostUserConfigFlags::empty(), &[0; 60]);
    assert_eq!(kept.expect("GET_CONFIG").1, whole);
}
