//! Goal: the first store of a guest to each page of its persistent memory is told in order, with
//! its exact byte, its virtual processor and its ext4 class; and again after a flush.
//! Method: ext4 with `-o dax` on QEMU's virtio-pmem, whose backing file on tmpfs is watched through
//! the preloaded library; two threads, each on a processor of its own, store to pages of one file
//! in turns; the log against what they did.

use std::path::Path;
use std::time::Duration;

use agent::wire::{Op, Thread, Trial as Order, Workload};
use anyhow::{Context, Result, ensure};
use campaign::device::Device;
use campaign::image;
use ext4_layout::Kind;
use libtest_mimic::Trial;
use pipeline::event::Protection;
use pipeline::{Event, What};

use crate::machine::{Machine, Which, boot};

const KERNEL: &str = "debian-6.12.107";
const LIMIT: Duration = Duration::from_secs(120);
const TURN_LIMIT_MS: u64 = 30_000;
const PAGE_BYTES: u64 = 4096;
/// Pages of the file, each stored to once by each thread in turn.
const PAGES: u64 = 40;
const FILE: &str = "f";
/// The first file of a fresh file system.
const INODE: u32 = 12;

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    vec![machine.test("stores::two_processors_in_turns", Which::Own, in_turns)]
}

/// The page and the byte in it of the n-th store.
fn nth(n: u64) -> (u64, u64) {
    (n * 7 % PAGES, n * 101 % PAGE_BYTES)
}

fn store(n: u64) -> Op {
    let (page, byte) = nth(n);
    Op::Store { file: FILE.into(), offset: page * PAGE_BYTES + byte, value: 1 }
}

/// Every second store, from `parity` on, each after the one of the other thread.
fn thread(cpu: u32, parity: u64) -> Thread {
    let turn = |n: u64| format!("turn-{n}");
    let mut ops = Vec::new();
    for n in (parity..PAGES).step_by(2) {
        if n > 0 {
            ops.push(Op::Await { signal: turn(n), limit_ms: TURN_LIMIT_MS });
        }
        ops.push(store(n));
        ops.push(Op::Signal { name: turn(n + 1) });
    }
    Thread { name: format!("on-{cpu}"), cpu: Some(cpu), ops }
}

fn in_turns(machine: &Machine) -> Result<()> {
    let folder = tempfile::tempdir_in("/dev/shm").context("a folder on tmpfs")?;
    let disk = folder.path().join("pmem");
    let log = folder.path().join("log.jsonl");
    // DAX wants blocks as large as pages.
    let blocks = ["-b", "4096"].map(str::to_owned);
    image::copy(&machine.made(64 << 20, &blocks)?, &disk)?;
    let mut config = machine.guest(Which::Own, KERNEL, &disk)?;
    config.backend.device = Device::VirtioPmem;
    config.backend.stores_log = Some(log.clone());
    let mut guest = boot(&config)?;
    let file = || FILE.to_owned();
    let workload = Workload {
        setup: vec![
            Op::Mount { options: "dax,noatime".into() },
            Op::Open { file: file(), path: FILE.into(), create: true, direct: false, sync: false },
            Op::Write { file: file(), offset: 0, bytes: PAGES * PAGE_BYTES, fill: 7 },
            Op::Fsync { file: file() },
            Op::Map { file: file(), bytes: PAGES * PAGE_BYTES },
        ],
        threads: vec![thread(0, 0), thread(1, 1)],
        // Seen again because of the flush in between, and only once.
        finish: vec![store(0), Op::Fsync { file: file() }, store(0), store(0)],
        cleanup: vec![Op::Close { file: file() }, Op::Umount {}],
    };
    let trial = guest.run(Order { trial: 1, seed: 1, workload }, LIMIT)?;
    ensure!(trial.result.error.is_none(), "{:?}", trial.result.error);
    guest.shutdown()?;

    let replay = "repeat with: cargo test --package guest-tests -- stores::";
    let mut seen = file_stores(&log)?;
    let turns = turns_in(&seen).with_context(|| format!("out of order: {seen:?}; {replay}"))?;
    let after = &seen[turns + PAGES as usize..];
    ensure!(after.first() == Some(&Seen::Flush), "no flush after the turns: {after:?}; {replay}");
    let (page, at) = nth(0);
    // Which processor finishes is the kernel's choice.
    let again = |seen: &&Seen| matches!(**seen, Seen::Store { lblk, byte, .. } if (u64::from(lblk), byte) == (page, at));
    let stores = after.iter().filter(again).count();
    ensure!(stores == 1, "{stores} first stores after the flush: {after:?}; {replay}");
    eprintln!("stores: {PAGES} stores of two processors in order, {} entries", seen.len());
    // The canary: a log that has lost one of them is not in order.
    seen.remove(turns + PAGES as usize / 2);
    ensure!(turns_in(&seen).is_none(), "a lost store was not missed");
    Ok(())
}

/// Where the stores of the two threads are, one after the other and nothing else in between.
fn turns_in(seen: &[Seen]) -> Option<usize> {
    let store = |n| {
        let (page, byte) = nth(n);
        Seen::Store { lblk: page as u32, byte, vcpu: Some((n % 2) as u32) }
    };
    let expected: Vec<Seen> = (0..PAGES).map(store).collect();
    seen.windows(expected.len()).position(|part| part == expected)
}

/// What the log says about the file's data.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Store { lblk: u32, byte: u64, vcpu: Option<u32> },
    Flush,
}

fn file_stores(log: &Path) -> Result<Vec<Seen>> {
    let text = std::fs::read_to_string(log)?;
    let mut seen = Vec::new();
    for line in text.lines() {
        match serde_json::from_str::<Event>(line).context(line.to_owned())?.what {
            What::FirstStore { offset, vcpu, touches, .. }
                if touches.home.class == Kind::FileData && touches.home.inode == Some(INODE) =>
            {
                let lblk = touches.home.first_lblk.context("file data without a block")?;
                seen.push(Seen::Store { lblk, byte: offset % PAGE_BYTES, vcpu });
            }
            What::Protected { cause: Protection::Flush, .. } => seen.push(Seen::Flush),
            _ => {}
        }
    }
    Ok(seen)
}
