//! Requests that a rule holds.
//!
//! Goal: a held request holds up nothing else, and whatever ends the wait (release, time limit,
//! reset, disconnect, shutdown), it is completed exactly once, with its data.
//! Method: a rule holds what touches sector 100; requests in one queue are taken in order, so
//! when a later one is done, the earlier one is known to be held.

use std::sync::Arc;

use device::blk::DeviceOptions;
use device::engine::{Engine, EngineOptions};
use device::storage::Storage;
use pipeline::RuleSet;
use tempfile::{TempDir, tempdir};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use crate::client::{PATIENCE, readable};
use crate::front_ends::{bring_up, connect, disk_works, rings};
use crate::raw::{Guest, Piece, Ring, fd};
use crate::served::{Served, image};
use crate::storages::open;

const MIB: u64 = 1 << 20;

/// Holds reads and writes of sector 100 until control says so.
const HOLD: &str = r#"
[[rule]]
name = "hold"
match = { op = ["read", "write"], sector = 100 }
action = { hold = { until = "control", at_most = "60s" } }
"#;

struct Setting {
    served: Served,
    guest: Guest,
    rings: Vec<Ring>,
    engine: Arc<Engine>,
    storage: Arc<dyn Storage>,
    _dir: TempDir,
}

fn setting(rules: &str) -> Setting {
    let dir = tempdir().expect("a directory");
    let storage = open("file", &image(&dir, 4 * MIB));
    let options =
        EngineOptions { queues: 2, seed: 1, storage: storage.clone(), log: None, shadow: None };
    let engine = Engine::new(options).expect("an engine");
    engine.load_rules(RuleSet::parse(rules, "test.toml").expect("rules"));
    let options = DeviceOptions { num_queues: 2, queue_size: 128, ..DeviceOptions::default() };
    let served = Served::start(options, storage.clone(), Some(engine.clone()));
    Setting { served, guest: Guest::new(4 * MIB), rings: rings(2), engine, storage, _dir: dir }
}

/// The pieces of a request of one sector in slot `n` of guest memory.
fn one_sector(guest: &Guest, n: u64, kind: u32, sector: u64) -> [Piece; 3] {
    let base = 0x30_0000 + 0x1000 * n;
    guest.put_header(base, kind, sector);
    guest.put(base + 0x20, &[0xFF]);
    [(base, 16, false), (base + 0x200, 512, kind == VIRTIO_BLK_T_IN), (base + 0x20, 1, true)]
}

fn data(guest: &Guest, n: u64) -> Vec<u8> {
    guest.get(0x30_0000 + 0x1000 * n + 0x200, 512)
}

fn status(guest: &Guest, n: u64) -> u8 {
    guest.get(0x30_0000 + 0x1000 * n + 0x20, 1)[0]
}

/// Fills sector 100, then has a request for it held. Gives its head.
fn hold_one(setting: &mut Setting, kind: u32) -> u16 {
    let Setting { guest, rings, .. } = setting;
    let pieces = one_sector(guest, 0, kind, 100);
    if kind == VIRTIO_BLK_T_OUT {
        guest.put(pieces[1].0, &[0xAB; 512]);
    }
    let head = rings[0].add(guest, &pieces);
    let later = one_sector(guest, 1, VIRTIO_BLK_T_IN, 7);
    let later = rings[0].add(guest, &later);
    rings[0].kick();
    assert_eq!(rings[0].wait_used(guest), (later, 513), "held up by a held request");
    assert_eq!(status(guest, 0), 0xFF, "not held");
    head
}

fn stored(storage: &dyn Storage) -> Vec<u8> {
    let mut sector = vec![0; 512];
    storage.read_at(100 * 512, &mut sector).expect("read");
    sector
}

#[test]
fn a_held_request_holds_up_nothing_else() {
    let mut setting = setting(HOLD);
    let _frontend = bring_up(&setting.served, &setting.guest, &setting.rings, 0);
    let head = hold_one(&mut setting, VIRTIO_BLK_T_IN);
    let Setting { guest, rings, engine, .. } = &mut setting;
    for ring in rings.iter_mut() {
        disk_works(guest, ring, 200, 0x42);
    }
    assert_eq!(rings[0].try_used(guest), None);
    engine.release(Some("hold")).expect("a rule of that name");
    assert_eq!(rings[0].wait_used(guest), (head, 513));
    assert_eq!((status(guest, 0), data(guest, 0)), (0, vec![0; 512]));
    disk_works(guest, &mut rings[0], 300, 0x43);
}

#[test]
fn the_time_limit_lets_go() {
    let mut setting = setting(&HOLD.replace("60s", "30ms"));
    let _frontend = bring_up(&setting.served, &setting.guest, &setting.rings, 0);
    let Setting { guest, rings, .. } = &mut setting;
    let pieces = one_sector(guest, 0, VIRTIO_BLK_T_IN, 100);
    assert_eq!(rings[0].run(guest, &pieces), (0, 513));
}

#[test]
fn a_rule_fails_a_request() {
    let rules =
        HOLD.replace(r#"{ hold = { until = "control", at_most = "60s" } }"#, r#"{ fail = "EIO" }"#);
    let mut setting = setting(&rules);
    let _frontend = bring_up(&setting.served, &setting.guest, &setting.rings, 0);
    let Setting { guest, rings, storage, .. } = &mut setting;
    let write = one_sector(guest, 0, VIRTIO_BLK_T_OUT, 100);
    guest.put(write[1].0, &[0xCD; 512]);
    assert_eq!(rings[0].run(guest, &write), (1, 1));
    assert_eq!(stored(&**storage), [0; 512]);
    let read = one_sector(guest, 1, VIRTIO_BLK_T_IN, 100);
    assert_eq!(rings[0].run(guest, &read), (1, 1));
    disk_works(guest, &mut rings[0], 200, 0x44);
}

/// The front-end stops the ring: held requests are carried out, and the index covers them.
#[test]
fn stopping_a_ring_completes_what_is_held() {
    let mut setting = setting(HOLD);
    let frontend = bring_up(&setting.served, &setting.guest, &setting.rings, 0);
    let head = hold_one(&mut setting, VIRTIO_BLK_T_OUT);
    let base = frontend.get_vring_base(0).expect("GET_VRING_BASE");
    let Setting { guest, rings, storage, .. } = &mut setting;
    assert_eq!(base, u32::from(rings[0].avail_idx));
    assert_eq!(rings[0].try_used(guest), Some((head, 1)));
    assert_eq!(status(guest, 0), 0);
    assert_eq!(stored(&**storage), [0xAB; 512]);
    disk_works(guest, &mut rings[1], 200, 0x45);
}

/// The front-end dies: the same, and the next one finds the ring in order.
#[test]
fn a_disconnect_completes_what_is_held() {
    let mut setting = setting(HOLD);
    let frontend = bring_up(&setting.served, &setting.guest, &setting.rings, 0);
    let head = hold_one(&mut setting, VIRTIO_BLK_T_OUT);
    drop(frontend);
    let Setting { served, guest, rings, storage, .. } = &mut setting;
    // Answered only when the connection before is over.
    connect(&served.socket, 2).get_features().expect("GET_FEATURES");
    assert_eq!(rings[0].wait_used(guest), (head, 1));
    assert_eq!(status(guest, 0), 0);
    assert_eq!(stored(&**storage), [0xAB; 512]);
}

#[test]
fn shutdown_completes_what_is_held() {
    let mut setting = setting(HOLD);
    let _frontend = bring_up(&setting.served, &setting.guest, &setting.rings, 0);
    hold_one(&mut setting, VIRTIO_BLK_T_OUT);
    let Setting { served, storage, guest, .. } = setting;
    served.stop().expect("serving ends well");
    assert_eq!(status(&guest, 0), 0);
    assert_eq!(stored(&*storage), [0xAB; 512]);
}

/// A driver that offers a held chain again is told nothing twice: its queue is broken.
#[test]
fn a_held_chain_offered_again_breaks_the_queue() {
    let mut setting = setting(HOLD);
    let _frontend = bring_up(&setting.served, &setting.guest, &setting.rings, 0);
    let head = hold_one(&mut setting, VIRTIO_BLK_T_IN);
    let Setting { guest, rings, engine, .. } = &mut setting;
    rings[0].offer(guest, head);
    rings[0].kick();
    assert!(readable(fd(&rings[0].err), PATIENCE));
    // The held request itself still ends, once.
    engine.release(None).expect("all rules");
    assert_eq!(rings[0].wait_used(guest), (head, 513));
    disk_works(guest, &mut rings[1], 200, 0x46);
    assert_eq!(rings[0].try_used(guest), None);
}

/// Memory that goes away while a request is held stays mapped for it.
#[test]
fn memory_removed_under_a_held_request() {
    let mut setting = setting(HOLD);
    let mut frontend = bring_up(&setting.served, &setting.guest, &setting.rings, 0);
    let more = Guest::new(MIB);
    let mut region = more.region();
    region.guest_phys_addr = 16 * MIB;
    region.userspace_addr += 16 * MIB;
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.add_mem_region(&region).expect("ADD_MEM_REG");
    let Setting { guest, rings, engine, .. } = &mut setting;
    more.put(0, &[0xEE; 512]);
    let [header, _, status_byte] = one_sector(guest, 0, VIRTIO_BLK_T_IN, 100);
    let head = rings[0].add(guest, &[header, (16 * MIB, 512, true), status_byte]);
    let later = one_sector(guest, 1, VIRTIO_BLK_T_IN, 7);
    let later = rings[0].add(guest, &later);
    rings[0].kick();
    assert_eq!(rings[0].wait_used(guest), (later, 513));
    frontend.remove_mem_region(&region).expect("REM_MEM_REG");
    // New requests cannot reach it any more, the held one can.
    let gone = one_sector(guest, 2, VIRTIO_BLK_T_IN, 7);
    assert_eq!(rings[1].run(guest, &[gone[0], (16 * MIB, 512, true), gone[2]]), (1, 1));
    engine.release(None).expect("all rules");
    assert_eq!(rings[0].wait_used(guest), (head, 513));
    assert_eq!(more.get(0, 512), [0; 512]);
}

/// What is classified is what is stored, whatever the guest does to its buffer meanwhile.
#[test]
fn a_write_that_is_looked_at_is_copied_once() {
    // Where a superblock would be: what is written there decides what everything else is.
    let rules = HOLD.replace("sector = 100", r#"class = "unknown", sector = 2"#);
    let mut setting = setting(&rules);
    let _frontend = bring_up(&setting.served, &setting.guest, &setting.rings, 0);
    let Setting { guest, rings, engine, storage, .. } = &mut setting;
    let pieces = one_sector(guest, 0, VIRTIO_BLK_T_OUT, 2);
    guest.put(pieces[1].0, &[0xAB; 512]);
    let head = rings[0].add(guest, &pieces);
    let later = one_sector(guest, 1, VIRTIO_BLK_T_IN, 7);
    let later = rings[0].add(guest, &later);
    rings[0].kick();
    assert_eq!(rings[0].wait_used(guest), (later, 513));
    guest.put(pieces[1].0, &[0x99; 512]);
    engine.release(None).expect("all rules");
    assert_eq!(rings[0].wait_used(guest), (head, 1));
    let mut sector = [0; 512];
    storage.read_at(2 * 512, &mut sector).expect("read");
    assert!(sector == [0xAB; 512], "stored {:#x}", sector[0]);
}
