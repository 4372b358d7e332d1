//! What a front-end needs to move a guest, to outlive the daemon, and to trust a switch.
//!
//! Goal: the dirty log, the device's state and the in-flight area hold what they should, and
//! whatever lies in them ends nothing but its own queue.
//! Method: a device in this process; deaths of the daemon are a test of the programs
//! (`racegate`, `tests/survive`).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use device::control::Front;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags,
    VhostUserHeaderFlag, VhostUserInflight,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_RO, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use crate::client::{PATIENCE, readable};
use crate::front_ends::{
    PROTOCOL_FEATURES, Setting, bit, bring_up, connect, disk_works, rings, setting, start,
};
use crate::raw::fd;
use crate::served::Served;

/// Goal: the operator's read-only switch never surprises a guest.
#[test]
fn read_only_is_refused_while_somebody_writes() {
    let Setting { served, guest, .. } = setting(1, "file");
    let mut rings = rings(1);
    let read_only = bit(VIRTIO_BLK_F_RO);
    let frontend = bring_up(&served, &guest, &rings, 0);
    assert_eq!(frontend.get_features().expect("GET_FEATURES") & read_only, 0);
    let refused = served.device.set_read_only(true).expect_err("a guest writes");
    assert!(refused.to_string().contains("writable"), "{refused}");
    served.device.set_read_only(false).expect("it is");
    disk_works(&guest, &mut rings[0], 0, 0x21);
    drop(frontend);

    // The next one answers only when the one before is over.
    drop(bring_up(&served, &guest, &[], 0));
    let deadline = std::time::Instant::now() + PATIENCE;
    while let Err(error) = served.device.set_read_only(true) {
        assert!(std::time::Instant::now() < deadline, "{error}, and nobody is connected");
    }
    rings[0].reset(&guest);
    let frontend = bring_up(&served, &guest, &rings, 0);
    assert_ne!(frontend.get_features().expect("GET_FEATURES") & read_only, 0);
    guest.put_header(0x20_0000, VIRTIO_BLK_T_OUT, 0);
    let write = [(0x20_0000, 16, false), (0x20_1000, 512, false), (0x20_0020, 1, true)];
    assert_eq!(rings[0].run(&guest, &write), (1, 1), "a write to a read-only disk");
    served.device.set_read_only(false).expect_err("a guest knows it as read-only");
}

/// Goal: what the device writes to is in the front-end's dirty log, and nothing else is.
/// Method: a read and a write while the log is on, on other pages than one before it.
#[test]
fn a_migration_sees_what_is_written() {
    let Setting { served, guest, .. } = setting(1, "file");
    let mut rings = rings(1);
    let features = bit(VIRTIO_F_VERSION_1) | PROTOCOL_FEATURES;
    let frontend = bring_up(&served, &guest, &rings, 0);
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    disk_works(&guest, &mut rings[0], 0, 0x31);

    let log = tempfile::tempfile().expect("a log");
    log.set_len(128).expect("4 MiB of pages");
    let region =
        VhostUserDirtyLogRegion { mmap_size: 128, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
    frontend.set_log_base(0, Some(region)).expect("SET_LOG_BASE");
    frontend.set_features(features | 1 << 26).expect("SET_FEATURES with LOG_ALL");
    // QEMU gives the addresses again, while the ring runs.
    frontend.set_vring_addr(0, &rings[0].addresses()).expect("SET_VRING_ADDR");
    // What has no reply may be done after the next request; this one has, and comes after it.
    frontend.get_features().expect("GET_FEATURES");
    guest.put_header(0x30_0000, VIRTIO_BLK_T_IN, 0);
    let read = [(0x30_0000, 16, false), (0x31_0800, 4096, true), (0x32_0020, 1, true)];
    assert_eq!(rings[0].run(&guest, &read), (0, 4097));
    guest.put_header(0x33_0000, VIRTIO_BLK_T_OUT, 0);
    let write = [(0x33_0000, 16, false), (0x34_0000, 512, false), (0x35_0020, 1, true)];
    assert_eq!(rings[0].run(&guest, &write), (0, 1));
    frontend.set_features(features).expect("SET_FEATURES");
    frontend.get_features().expect("GET_FEATURES");
    let quiet = [(0x33_0000, 16, false), (0x34_0000, 512, false), (0x36_0020, 1, true)];
    assert_eq!(rings[0].run(&guest, &quiet), (0, 1));

    let mut bits = [0; 128];
    log.read_exact_at(&mut bits, 0).expect("the log");
    let dirty: Vec<u64> =
        (0..1024).filter(|page| bits[*page as usize / 8] & 1 << (page % 8) != 0).collect();
    // The used ring; data, which begins in the middle of a page, and status of the read; status
    // of the write.
    assert_eq!(dirty, [0x18, 0x310, 0x311, 0x320, 0x350]);
}

/// Goal: the state of a stopped device, which is whether its guest has a write cache, goes to
/// another one; what is no state is refused, and nothing is waited for.
#[test]
fn device_state_goes_out_and_comes_in() {
    let Setting { served, guest, .. } = setting(1, "file");
    let cache = |frontend: &mut Frontend| {
        let (_, config) = frontend
            .get_config(32, 1, VhostUserConfigFlags::empty(), &[0])
            .expect("GET_CONFIG of writeback");
        config
    };
    let save = VhostTransferStateDirection::SAVE;
    let load = VhostTransferStateDirection::LOAD;
    let stopped = VhostTransferStatePhase::STOPPED;

    let mut frontend = bring_up(&served, &guest, &rings(1), 0);
    frontend.set_config(32, VhostUserConfigFlags::empty(), &[0]).expect("SET_CONFIG");
    let (mut from, to) = std::io::pipe().expect("a pipe");
    frontend.set_device_state_fd(save, stopped, to.into()).expect("SET_DEVICE_STATE_FD");
    frontend.check_device_state().expect("saved");
    let mut state = Vec::new();
    from.read_to_end(&mut state).expect("to its end");
    assert_eq!(cache(&mut frontend), [0]);
    drop(frontend);

    let mut frontend = bring_up(&served, &guest, &rings(1), 0);
    assert_eq!(cache(&mut frontend), [1], "a new guest has a cache");
    let mut hand_over = |bytes: &[u8]| {
        let (from, mut to) = std::io::pipe().expect("a pipe");
        frontend.set_device_state_fd(load, stopped, from.into()).expect("SET_DEVICE_STATE_FD");
        to.write_all(bytes).expect("room");
        drop(to);
        let loaded = frontend.check_device_state();
        (loaded.is_ok(), cache(&mut frontend))
    };
    for nonsense in [&[][..], &[0; 10], &state[1..], &[&state[..], &[0]].concat()] {
        assert_eq!(hand_over(nonsense), (false, vec![1]));
    }
    assert_eq!(hand_over(&state), (true, vec![0]));
    // A front-end that keeps its end open is not waited for.
    let (from, _to) = std::io::pipe().expect("a pipe");
    frontend.set_device_state_fd(load, stopped, from.into()).expect("SET_DEVICE_STATE_FD");
    frontend.check_device_state().expect_err("nothing came");
}

/// Connects with an in-flight area of two queues that `lie` has changed, and starts both.
fn with_area(
    served: &Served,
    guest: &crate::raw::Guest,
    rings: &[crate::raw::Ring],
    lie: impl Fn(&File),
) -> Frontend {
    let mut frontend = connect(&served.socket, 2);
    frontend.set_owner().expect("SET_OWNER");
    frontend.get_features().expect("GET_FEATURES");
    let protocol = frontend.get_protocol_features().expect("GET_PROTOCOL_FEATURES");
    frontend.set_protocol_features(protocol).expect("SET_PROTOCOL_FEATURES");
    let asked = VhostUserInflight::new(0, 0, 2, rings[0].size);
    let (shape, area) = frontend.get_inflight_fd(&asked).expect("GET_INFLIGHT_FD");
    lie(&area);
    frontend.set_inflight_fd(&shape, area.as_raw_fd()).expect("SET_INFLIGHT_FD");
    for ring in rings {
        frontend.set_vring_err(ring.index, &ring.err).expect("SET_VRING_ERR");
    }
    start(&mut frontend, guest, rings, 2, bit(VIRTIO_F_VERSION_1) | PROTOCOL_FEATURES, true);
    frontend
}

/// Goal: an in-flight area that lies breaks its queue, or is believed where it could be true; the
/// other queue, and the next front-end, have a disk.
#[test]
fn in_flight_areas_that_lie() {
    let Setting { served, guest, .. } = setting(2, "memory");
    // Of queue 0: version, entries, last batch, used index; then entry 0.
    let header = |version: u16, entries: u16, last: u16, used: u16| {
        [version, entries, last, used].map(u16::to_le_bytes).concat()
    };
    let in_flight = [1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
    let lies: [(Vec<u8>, bool); 5] = [
        // Another version, other entries.
        (header(9, 128, 0, 0), true),
        (header(1, 64, 0, 0), true),
        // A batch that begins outside; one entry after the other, which is itself.
        (header(1, 128, 500, 0xFFFF), true),
        (header(1, 128, 0, 0xFFF0), false),
        // The ring is far ahead, with something in flight.
        ([header(1, 128, 0, 0x8000), in_flight.to_vec()].concat(), true),
    ];
    for (bytes, breaks) in lies {
        let mut rings = rings(2);
        for ring in &mut rings {
            ring.reset(&guest);
        }
        let frontend = with_area(&served, &guest, &rings, |area| {
            area.write_all_at(&bytes, 8).expect("written");
        });
        if breaks {
            assert!(readable(fd(&rings[0].err), PATIENCE), "no sign on the error eventfd");
        } else {
            disk_works(&guest, &mut rings[0], 0, 0x61);
        }
        disk_works(&guest, &mut rings[1], 8, 0x62);
        drop(frontend);
    }
    // A head in flight whose chain is nonsense.
    let mut rings = rings(2);
    for ring in &mut rings {
        ring.reset(&guest);
    }
    let frontend = with_area(&served, &guest, &rings, |area| {
        let lie = [header(1, 128, 0, 0), in_flight.to_vec()].concat();
        area.write_all_at(&lie, 8).expect("written");
    });
    assert!(readable(fd(&rings[0].err), PATIENCE), "no sign on the error eventfd");
    disk_works(&guest, &mut rings[1], 8, 0x63);
    drop(frontend);
    for ring in &mut rings {
        ring.reset(&guest);
    }
    let _frontend = with_area(&served, &guest, &rings, |_| {});
    disk_works(&guest, &mut rings[0], 0, 0x64);
}
