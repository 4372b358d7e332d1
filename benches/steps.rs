//! The steps of one request, one by one: its chain, the map, the shadow; and one of the engine.
//!
//! - `chain`: 32 requests from kick to used ring, on a queue without threads: what taking, walking,
//!   parsing and returning a chain costs, with nothing to do (a flush of memory), and with 512 and
//!   4096 bytes to copy.
//! - `rules`: the same 32 requests, reads of 4096 bytes of files in ext4, without rules, and beside 50
//!   that are about other inodes.
//! - `map`: what the map of a real file system says of a random 4 KiB: the set of its kinds, as
//!   every request that a rule by class may want asks, and its classes in full.
//! - `shadow`: whether the shadow wants a write to file data, which it does not; a block of the
//!   inode table, stored as it was, from arrival to completion.
//! - `engine`: a random walk through the model of delayed allocation, for each step taken.
//!
//! The parts of rules are in `pipeline.rs`. mkfs.ext4 makes the file system.

use std::fs;
use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use delalloc::{DelallocModel, Kernel, Scenario};
use device::engine::{Engine, EngineOptions};
use device::fuzz::{Guest, Queue, QueueSetup};
use device::storage::Storage;
use device::storage::memory::MemoryStorage;
use explorer::{Model, StepBuf};
use ext4_layout::{Kind, Layout, LayoutMap, ReadAt, ReadError};
use pipeline::event::RulesText;
use pipeline::shadow::{Arriving, Options, Shadow};
use pipeline::{Nanos, Op, Outcome, RequestId};

const DESCRIPTORS: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x2_0000;
const USED: u64 = 0x3_0000;
const HEADERS: u64 = 0x4_0000;
const DATA: u64 = 0x10_0000;
const MEMORY_BYTES: usize = 4 << 20;
const SIZE: u16 = 1024;
/// Requests in the ring, of at most four descriptors each.
const CHAINS: u16 = SIZE / 4;
/// Requests for each kick.
const REQUESTS: u16 = 32;

const T_IN: u32 = 0;
const T_FLUSH: u32 = 4;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;

/// Lays the requests out, once: the bytes of the ring stay, its index goes on.
fn lay_out(guest: &Guest, kind: u32, data_bytes: u32, sector: impl Fn(u16) -> u64) {
    let descriptor = |index: u16, addr: u64, len: u32, flags: u16| {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend((index + 1).to_le_bytes());
        guest.put(DESCRIPTORS + 16 * u64::from(index), &bytes);
    };
    for request in 0..CHAINS {
        let (first, n) = (request * 4, u64::from(request));
        let header = HEADERS + 64 * n;
        guest.put(header, &kind.to_le_bytes());
        guest.put(header + 8, &sector(request).to_le_bytes());
        descriptor(first, header, 16, F_NEXT);
        let mut next = first + 1;
        if data_bytes > 0 {
            descriptor(next, DATA + 4096 * n, data_bytes, F_NEXT | F_WRITE);
            next += 1;
        }
        descriptor(next, header + 32, 1, F_WRITE);
    }
    for slot in 0..SIZE {
        let head = slot % CHAINS * 4;
        guest.put(AVAILABLE + 4 + 2 * u64::from(slot), &head.to_le_bytes());
    }
    // No calls are wanted.
    guest.put(AVAILABLE, &1_u16.to_le_bytes());
}

/// Has a queue serve them, again and again.
fn serve(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    guest: &Guest,
    storage: &Arc<dyn Storage>,
    engine: Option<&Arc<Engine>>,
) {
    let setup = QueueSetup {
        size: SIZE,
        rings: [DESCRIPTORS, AVAILABLE, USED],
        base: 0,
        event_idx: false,
        indirect: false,
        write_through: false,
        inflight: None,
    };
    let mut queue = Queue::new(guest, storage, engine, setup).expect("a queue");
    let mut index = 0_u16;
    group.bench_function(name, |b| {
        b.iter(|| {
            index = index.wrapping_add(REQUESTS);
            guest.put(AVAILABLE + 2, &index.to_le_bytes());
            queue.kick();
        });
    });
    assert_eq!(guest.u16_at(USED + 2), index, "every request was answered");
    queue.stop();
}

fn chain(c: &mut Criterion) {
    let mut group = c.benchmark_group("chain");
    group.throughput(Throughput::Elements(REQUESTS.into()));
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(16 << 20).expect("a disk"));
    for (name, kind, bytes) in
        [("flush", T_FLUSH, 0), ("read 512", T_IN, 512), ("read 4096", T_IN, 4096)]
    {
        let guest = Guest::new(&[(0, MEMORY_BYTES)]).expect("memory");
        lay_out(&guest, kind, bytes, |n| 8 * u64::from(n));
        serve(&mut group, name, &guest, &storage, None);
    }
    group.finish();
}

struct Bytes(Vec<u8>);

impl ReadAt for Bytes {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let length = buf.len();
        let from = usize::try_from(offset).ok().and_then(|at| self.0.get(at..)?.get(..length));
        match from {
            Some(from) => buf.copy_from_slice(from),
            None => return Err(ReadError { offset, length, source: "past the end".into() }),
        }
        Ok(())
    }
}

/// A file system of 64 MiB with files of many sizes in it.
fn file_system() -> (Bytes, Layout) {
    let folder = tempfile::tempdir().expect("a folder");
    let (top, image) = (folder.path().join("top"), folder.path().join("image"));
    fs::create_dir(&top).expect("a folder");
    for n in 0..200 {
        fs::write(top.join(n.to_string()), vec![n as u8; n * 1000]).expect("a file");
    }
    let bytes = 64 << 20;
    fs::File::create(&image).and_then(|file| file.set_len(bytes)).expect("an image");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-b", "4096", "-d"]).arg(&top).arg(&image);
    let made = mkfs.env("PATH", format!("{path}:/usr/sbin:/sbin")).status().expect("mkfs.ext4");
    assert!(made.success(), "mkfs.ext4 failed");
    let mut disk = Bytes(fs::read(&image).expect("the image"));
    let layout = Layout::open(&mut disk, bytes).expect("ext4");
    (disk, layout)
}

/// Block after block, in no order (a full cycle of xorshift is not needed).
fn some_sector(seed: &mut u64, map: &LayoutMap) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed % (map.device_sectors() / 8) * 8
}

/// First sectors of some blocks of that kind.
fn blocks_of(map: &LayoutMap, kind: Kind) -> Vec<u64> {
    let all = (0..map.device_sectors()).step_by(8);
    let blocks: Vec<u64> = all.filter(|sector| map.kinds(*sector, 8) == kind.bit()).collect();
    assert!(!blocks.is_empty(), "no {}", kind.name());
    blocks
}

fn rules(c: &mut Criterion) {
    let (disk, layout) = file_system();
    let map = layout.map();
    let storage = MemoryStorage::new(disk.0.len() as u64).expect("a disk");
    storage.write_at(0, &disk.0).expect("fits");
    let storage: Arc<dyn Storage> = Arc::new(storage);
    let data = blocks_of(&map, Kind::FileData);
    let mut group = c.benchmark_group("rules");
    group.throughput(Throughput::Elements(REQUESTS.into()));
    for (name, number) in [("none", 0), ("50, on other inodes", 50)] {
        let options =
            EngineOptions { queues: 1, seed: 1, storage: storage.clone(), log: None, shadow: None };
        let engine = Engine::new(options).expect("an engine");
        let rule = |n| {
            format!(
                "[[rule]]\nname = \"r{n}\"\naction = {{ delay = \"80ms\" }}\n\
                 match = {{ class = \"file_data\", inode = {} }}\n",
                1_000_000 + n
            )
        };
        let text = (0..number).map(rule).collect();
        let rules = RulesText { file: "bench.toml".into(), text, ..RulesText::default() };
        engine.load(&rules).expect("sound rules");
        let guest = Guest::new(&[(0, MEMORY_BYTES)]).expect("memory");
        // All over the files: 7919 is prime.
        lay_out(&guest, T_IN, 4096, |n| data[usize::from(n) * 7919 % data.len()]);
        serve(&mut group, name, &guest, &storage, Some(&engine));
    }
    group.finish();
}

fn map(c: &mut Criterion) {
    let (_, layout) = file_system();
    let map = layout.map();
    let mut group = c.benchmark_group("map");
    let mut seed = 1;
    group.bench_function("kinds", |b| b.iter(|| map.kinds(some_sector(&mut seed, &map), 8)));
    group.bench_function("classes", |b| {
        b.iter(|| {
            map.classify(some_sector(&mut seed, &map), 8, &mut |span| {
                black_box(span);
            });
        });
    });
    group.finish();
}

fn shadow(c: &mut Criterion) {
    let (disk, mut layout) = file_system();
    layout.keep_commits();
    let mut shadow = Shadow::new(Options::default());
    shadow.opened(&layout);
    let map = layout.map();
    let mut group = c.benchmark_group("shadow");
    let (data, mut n) = (blocks_of(&map, Kind::FileData), 0);
    let watch = shadow.watch();
    group.bench_function("write of file data, not wanted", |b| {
        b.iter(|| {
            n += 1;
            watch.wants(&map, Op::Write, data[n % data.len()], 8)
        });
    });
    let tables = blocks_of(&map, Kind::InodeTable);
    let mut id = 0;
    group.bench_function("write of an inode table block, as it was", |b| {
        b.iter(|| {
            id += 1;
            let sector = tables[id as usize % tables.len()];
            let at = sector as usize * 512;
            let bytes = &disk.0[at..at + 4096];
            let _: ext4_layout::Change = layout.write_arrived(sector, bytes);
            let old = layout.map();
            let (id, op) = (RequestId(id), Op::Write);
            let arriving = Arriving { id, op, sector, sectors: 8, bytes: Some(bytes) };
            shadow.arrive(Nanos(id.0), &arriving, &old);
            let _: ext4_layout::Change = layout.write_done(sector, bytes);
            let commits = layout.take_commits();
            let new = layout.map();
            shadow.complete(Nanos(id.0), id, Outcome::Ok, (&old, &new), &commits);
            shadow.take_findings()
        });
    });
    group.finish();
}

fn engine(c: &mut Criterion) {
    // OK to unwrap: both are part of this repository.
    let scenario = Scenario::parse(include_str!("explorer/engine.toml")).unwrap();
    let model = DelallocModel::new(scenario, Kernel::find("linux-6.12.107").unwrap(), None);
    let mut group = c.benchmark_group("engine");
    let (mut state, mut seed) = (model.initial(), 1_usize);
    group.bench_function("a step: enabled, applied, checked", |b| {
        b.iter(|| {
            let mut steps = StepBuf::default();
            model.enabled(&state, &mut steps);
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            match steps.as_slice() {
                [] => state = model.initial(),
                steps => {
                    let step = steps[(seed >> 33) % steps.len()];
                    model.apply(&mut state, step);
                    black_box(model.check(&state, step)).expect("a fixed kernel");
                }
            }
        });
    });
    group.finish();
}

criterion_group!(benches, chain, rules, map, shadow, engine);
criterion_main!(benches);
