//! A real guest's disk, from the recorded logs of `pipeline`'s tests: what an ext4 was read from,
//! and what the guest wrote to it afterwards.
//!
//! In: nothing. Out: sectors and writes, read once.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use pipeline::RequestId;
use pipeline::event::{Event, What, bytes_of};

/// Lines of a log with `--shadow`, on ext4 of 8 MiB with an ordinary journal.
pub(crate) const PLAIN: &str = include_str!("../../pipeline/tests/data/guest-plain.jsonl");
/// The same with checksums.
const CHECKSUMS: &str = include_str!("../../pipeline/tests/data/guest-checksums.jsonl");
/// The same with `data=journal`.
const JOURNALED: &str = include_str!("../../pipeline/tests/data/guest-journaled.jsonl");

pub(crate) const SECTOR: usize = 512;

/// A disk at the moment at which its layout was read, and the guest's writes of metadata since.
pub(crate) struct Recorded {
    /// 512 bytes each, by sector; every other sector is zero.
    pub(crate) sectors: BTreeMap<u64, Box<[u8; SECTOR]>>,
    pub(crate) device_bytes: u64,
    /// First sector and bytes.
    pub(crate) writes: Vec<(u64, Vec<u8>)>,
}

/// Number of disks.
pub(crate) const DISKS: usize = 3;

/// One of them.
pub(crate) fn disk(which: usize) -> &'static Recorded {
    static DISK: [OnceLock<Recorded>; DISKS] = [const { OnceLock::new() }; DISKS];
    let which = which % DISKS;
    DISK[which].get_or_init(|| read([PLAIN, CHECKSUMS, JOURNALED][which]))
}

fn read(log: &str) -> Recorded {
    let mut disk = Recorded { sectors: BTreeMap::new(), device_bytes: 0, writes: Vec::new() };
    let mut bytes: BTreeMap<RequestId, Vec<u8>> = BTreeMap::new();
    for line in log.lines() {
        let event: Event = serde_json::from_str(line).expect("a recorded event");
        match event.what {
            What::Bytes { id: Some(id), len, data, .. } => {
                bytes.insert(id, bytes_of(len, &data).expect("recorded bytes"));
            }
            What::Bytes { id: None, offset, len, data } => {
                let read = bytes_of(len, &data).expect("recorded bytes");
                let first = offset / SECTOR as u64;
                for (at, sector) in (first..).zip(read.chunks_exact(SECTOR)) {
                    let mut whole = Box::new([0; SECTOR]);
                    whole.copy_from_slice(sector);
                    disk.sectors.insert(at, whole);
                }
            }
            What::Request { id, sector, .. } => {
                if let Some(bytes) = bytes.remove(&id) {
                    disk.writes.push((sector, bytes));
                }
            }
            What::Layout { device_bytes: Some(bytes), .. } => disk.device_bytes = bytes,
            _ => {}
        }
    }
    disk
}
