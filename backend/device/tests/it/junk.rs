//! Guests that send junk for ever.
//!
//! Goal: queues full of junk cost the queue beside them nothing but its share of the processors,
//! and the host neither memory nor a thread more.
//! Method: three queues are kept full of junk by a driver of their own, while the fourth serves;
//! its answers and its bytes are checked, the memory of this process is looked at before and after
//! a hundred times as much junk. Times are printed; nothing is asserted about them.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use crate::alone::alone;
use crate::client::PATIENCE;
use crate::front_ends::{MIB, Setting, bring_up, disk_works, rings, setting};
use crate::raw::{Guest, Piece, Ring};

/// Requests of the queue that is looked at.
const SERVED: u32 = 400;
/// Junk that must have been answered meanwhile, at the least.
const JUNK: u64 = 20_000;
/// Junk in flight in a queue: three descriptors each, in a ring of 128.
const SLOTS: u64 = 40;
/// What the process may grow by: allocators keep some.
const GROWTH_MOST: u64 = 8 << 20;

/// All junk is answered, with an error: nothing here breaks a queue.
fn junk(n: u64, at: u64) -> (u32, u64, Vec<Piece>) {
    let header = at + 0x2000 + 0x40 * (n % SLOTS);
    let (status, data) = (header + 0x20, at);
    let whole =
        |kind, sector, piece| (kind, sector, vec![(header, 16, false), piece, (status, 1, true)]);
    match n % 8 {
        0 => whole(VIRTIO_BLK_T_IN, u64::MAX, (data, 512, true)),
        1 => whole(VIRTIO_BLK_T_OUT, 1 << 54, (data, 4096, false)),
        2 => whole(VIRTIO_BLK_T_IN, 0, (u64::MAX - 4096, 4096, true)),
        3 => whole(VIRTIO_BLK_T_OUT, 0, (data, 511, false)),
        // Ranges without end, of zero length, past the end: the table is whatever lies there.
        4 => whole(VIRTIO_BLK_T_DISCARD, 0, (data, 4096, false)),
        5 => whole(VIRTIO_BLK_T_WRITE_ZEROES, 0, (data, 16, false)),
        6 => whole(0xDEAD, n, (data, 1, true)),
        _ => (VIRTIO_BLK_T_IN, 0, vec![(header, 15, false), (status, 1, true)]),
    }
}

/// Keeps the ring full until told to stop; all that it is given back is junk with an error.
fn flood(guest: &Guest, ring: &mut Ring, at: u64, answered: &AtomicU64, stop: &AtomicBool) {
    guest.put(at, &[0xFF; 4096]);
    let (mut sent, mut back) = (0, 0);
    while !stop.load(Ordering::Relaxed) || back < sent {
        while sent - back < SLOTS && !stop.load(Ordering::Relaxed) {
            let (kind, sector, pieces) = junk(sent, at);
            guest.put_header(pieces[0].0, kind, sector);
            ring.add(guest, &pieces);
            sent += 1;
        }
        if sent == back {
            break;
        }
        ring.kick();
        ring.wait_used(guest);
        back += 1;
        while ring.try_used(guest).is_some() {
            back += 1;
        }
        answered.fetch_max(back, Ordering::Relaxed);
    }
    assert_eq!(sent, back, "each junk was answered once");
}

/// Set when dropped: a test that fails ends its threads.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Bytes of memory, and threads, of this process.
fn footprint() -> (u64, usize) {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib = line.trim().trim_end_matches(" kB").trim();
    let threads = fs::read_dir("/proc/self/task").expect("threads").count();
    (kib.parse::<u64>().expect("a number") << 10, threads)
}

#[test]
fn junk_for_ever_costs_other_queues_nothing() {
    alone("junk::junk_for_ever_costs_other_queues_nothing", serves_beside_junk);
}

fn serves_beside_junk() {
    let Setting { served, guest, .. } = setting(4, "memory");
    let mut rings = rings(4);
    let _frontend = bring_up(&served, &guest, &rings, 1 << 28);
    let (first, flooded) = rings.split_at_mut(1);
    let good = &mut first[0];
    let alone = Instant::now();
    for n in 0..SERVED {
        disk_works(&guest, good, u64::from(n % 8) * 2, n as u8);
    }
    let alone = alone.elapsed();

    let (answered, stop) = ([const { AtomicU64::new(0) }; 3], AtomicBool::new(false));
    let (mut beside, mut before, mut rounds) = (Duration::ZERO, (0, 0), 0_u32);
    std::thread::scope(|scope| {
        for (n, (ring, answered)) in flooded.iter_mut().zip(&answered).enumerate() {
            let (guest, stop, at) = (&guest, &stop, 3 * MIB + 0x4_0000 * n as u64);
            scope.spawn(move || flood(guest, ring, at, answered, stop));
        }
        let _stop = SetAtEnd(&stop);
        let until = Instant::now() + PATIENCE;
        let least = || answered.iter().map(|of| of.load(Ordering::Relaxed)).min().unwrap_or(0);
        while least() < JUNK || rounds < SERVED {
            assert!(Instant::now() <= until, "{} junk answered, {rounds} rounds served", least());
            let began = Instant::now();
            disk_works(&guest, good, u64::from(rounds % 8) * 2, rounds as u8);
            beside += began.elapsed();
            rounds += 1;
            if before.0 == 0 && least() > JUNK / 100 {
                before = footprint();
            }
        }
        let after = footprint();
        assert!(after.0 < before.0 + GROWTH_MOST, "{} to {} bytes", before.0, after.0);
        assert_eq!(after.1, before.1, "threads");
        println!(
            "junk answered {}; {rounds} rounds of write and read: {:?} each beside it, {:?} alone; \
             memory {} to {} KiB",
            answered.iter().map(|of| of.load(Ordering::Relaxed)).sum::<u64>(),
            beside / rounds,
            alone / SERVED,
            before.0 >> 10,
            after.0 >> 10,
        );
    });
    let refused: u64 = device::control::Front::traffic(&*served.device)
        .expect("queues")
        .queues
        .iter()
        .map(|queue| queue.refused + queue.ops.iter().map(|of| of.failed).sum::<u64>())
        .sum();
    assert!(refused >= JUNK, "{refused} refused or failed");
}
