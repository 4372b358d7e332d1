//! Guests and front-ends that lie.
//!
//! Goal: a chain that lies gets an error status or breaks its queue alone; nothing a front-end
//! sends ends the device.
//! Method: one lie on queue 0, then proof of life on queue 1 and, after a new connection, on
//! both. A broken queue signals its error eventfd.

use std::io::Write;
use std::os::unix::net::UnixStream;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use crate::client::{PATIENCE, readable};
use crate::front_ends::{Setting, bring_up, disk_works, rings, setting};
use crate::raw::{Guest, Ring, fd};

const HEADER: u64 = 0x20_0000;
const STATUS: u64 = 0x20_0020;
const DATA: u64 = 0x20_1000;
const END: u64 = 4 << 20;

/// What a lie leads to.
enum Outcome {
    /// This status.
    Status(u8),
    /// The queue stops.
    Broken,
}

/// Tells one lie on queue 0, and checks that it stays there.
fn survives(outcome: &Outcome, lie: impl FnOnce(&Guest, &mut Ring)) {
    let Setting { served, guest, .. } = setting(2, "memory");
    let mut rings = rings(2);
    let frontend = bring_up(&served, &guest, &rings, 1 << 28);
    guest.put(STATUS, &[0xFF]);
    lie(&guest, &mut rings[0]);
    rings[0].kick();
    match outcome {
        Outcome::Status(status) => {
            let (_, len) = rings[0].wait_used(&guest);
            assert_eq!(guest.get(STATUS, 1), [*status]);
            assert_eq!(len, 1);
            disk_works(&guest, &mut rings[0], 0, 0x10);
        }
        Outcome::Broken => {
            assert!(readable(fd(&rings[0].err), PATIENCE), "no sign on the error eventfd");
            assert_eq!(rings[0].try_used(&guest), None);
        }
    }
    disk_works(&guest, &mut rings[1], 8, 0x20);
    drop(frontend);
    for ring in &mut rings {
        ring.reset(&guest);
    }
    let _frontend = bring_up(&served, &guest, &rings, 0);
    disk_works(&guest, &mut rings[0], 16, 0x30);
    disk_works(&guest, &mut rings[1], 24, 0x40);
}

#[test]
fn chains_that_lie_about_their_data() {
    for (kind, sector, data) in [
        (VIRTIO_BLK_T_IN, 0, (END, 512, true)),
        (VIRTIO_BLK_T_IN, 0, (END - 256, 512, true)),
        (VIRTIO_BLK_T_IN, 0, (u64::MAX - 100, 512, true)),
        (VIRTIO_BLK_T_IN, 0, (DATA, 511, true)),
        (VIRTIO_BLK_T_IN, 0, (DATA, u32::MAX - 511, true)),
        (VIRTIO_BLK_T_IN, u64::MAX, (DATA, 512, true)),
        (VIRTIO_BLK_T_IN, 1 << 55, (DATA, 512, true)),
        (VIRTIO_BLK_T_OUT, 8192, (DATA, 512, false)),
        // Writable where readable is due, and the other way round.
        (VIRTIO_BLK_T_OUT, 0, (DATA, 512, true)),
        (VIRTIO_BLK_T_IN, 0, (DATA, 512, false)),
    ] {
        survives(&Outcome::Status(1), |guest, ring| {
            guest.put_header(HEADER, kind, sector);
            ring.add(guest, &[(HEADER, 16, false), data, (STATUS, 1, true)]);
        });
    }
    survives(&Outcome::Status(2), |guest, ring| {
        guest.put_header(HEADER, 0xDEAD, 0);
        ring.add(guest, &[(HEADER, 16, false), (STATUS, 1, true)]);
    });
    survives(&Outcome::Status(1), |guest, ring| {
        ring.add(guest, &[(HEADER, 15, false), (STATUS, 1, true)]);
    });
}

#[test]
fn chains_that_cannot_be_answered() {
    let next = VRING_DESC_F_NEXT;
    let broken: [fn(&Guest, &mut Ring); 7] = [
        // Loops: to itself, and of two.
        |guest, ring| {
            ring.put_descriptor(guest, 0, HEADER, 16, VRING_DESC_F_NEXT, 0);
            ring.offer(guest, 0);
        },
        |guest, ring| {
            ring.put_descriptor(guest, 0, HEADER, 16, VRING_DESC_F_NEXT, 1);
            ring.put_descriptor(guest, 1, HEADER, 16, VRING_DESC_F_NEXT, 0);
            ring.offer(guest, 0);
        },
        // No status byte: nothing writable, nothing at all, outside memory.
        |guest, ring| {
            ring.add(guest, &[(HEADER, 16, false)]);
        },
        |guest, ring| {
            ring.add(guest, &[(HEADER, 0, false), (STATUS, 0, true)]);
        },
        |guest, ring| {
            ring.add(guest, &[(HEADER, 16, false), (END, 1, true)]);
        },
        // A head, and a next, that do not exist.
        |guest, ring| {
            ring.offer(guest, 5000);
        },
        |guest, ring| {
            ring.put_descriptor(guest, 0, HEADER, 16, VRING_DESC_F_NEXT, 4000);
            ring.offer(guest, 0);
        },
    ];
    for lie in broken {
        survives(&Outcome::Broken, lie);
    }
    // Indirect within indirect.
    survives(&Outcome::Broken, |guest, ring| {
        let indirect = VRING_DESC_F_INDIRECT;
        ring.put_descriptor(guest, 0, DATA, 32, indirect, 0);
        let mut table = HEADER.to_le_bytes().to_vec();
        table.extend([16, 0, 0, 0, next as u8, 0, 1, 0]);
        table.extend(DATA.to_le_bytes());
        table.extend([32, 0, 0, 0, (indirect | VRING_DESC_F_WRITE) as u8, 0, 0, 0]);
        guest.put(DATA, &table);
        ring.offer(guest, 0);
    });
    // More available than the ring is long.
    survives(&Outcome::Broken, |guest, ring| ring.publish(guest, 129));
}

/// Goal: indirect tables are only for drivers that negotiated them.
#[test]
fn indirect_without_negotiation() {
    let Setting { served, guest, .. } = setting(1, "memory");
    let mut rings = rings(1);
    let _frontend = bring_up(&served, &guest, &rings, 0);
    rings[0].put_descriptor(&guest, 0, DATA, 32, VRING_DESC_F_INDIRECT, 0);
    rings[0].offer(&guest, 0);
    rings[0].kick();
    assert!(readable(fd(&rings[0].err), PATIENCE));
}

/// Goal: bytes that are no messages end the connection, not the device.
#[test]
fn front_ends_that_talk_nonsense() {
    let Setting { served, guest, .. } = setting(1, "memory");
    let le = u32::to_ne_bytes;
    for message in [
        vec![0xFF; 12],
        vec![0; 4096],
        // GET_FEATURES that claims a payload of 4 GiB; SET_MEM_TABLE without descriptors.
        [le(1), le(1), le(u32::MAX)].concat(),
        [le(5), le(1), le(8), le(1), le(0)].concat(),
        // GET_VRING_BASE of queue 99; SET_VRING_ADDR of nothing.
        [le(11), le(1), le(8), le(99), le(0)].concat(),
        [le(9), le(1), le(40)].concat().into_iter().chain([0x7F; 40]).collect(),
        // Half a header.
        vec![1, 0, 0],
    ] {
        let mut stream = UnixStream::connect(&served.socket).expect("connected");
        // The device may hang up before all is written.
        let _ = stream.write_all(&message);
        drop(stream);
    }
    let mut rings = rings(1);
    let _frontend = bring_up(&served, &guest, &rings, 0);
    disk_works(&guest, &mut rings[0], 0, 0x50);
}
