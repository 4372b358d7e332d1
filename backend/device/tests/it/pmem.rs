//! The vhost-user pmem device from outside.
//!
//! Goal: what QEMU 11.1 sends gives a guest the file as memory and answers its flushes; whatever
//! else a front-end or a driver sends, the device serves the next one.
//! Method: the `vhost` crate's front-end with its channel for messages from the device, and rings
//! written by hand.

mod front_end;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use device::pmem_vhost::{Flushes, PmemDevice, PmemError, ServeError, Transport};
use device::stop::Stop;
use tempfile::{TempDir, tempdir};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use crate::raw::{Guest, Piece};
use front_end::{GUEST_BYTES, Qemu, SHMEM_REGION, START};

const MIB: u64 = 1 << 20;
const BYTES: u64 = 4 * MIB;

/// A device that serves until it is dropped.
struct Pmem {
    device: Arc<PmemDevice>,
    socket: PathBuf,
    file: PathBuf,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
    _dir: TempDir,
}

impl Pmem {
    fn start() -> Pmem {
        let dir = tempdir().expect("a directory");
        let file = dir.path().join("pmem");
        File::create(&file).and_then(|file| file.set_len(BYTES)).expect("a file");
        let device = Arc::new(PmemDevice::open(&file, None).expect("a device"));
        let socket = dir.path().join("pmem.sock");
        let listener = UnixListener::bind(&socket).expect("a socket to listen on");
        let stop = Arc::new(Stop::new().expect("an eventfd"));
        let thread = std::thread::spawn({
            let (device, stop) = (device.clone(), stop.clone());
            move || device.serve(Transport::Listener(listener), stop.as_fd())
        });
        Pmem { device, socket, file, stop, thread: Some(thread), _dir: dir }
    }
}

impl Drop for Pmem {
    fn drop(&mut self) {
        self.stop.set();
        if let Some(thread) = self.thread.take() {
            let served = thread.join();
            if !std::thread::panicking() {
                served.expect("serving does not panic").expect("serving ends well");
            }
        }
    }
}

fn inode(pmem: &Pmem) -> u64 {
    std::fs::metadata(&pmem.file).expect("the file").ino()
}

#[test]
fn qemu_maps_the_file_flushes_and_resets() {
    let pmem = Pmem::start();
    let mut qemu = Qemu::construct(&pmem.socket, BYTES, false);
    let config = |qemu: &mut Qemu, offset: u32, size: usize| {
        let zeroes = vec![0; size];
        let flags = VhostUserConfigFlags::empty();
        qemu.frontend.get_config(offset, size as u32, flags, &zeroes).expect("GET_CONFIG").1
    };
    assert_eq!(config(&mut qemu, 8, 8), BYTES.to_le_bytes());
    let likely = config(&mut qemu, 0, 8);
    assert_eq!(likely, 0xfe80_0000_u64.to_le_bytes(), "the highest place below 0xfec00000");
    assert_eq!(config(&mut qemu, 12, 8)[4..], [0; 4], "behind the space");
    assert_eq!(qemu.mapped(), [], "no request before the first memory table");

    qemu.start(SHMEM_REGION);
    qemu.map(&pmem.file);
    assert_eq!(qemu.mapped(), [(BYTES, inode(&pmem))]);
    assert_eq!(config(&mut qemu, 0, 8), START.to_le_bytes(), "learned from the memory table");
    for _ in 0..100 {
        assert_eq!(qemu.flush(), 0);
    }
    assert_eq!(pmem.device.flushes(), Flushes { done: 100, failed: 0 });

    // The driver is unbound and bound again: the mapping is gone, the device asks once more.
    qemu.frontend.set_vring_enable(0, false).expect("SET_VRING_ENABLE 0");
    let base = qemu.frontend.get_vring_base(0).expect("GET_VRING_BASE");
    assert_eq!(base, u32::from(qemu.ring.avail_idx));
    qemu.frontend.reset_device().expect("RESET_DEVICE");
    qemu.ring.reset(&qemu.guest);
    qemu.start(SHMEM_REGION);
    qemu.map(&pmem.file);
    assert_eq!(qemu.mapped().len(), 2);
    assert_eq!(qemu.flush(), 0);
    drop(qemu);

    // The next front-end: a guest that reads the address from the configuration finds it there.
    let mut qemu = Qemu::construct(&pmem.socket, BYTES, false);
    assert_eq!(config(&mut qemu, 0, 8), START.to_le_bytes());
    qemu.start(0);
    qemu.map(&pmem.file);
    assert_eq!(qemu.flush(), 0);
}

#[test]
fn many_flushes_at_once_are_all_answered() {
    let pmem = Pmem::start();
    let mut qemu = Qemu::construct(&pmem.socket, BYTES, false);
    qemu.start(SHMEM_REGION);
    qemu.map(&pmem.file);
    qemu.guest.put(0x8_0000, &0_u32.to_le_bytes());
    for _ in 0..20 {
        let heads: Vec<u16> = (0..32)
            .map(|i| {
                let answer = 0x8_1000 + 16 * i;
                qemu.guest.put(answer, &[0xff; 4]);
                qemu.ring.add(&qemu.guest, &[(0x8_0000, 4, false), (answer, 4, true)])
            })
            .collect();
        qemu.ring.kick();
        let mut answered: Vec<u16> =
            heads.iter().map(|_| qemu.ring.wait_used(&qemu.guest).0).collect();
        answered.sort_unstable();
        let mut heads = heads;
        heads.sort_unstable();
        assert_eq!(answered, heads);
        for i in 0..32 {
            assert_eq!(qemu.guest.get(0x8_1000 + 16 * i, 4), [0; 4]);
        }
    }
    assert_eq!(pmem.device.flushes(), Flushes { done: 640, failed: 0 });
}

#[test]
fn hostile_requests() {
    let pmem = Pmem::start();
    let mut qemu = Qemu::construct(&pmem.socket, BYTES, false);
    qemu.start(SHMEM_REGION);
    qemu.map(&pmem.file);
    // Cut anywhere, and with bytes behind.
    qemu.guest.put(0x8_0000, &[0; 16]);
    let pieces = [(0x8_0000, 1, false), (0x8_0001, 7, false), (0x8_0020, 4, true)];
    assert_eq!(qemu.request(&pieces), 0);
    let pieces = [(0x8_0000, 4, false), (0x8_0020, 2, true), (0x8_0022, 9, true)];
    assert_eq!(qemu.request(&pieces), 0);
    // No flush, and half a request.
    qemu.guest.put(0x8_0000, &7_u32.to_le_bytes());
    assert_eq!(qemu.request(&[(0x8_0000, 4, false), (0x8_0020, 4, true)]), 1);
    assert_eq!(qemu.request(&[(0x8_0000, 3, false), (0x8_0020, 4, true)]), 1);
    assert_eq!(qemu.request(&[(0x8_0020, 4, true)]), 1);
    assert_eq!(pmem.device.flushes(), Flushes { done: 2, failed: 3 });

    let broken: [&[Piece]; 6] = [
        // No room for an answer.
        &[(0x8_0000, 4, false)],
        &[(0x8_0000, 4, false), (0x8_0020, 3, true)],
        // Outside of memory.
        &[(0x8_0000, 4, false), (u64::MAX - 1, 4, true)],
        &[(GUEST_BYTES - 2, 4, false), (0x8_0020, 4, true)],
        // The memory that the device serves: a page fault there would be its own.
        &[(0x8_0000, 4, false), (START, 4, true)],
        // A written part before a read one.
        &[(0x8_0020, 4, true), (0x8_0000, 4, false)],
    ];
    qemu.guest.put(0x8_0000, &0_u32.to_le_bytes());
    for pieces in broken {
        qemu.breaks(pieces);
        qemu.frontend.set_vring_enable(0, false).expect("SET_VRING_ENABLE 0");
        qemu.frontend.get_vring_base(0).expect("GET_VRING_BASE");
        qemu.ring.reset(&qemu.guest);
        qemu.start(SHMEM_REGION);
        qemu.map(&pmem.file);
        assert_eq!(qemu.flush(), 0, "after {pieces:?}");
    }
}

#[test]
fn the_ring_cannot_lie_in_the_memory_itself() {
    let pmem = Pmem::start();
    let mut qemu = Qemu::construct(&pmem.socket, BYTES, false);
    qemu.start(SHMEM_REGION);
    qemu.map(&pmem.file);
    let mut addresses = qemu.ring.addresses();
    addresses.avail_ring_addr = 0x7fff_0000_0000;
    addresses.used_ring_addr = 0x7fff_0000_4000;
    qemu.frontend.set_vring_enable(0, false).expect("SET_VRING_ENABLE 0");
    qemu.frontend.get_vring_base(0).expect("GET_VRING_BASE");
    // Refused at once, or of no use later: either way nothing of the file changes.
    let _ = qemu.frontend.set_vring_addr(0, &addresses);
    let _ = qemu.frontend.set_vring_kick(0, &qemu.ring.kick);
    let _ = qemu.frontend.set_vring_enable(0, true);
    qemu.ring.kick();
    drop(qemu);
    let mut qemu = Qemu::construct(&pmem.socket, BYTES, false);
    qemu.start(SHMEM_REGION);
    qemu.map(&pmem.file);
    assert_eq!(qemu.flush(), 0);
    assert!(std::fs::read(&pmem.file).expect("the file").iter().all(|byte| *byte == 0));
}

#[test]
fn a_front_end_that_refuses_never_answers_or_cannot_map() {
    let pmem = Pmem::start();
    // It refuses; the device asks again with the next table, and flushes are served all the same.
    let mut qemu = Qemu::construct(&pmem.socket, BYTES, true);
    qemu.start(SHMEM_REGION);
    qemu.answer();
    assert_eq!(qemu.flush(), 0);
    qemu.start(SHMEM_REGION);
    qemu.answer();
    assert_eq!(qemu.mapped().len(), 2);
    drop(qemu);

    // It never answers: the connection ends all the same.
    let mut qemu = Qemu::construct(&pmem.socket, BYTES, false);
    qemu.start(SHMEM_REGION);
    assert_eq!(qemu.flush(), 0);
    let Qemu { frontend, channel, .. } = qemu;
    drop(frontend);

    // It cannot map.
    let frontend = Frontend::connect(&pmem.socket, 1).expect("connected");
    let features = frontend.get_features().expect("GET_FEATURES");
    frontend.set_features(features).expect("SET_FEATURES");
    let guest = Guest::new(GUEST_BYTES);
    frontend.set_mem_table(&[guest.region()]).expect("SET_MEM_TABLE");
    frontend.get_features().expect("still there");
    drop((frontend, channel));

    let mut qemu = Qemu::construct(&pmem.socket, BYTES, false);
    qemu.start(SHMEM_REGION);
    qemu.map(&pmem.file);
    assert_eq!(qemu.flush(), 0);
}

#[test]
fn files_that_cannot_be_memory() {
    let dir = tempdir().expect("a directory");
    let path = dir.path().join("pmem");
    let missing = PmemDevice::open(&path, None).expect_err("no file");
    assert!(matches!(missing, PmemError::Open { .. }), "{missing}");
    for (bytes, mend) in [
        (0, "-s 2097152"),
        (4096, "-s 2097152"),
        (3 * MIB, "-s 4194304"),
        (66 * MIB, "-s 134217728"),
    ] {
        File::create(&path).and_then(|file| file.set_len(bytes)).expect("a file");
        let error = PmemDevice::open(&path, None).expect_err("an odd size");
        assert!(error.to_string().contains(mend), "{error}");
    }
    let folder = PmemDevice::open(dir.path(), None).expect_err("a folder");
    assert!(matches!(folder, PmemError::Open { .. }), "{folder}");
    let device = PmemDevice::open("/dev/null".as_ref(), None).expect_err("a device");
    assert!(matches!(device, PmemError::NotAFile { .. }), "{device}");
    File::create(&path).and_then(|file| file.set_len(2 * MIB)).expect("a file");
    let start = PmemDevice::open(&path, Some(4096)).expect_err("an odd address");
    assert!(matches!(start, PmemError::Start { start: 4096 }), "{start}");
    assert_eq!(PmemDevice::open(&path, Some(START)).expect("good").region_start(), START);
}
