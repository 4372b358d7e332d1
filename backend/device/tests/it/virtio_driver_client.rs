//! Data integrity through a client that was not written here (the virtio-driver crate).

use std::time::Duration;

use device::blk::DeviceOptions;
use tempfile::tempdir;

use crate::alone::alone;
use crate::client::{Client, all_features};
use crate::served::{Served, image};
use crate::storages::{KINDS, open};

const MIB: u64 = 1 << 20;

/// Deterministic numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Goal: reads give what writes, discards and zeroes left, on every storage.
/// Method: random operations on one queue after the other, against a vector.
#[test]
fn every_storage_keeps_what_was_written() {
    for kind in KINDS {
        let dir = tempdir().expect("a directory");
        let path = image(&dir, 4 * MIB);
        let served = Served::start(DeviceOptions::default(), open(kind, &path), None);
        let mut client = Client::connect(&served.socket, all_features(), 4, 64, MIB as usize);
        let mut oracle = vec![0_u8; (4 * MIB) as usize];
        let mut random = Random(42);
        for round in 0..400_u64 {
            let queue = random.below(4) as usize;
            let sectors = 1 + random.below(if round % 8 == 0 { 1024 } else { 24 });
            let sector = random.below(4 * MIB / 512 - sectors);
            let (offset, len) = (sector * 512, (sectors * 512) as usize);
            let range = offset as usize..offset as usize + len;
            // Every other buffer starts where O_DIRECT would not take it.
            let at = (random.below(2) * 8) as usize;
            match random.below(10) {
                0..4 => {
                    let fill = random.next().to_ne_bytes();
                    for (i, byte) in client.bytes(at, len).iter_mut().enumerate() {
                        *byte = fill[i % 8] ^ (i >> 9) as u8;
                    }
                    assert_eq!(client.write(queue, offset, at, len), 0, "{kind}: write");
                    oracle[range].copy_from_slice(client.bytes(at, len));
                }
                4..8 => {
                    client.bytes(at, len).fill(0xEE);
                    assert_eq!(client.read(queue, offset, at, len), 0, "{kind}: read");
                    assert!(client.bytes(at, len) == &oracle[range], "{kind}: round {round}");
                }
                8 => {
                    let unmap = random.below(2) == 0;
                    let ret = client.write_zeroes(queue, offset, len as u64, unmap);
                    assert_eq!(ret, 0, "{kind}: write zeroes");
                    oracle[range].fill(0);
                }
                _ => {
                    assert_eq!(client.flush(queue), 0, "{kind}: flush");
                }
            }
        }
        // Discarded ranges may read as anything: here as zeroes, on a file system with holes.
        assert_eq!(client.discard(0, MIB, MIB), 0, "{kind}: discard");
        client.bytes(0, MIB as usize).fill(0xEE);
        assert_eq!(client.read(1, MIB, 0, MIB as usize), 0);
        assert!(client.bytes(0, MIB as usize).iter().all(|b| *b == 0), "{kind}: after discard");
    }
}

/// Goal: queues do not disturb each other.
/// Method: four queues with 16 writes in flight each to interleaved sectors of the same pages,
/// then everything is read back.
#[test]
fn four_queues_at_once() {
    for kind in KINDS {
        let dir = tempdir().expect("a directory");
        let path = image(&dir, 4 * MIB);
        let served = Served::start(DeviceOptions::default(), open(kind, &path), None);
        let mut client = Client::connect(&served.socket, all_features(), 4, 128, MIB as usize);
        let sectors = 1024_u64;
        for sector in 0..sectors {
            let at = (sector * 512) as usize;
            client.bytes(at, 512).fill((sector % 251) as u8 + 1);
        }
        let mut left = [sectors / 4; 4];
        let mut next = [0_u64; 4];
        // Keep 16 in flight on each queue.
        for round in 0.. {
            let queue = round % 4;
            while next[queue] < sectors / 4 && next[queue] + left[queue] < sectors / 4 + 16 {
                let sector = next[queue] * 4 + queue as u64;
                let from = client.address((sector * 512) as usize);
                // SAFETY: 512 bytes of the arena, which outlives the operation.
                unsafe { client.queues[queue].write_raw(sector * 512, from, 512, sector) }
                    .expect("room");
                next[queue] += 1;
            }
            client.kick(queue);
            if left[queue] > 0 {
                assert_eq!(client.next(queue).1, 0, "{kind}");
                left[queue] -= 1;
            }
            if left == [0; 4] {
                break;
            }
        }
        client.bytes(0, MIB as usize).fill(0);
        assert_eq!(client.read(0, 0, 0, (sectors * 512) as usize), 0);
        for sector in 0..sectors {
            let at = (sector * 512) as usize;
            let want = (sector % 251) as u8 + 1;
            assert!(client.bytes(at, 512).iter().all(|b| *b == want), "{kind}: sector {sector}");
        }
    }
}

/// Goal: the device outlives its front-ends, keeps nothing of them, and their data stays.
#[test]
fn front_ends_come_and_go() {
    alone("virtio_driver_client::front_ends_come_and_go", forty_front_ends);
}

fn forty_front_ends() {
    let dir = tempdir().expect("a directory");
    let path = image(&dir, MIB);
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("descriptors").count();
    let before = descriptors();
    let served = Served::start(DeviceOptions::default(), open("file", &path), None);
    for round in 0..40_u8 {
        let mut client = Client::connect(&served.socket, all_features(), 2, 16, 8192);
        if round > 0 {
            assert_eq!(client.read(0, 4096, 0, 4096), 0);
            assert!(client.bytes(0, 4096).iter().all(|b| *b == round), "round {round}");
        }
        client.bytes(0, 4096).fill(round + 1);
        assert_eq!(client.write(1, 4096, 0, 4096), 0);
        // Every third leaves with requests in flight.
        if round % 3 == 0 {
            let to = client.address(4096);
            // SAFETY: in the arena. It is unmapped with the client; the device has its own
            // mapping of the same file.
            unsafe { client.queues[0].read_raw(0, to, 4096, 9) }.expect("room");
            client.kick(0);
        }
    }
    served.stop().expect("serving ends well");
    assert_eq!(descriptors(), before, "descriptors");
    assert_eq!(std::fs::read(&path).expect("the image")[4096], 40);
}

/// Goal: a front-end that connects and says nothing does not keep shutdown waiting.
#[test]
fn shutdown_with_a_silent_front_end() {
    let dir = tempdir().expect("a directory");
    let path = image(&dir, MIB);
    let served = Served::start(DeviceOptions::default(), open("overlay", &path), None);
    let _silent = std::os::unix::net::UnixStream::connect(&served.socket).expect("connected");
    let started = std::time::Instant::now();
    served.stop().expect("serving ends well");
    let took = started.elapsed();
    assert!(took < Duration::from_secs(10), "shutdown took {took:?}");
}

/// Goal: guest memory is pinned while a guest has the disk, and only then.
/// Method: the kernel's account of what this process has pinned, and the same without the option.
#[test]
fn memory_is_pinned_for_the_guest_that_is_there() {
    alone("virtio_driver_client::memory_is_pinned_for_the_guest_that_is_there", pinned);
}

fn pinned() {
    let pinned_bytes = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmPin:")).expect("VmPin");
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") << 10
    };
    for (kind, pins) in [("file-pinned", true), ("file-direct", false)] {
        let dir = tempdir().expect("a directory");
        let path = image(&dir, MIB);
        let served = Served::start(DeviceOptions::default(), open(kind, &path), None);
        for _ in 0..2 {
            let mut client = Client::connect(&served.socket, all_features(), 1, 16, 1 << 20);
            client.bytes(0, 4096).fill(7);
            assert_eq!(client.write(0, 4096, 0, 4096), 0);
            assert_eq!(client.read(0, 4096, 8192, 4096), 0);
            assert!(client.bytes(8192, 4096).iter().all(|byte| *byte == 7), "{kind}");
            assert_eq!(pinned_bytes() >= 1 << 20, pins, "{kind}: {} bytes", pinned_bytes());
        }
        served.stop().expect("serving ends well");
        assert_eq!(pinned_bytes(), 0, "{kind}");
    }
}
