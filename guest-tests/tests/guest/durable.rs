//! Goal: what the guest has flushed survives the death of the virtual machine, on every device.
//! Method: random writes to the whole device with an fsync after every few; at a mark drawn by
//! the seed QEMU is killed, the backend ends, and every block of the image is compared with the
//! writes that the guest was told are durable.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use agent::draws::Draws;
use agent::random_writes::{BLOCK_BYTES, RandomWrite, RandomWrites, parse_synced};
use agent::wire::{Op, Thread, Trial as Order, Workload};
use anyhow::{Context, Result, bail, ensure};
use campaign::backend::Storage;
use campaign::device::Device;
use campaign::image;
use libtest_mimic::Trial;

use crate::machine::{Machine, Which, boot};

const KERNEL: &str = "debian-6.12.107";
const SEED: u64 = 1;
pub(crate) const IMAGE_MIB: u64 = 64;
const BLOCKS: u64 = (IMAGE_MIB << 20) / BLOCK_BYTES as u64;
/// Writes that are durable before the machine is killed, at least.
const WRITES: u64 = 10_000;
/// Writes by which the moment of the kill varies.
const MORE: u64 = 1000;
const FSYNC_EVERY: u64 = 50;
const THREAD: &str = "writer";
const LIMIT: Duration = Duration::from_secs(180);

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    Device::ALL
        .into_iter()
        .map(|device| {
            let name = format!("durable::killed_machine::{device}");
            machine.test(&name, Which::for_device(device), move |machine| killed(machine, device))
        })
        .collect()
}

fn killed(machine: &Machine, device: Device) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    image::copy(&machine.image(IMAGE_MIB)?, &disk)?;
    let before = read_blocks(&disk)?;
    let mut config = machine.guest(Which::for_device(device), KERNEL, &disk)?;
    config.backend.device = device;
    config.backend.storage = Storage::File;
    let mut guest = boot(&config)?;
    guest.begin(writing("/dev/{disk}"))?;
    let kill_at = WRITES + Draws::new(SEED, "kill").between(0, MORE);
    let mut durable =
        guest.wait_mark(LIMIT, |mark| parse_synced(mark).filter(|n| *n >= kill_at))?;
    guest.kill_machine(|mark| durable = parse_synced(mark).unwrap_or(durable).max(durable))?;
    drop(guest);
    let checked = compare(&disk, &before, durable)?;
    let canary = compare(&disk, &before, durable + MORE);
    ensure!(canary.is_err(), "{MORE} writes that were never made were taken for durable");
    eprintln!("durable: {device}: killed after {durable} writes, {checked} blocks compared");
    Ok(())
}

/// Random writes to the whole device, for longer than anybody waits.
pub(crate) fn writing(path: &str) -> Order {
    let op = Op::WriteRandomly {
        path: path.into(),
        blocks: BLOCKS,
        // More than there is time for: the kill comes first.
        writes: 10 * (WRITES + MORE),
        fsync_every: FSYNC_EVERY,
    };
    let thread = Thread { name: THREAD.into(), ops: vec![op], ..Thread::default() };
    Order {
        trial: 1,
        seed: SEED,
        workload: Workload { threads: vec![thread], ..Workload::default() },
    }
}

fn read_blocks(disk: &Path) -> Result<Vec<u8>> {
    std::fs::read(disk).with_context(|| disk.display().to_string())
}

/// Compares the image with what was written; gives the number of blocks that were.
pub(crate) fn compare(disk: &Path, before: &[u8], durable: u64) -> Result<usize> {
    let all = RandomWrites::new(Draws::new(SEED, THREAD), BLOCKS, 10 * (WRITES + MORE));
    // Per block: its last durable write, and those that may have followed.
    let mut expected: BTreeMap<u64, (Option<u64>, Vec<u64>)> = BTreeMap::new();
    for RandomWrite { number, block } in all {
        let (last, later) = expected.entry(block).or_default();
        if number <= durable {
            *last = Some(number);
        } else {
            later.push(number);
        }
    }
    let file = File::open(disk)?;
    let mut compared = 0;
    for (block, (last, later)) in expected {
        let offset = block * BLOCK_BYTES as u64;
        let mut bytes = [0; BLOCK_BYTES];
        file.read_exact_at(&mut bytes, offset)?;
        compared += usize::from(last.is_some());
        let old = &before[offset as usize..][..BLOCK_BYTES];
        for (index, pair) in bytes.chunks_exact(16).enumerate() {
            let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| pair[at + i]));
            let (number, of) = (word(0), word(8));
            // A write that was under way when the machine died may be there in part.
            let written = of == block && (Some(number) == last || later.contains(&number));
            let untouched = last.is_none() && pair == &old[index * 16..][..16];
            if !written && !untouched {
                bail!(
                    "block {block}, byte {}: holds write {number} of block {of}; its last \
                     durable write was {last:?} of {durable}; repeat with: cargo test --package \
                     guest-tests -- durable",
                    index * 16
                );
            }
        }
    }
    ensure!(compared as u64 > BLOCKS / 4, "only {compared} of {BLOCKS} blocks were written");
    Ok(compared)
}
