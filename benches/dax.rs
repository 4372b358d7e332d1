//! Stores to persistent memory, side by side: a plain copy, the writer's ways to durability, and
//! msync().
//!
//! `cargo bench -p benches --bench dax` prints, for each length, the time of one operation (median
//! of rounds that take turns, so that a busy moment meets all alike) and its ratio to a plain copy
//! in the same run:
//!
//! - `copy`: a plain copy into the mapping; durable some day.
//! - `cached`: stores, the write-back of their cache lines, a fence.
//! - `streamed`: stores past the cache, a fence.
//! - `write`: what `Writer::write` picks.
//! - `msync shm`: a copy and msync(), on tmpfs: the cost of the call alone.
//! - `msync disk`: a copy and msync(), on the file system of the working folder: what a program
//!   without persistent memory pays.
//!
//! Each operation goes to the next place: of 64 MiB, so that most find theirs outside of the cache,
//! then of 256 KiB, all of it inside. Ordinary memory stands for persistent memory, whose own speed is not measured. Nothing is
//! asserted: times belong to the machine.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use device::dax::{DaxFile, Domain, Writer};

const FILE_BYTES: u64 = 64 << 20;
/// What operations are spread over.
const SPANS: [u64; 2] = [FILE_BYTES, 256 << 10];
const ROUNDS: usize = 15;
/// How long one way is measured in one round.
const SLICE: Duration = Duration::from_millis(4);
/// Bytes between two looks at the clock, at least one operation.
const CLOCK_BYTES: u64 = 16 << 10;
const LENGTHS: [usize; 6] = [64, 256, 1024, 4096, 16 << 10, 128 << 10];

/// One way to store bytes.
struct Way<'a> {
    name: &'static str,
    file: &'a DaxFile,
    run: fn(&DaxFile, u64, &[u8]),
    next: u64,
}

impl Way<'_> {
    /// Nanoseconds of one operation, on average over a slice.
    fn slice(&mut self, span: u64, bytes: &[u8]) -> f64 {
        let len = bytes.len() as u64;
        let begin = Instant::now();
        let mut operations = 0_u32;
        loop {
            for _ in 0..CLOCK_BYTES.div_ceil(len) {
                if self.next + len > span {
                    self.next = 0;
                }
                (self.run)(self.file, self.next, black_box(bytes));
                self.next += len;
                operations += 1;
            }
            let passed = begin.elapsed();
            if passed >= SLICE {
                return passed.as_nanos() as f64 / f64::from(operations);
            }
        }
    }
}

fn copy(file: &DaxFile, at: u64, bytes: &[u8]) {
    file.store(at, bytes).expect("inside");
}

fn cached(file: &DaxFile, at: u64, bytes: &[u8]) {
    let mut writer = Writer::new(file);
    writer.write_cached(at, bytes).and_then(|()| writer.drain()).expect("inside");
}

fn streamed(file: &DaxFile, at: u64, bytes: &[u8]) {
    let mut writer = Writer::new(file);
    writer.write_streamed(at, bytes).and_then(|()| writer.drain()).expect("inside");
}

fn write(file: &DaxFile, at: u64, bytes: &[u8]) {
    let mut writer = Writer::new(file);
    writer.write(at, bytes).and_then(|()| writer.drain()).expect("inside");
}

/// A file with all its pages there.
fn filled(path: &Path) {
    std::fs::write(path, vec![1; FILE_BYTES as usize]).expect("a file");
}

fn main() {
    let (shm, disk) = ("/dev/shm".as_ref(), std::env::current_dir().expect("a folder"));
    let shm = tempfile::tempdir_in::<&Path>(shm).expect("a folder in /dev/shm");
    let disk = tempfile::tempdir_in(disk).expect("a folder here");
    let (fast, slow) = (shm.path().join("memory"), disk.path().join("memory"));
    filled(&fast);
    filled(&slow);
    let persistent = DaxFile::open_as_persistent(&fast).expect("maps");
    let shm_file = DaxFile::open(&fast).expect("maps");
    let disk_file = DaxFile::open(&slow).expect("maps");
    println!(
        "{:?} for what is persistent, {:?} on tmpfs, {:?} on the disk",
        persistent.durability(),
        shm_file.durability(),
        disk_file.durability()
    );
    // Page faults of the first touch are not what is measured.
    for file in [&persistent, &shm_file, &disk_file] {
        for at in (0..FILE_BYTES).step_by(4096) {
            file.store(at, &[1]).expect("inside");
        }
    }
    let way = |name, file, run| Way { name, file, run, next: 0 };
    let mut ways = [
        way("copy", &persistent, copy),
        way("cached", &persistent, cached),
        way("streamed", &persistent, streamed),
        way("write", &persistent, write),
        way("msync shm", &shm_file, write),
        way("msync disk", &disk_file, write),
    ];
    for span in SPANS {
        print!("{:>8}", format!("{} KiB", span >> 10));
        for way in &ways {
            print!("  {:>18}", way.name);
        }
        println!();
        for len in LENGTHS {
            row(&mut ways, span, len);
        }
    }
}

/// Measures one length and prints it.
fn row(ways: &mut [Way<'_>; 6], span: u64, len: usize) {
    let bytes = vec![0x5a; len];
    let mut times = [const { Vec::new() }; 6];
    for _ in 0..ROUNDS {
        for (way, times) in ways.iter_mut().zip(&mut times) {
            times.push(way.slice(span, &bytes));
        }
    }
    let medians = times.map(|mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    });
    print!("{len:>8}");
    for median in medians {
        print!("  {median:>9.0} ns {:>5.1}", median / medians[0]);
    }
    println!();
}
