//! Each storage by itself, through its channels.
//!
//! Goal: any operations, in any sizes, from any channel, leave what a vector would hold.
//! Method: random operations against a `Vec<u8>`; then what only one storage does.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use device::segments::{Segments, Snapshot};
use device::storage::file::{FileOptions, FileStorage};
use device::storage::overlay::OverlayStorage;
use device::storage::{Channel, Io, IoResult, Storage, StorageError, Submitted};
use proptest::prelude::*;
use tempfile::tempdir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::client::{PATIENCE, readable};
use crate::served::image;
use crate::storages::{KINDS, open};

const SECTORS: u64 = 2048;
/// Where reads and writes find their data in guest memory.
const MEMORY: usize = 2 << 20;

fn memory() -> Snapshot {
    let ranges = [(GuestAddress(0), MEMORY)];
    Snapshot::new(Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory")))
}

/// Does one operation on the spot, if the channel can.
fn run_at_once(channel: &mut dyn Channel, mut io: Io) -> IoResult {
    if let Io::Read { offset, to } | Io::Write { offset, from: to, .. } = &io {
        channel.soon(*offset, to.len());
    }
    channel.at_once(&mut io).unwrap_or_else(|| run(channel, io))
}

/// Does one operation, however the channel goes about it.
fn run(channel: &mut dyn Channel, io: Io) -> IoResult {
    match channel.submit(77, io) {
        Submitted::Done(result) => result,
        Submitted::Pending => {
            channel.flush_submissions();
            let mut ended = None;
            while ended.is_none() {
                let fd: BorrowedFd<'_> = channel.completion_fd().expect("pending needs one");
                assert!(readable(fd, PATIENCE), "no completion");
                channel.reap(&mut |token, result| {
                    assert_eq!(token, 77);
                    assert_eq!(ended.replace(result), None, "ended twice");
                });
            }
            ended.expect("set above")
        }
    }
}

/// Segments over `len` bytes from `at` on, cut at odd places.
fn segments(memory: &Snapshot, at: u64, len: u64, cuts: &[u64]) -> Segments {
    let mut ends: Vec<u64> = cuts.iter().map(|cut| cut % len.max(1)).collect();
    ends.push(len);
    ends.sort_unstable();
    let mut segments = Segments::guest(memory);
    let mut from = 0;
    for end in ends {
        if end > from {
            segments.push(GuestAddress(at + from), (end - from) as u32).expect("in memory");
            from = end;
        }
    }
    segments
}

#[derive(Clone, Debug)]
enum Op {
    Read,
    Write { fill: u8, durable: bool },
    Zero { unmap: bool, durable: bool },
    Flush,
    SideRead,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => Just(Op::Read),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(fill, durable)| Op::Write { fill, durable }),
        2 => any::<(bool, bool)>().prop_map(|(unmap, durable)| Op::Zero { unmap, durable }),
        1 => Just(Op::Flush),
        1 => Just(Op::SideRead),
    ]
}

/// Operation, channel (and whether it is asked to do it on the spot), sector, sectors, offset of
/// the buffer, cuts.
type Step = (Op, (usize, bool), u64, u64, u64, Vec<u64>);

fn step() -> impl Strategy<Value = Step> {
    (
        op(),
        (0_usize..3, any::<bool>()),
        0..SECTORS,
        prop_oneof![3 => 1_u64..20, 1 => 1..=SECTORS],
        prop_oneof![Just(0_u64), Just(512), 1_u64..4096],
        prop::collection::vec(any::<u64>(), 0..6),
    )
}

fn agrees(kind: &str, steps: &[Step]) {
    let dir = tempdir().expect("a directory");
    let path = image(&dir, SECTORS * 512);
    // Not all zeroes at first, where the kind shows what is in the image.
    let mut oracle: Vec<u8> = vec![0; (SECTORS * 512) as usize];
    if kind != "memory" {
        for (i, sector) in oracle.chunks_mut(512).enumerate() {
            sector.fill(i as u8);
        }
        std::fs::write(&path, &oracle).expect("the image");
    }
    let storage = open(kind, &path);
    let mut channels: Vec<_> = (0..3).map(|_| storage.channel().expect("a channel")).collect();
    let mut memory = memory();
    for (n, (op, (channel, at_once), sector, sectors, at, cuts)) in steps.iter().enumerate() {
        // The guest's memory is another one now and then.
        if n % 8 == 0 {
            memory = self::memory();
            for channel in &mut channels {
                channel.follow_memory(&memory);
            }
        }
        let channel = &mut *channels[*channel];
        let run = if *at_once { run_at_once } else { run };
        let sectors = (*sectors).min(SECTORS - sector);
        let (offset, len) = (sector * 512, sectors * 512);
        let range = offset as usize..(offset + len) as usize;
        let guest = memory.memory();
        match *op {
            Op::Read => {
                let to = segments(&memory, *at, len, cuts);
                run(channel, Io::Read { offset, to }).expect("read");
                let mut seen = vec![0; len as usize];
                guest.read_slice(&mut seen, GuestAddress(*at)).expect("in memory");
                assert!(seen == oracle[range], "{kind}: read of {sectors} at {sector}");
            }
            Op::Write { fill, durable } => {
                let data: Vec<u8> = (0..len).map(|i| fill ^ (i >> 7) as u8).collect();
                guest.write_slice(&data, GuestAddress(*at)).expect("in memory");
                let from = segments(&memory, *at, len, cuts);
                run(channel, Io::Write { offset, from, durable }).expect("write");
                oracle[range].copy_from_slice(&data);
            }
            Op::Zero { unmap, durable } => {
                run(channel, Io::WriteZeroes { offset, len, unmap, durable }).expect("zero");
                oracle[range].fill(0);
            }
            Op::Flush => run(channel, Io::Flush).expect("flush"),
            Op::SideRead => {
                let mut seen = vec![0; len as usize];
                storage.read_at(offset, &mut seen).expect("read");
                assert!(seen == oracle[range], "{kind}: side read of {sectors} at {sector}");
            }
        }
    }
    let mut whole = vec![0; oracle.len()];
    storage.read_at(0, &mut whole).expect("read");
    assert!(whole == oracle, "{kind}: at the end");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_storage_agrees_with_a_vector(steps in prop::collection::vec(step(), 1..40)) {
        for kind in KINDS {
            agrees(kind, &steps);
        }
    }
}

/// Goal: one channel with many operations in flight ends each of them once.
#[test]
fn more_operations_in_flight_than_a_ring_is_long() {
    for kind in ["file-ring", "file-direct"] {
        let dir = tempdir().expect("a directory");
        let storage = open(kind, &image(&dir, SECTORS * 512));
        let mut channel = storage.channel().expect("a channel");
        let memory = memory();
        let n = 3000_u64;
        let mut ended = vec![0_u32; n as usize];
        for token in 0..n {
            let from = segments(&memory, 512 * (token % 7), 512, &[]);
            let io = Io::Write { offset: 512 * (token % SECTORS), from, durable: false };
            match channel.submit(token, io) {
                Submitted::Done(result) => {
                    result.expect("write");
                    ended[token as usize] += 1;
                }
                Submitted::Pending => {}
            }
        }
        channel.flush_submissions();
        while ended.iter().sum::<u32>() < n as u32 {
            assert!(readable(channel.completion_fd().expect("pending"), PATIENCE));
            channel.reap(&mut |token, result| {
                result.expect("write");
                ended[token as usize] += 1;
            });
        }
        assert!(ended.iter().all(|times| *times == 1), "{kind}");
    }
}

/// Goal: the base stays byte for byte as it was, and reset brings it back, whatever was written.
#[test]
fn an_overlay_never_touches_its_base() {
    let dir = tempdir().expect("a directory");
    let path = image(&dir, SECTORS * 512);
    let base: Vec<u8> = (0..SECTORS * 512).map(|i| (i / 512) as u8 ^ 0x5A).collect();
    std::fs::write(&path, &base).expect("the image");
    let overlay = OverlayStorage::open(&path).expect("the image opens");
    let mut channel = overlay.channel().expect("a channel");
    let memory = memory();
    for sector in (0..SECTORS).step_by(3) {
        let from = segments(&memory, 0, 512, &[]);
        run(&mut *channel, Io::Write { offset: sector * 512, from, durable: true }).expect("write");
    }
    run(&mut *channel, Io::Discard { offset: 0, len: 512 * 1024 }).expect("discard");
    assert!(overlay.own_bytes() > 0);
    assert!(std::fs::read(&path).expect("the image") == base);
    overlay.reset().expect("reset");
    assert_eq!(overlay.own_bytes(), 0);
    let mut seen = vec![0; base.len()];
    overlay.read_at(0, &mut seen).expect("read");
    assert!(seen == base, "after reset");
    assert!(std::fs::read(&path).expect("the image") == base);
}

/// Goal: queues that write neighbouring sectors of one page for the first time, at once, lose
/// nothing of each other, nor of the base.
#[test]
fn first_writes_to_a_page_from_several_threads() {
    let dir = tempdir().expect("a directory");
    let path = image(&dir, SECTORS * 512);
    std::fs::write(&path, vec![0xB5; (SECTORS * 512) as usize]).expect("the image");
    let overlay = OverlayStorage::open(&path).expect("the image opens");
    for round in 0..20_u8 {
        overlay.reset().expect("reset");
        let barrier = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (overlay, barrier) = (&overlay, &barrier);
                scope.spawn(move || {
                    let mut channel = overlay.channel().expect("a channel");
                    let memory = memory();
                    let fill = [round + thread as u8 + 1; 512];
                    memory.memory().write_slice(&fill, GuestAddress(0)).expect("in memory");
                    barrier.wait();
                    // Sectors 0 to 3 of each page; 4 to 7 stay the base's.
                    for page in 0..SECTORS / 8 {
                        let from = segments(&memory, 0, 512, &[]);
                        let offset = page * 4096 + thread * 512;
                        run(&mut *channel, Io::Write { offset, from, durable: false })
                            .expect("write");
                    }
                });
            }
        });
        let mut seen = vec![0; (SECTORS * 512) as usize];
        overlay.read_at(0, &mut seen).expect("read");
        for (sector, bytes) in seen.chunks(512).enumerate() {
            let want = match sector % 8 {
                thread @ 0..4 => round + thread as u8 + 1,
                _ => 0xB5,
            };
            assert!(bytes.iter().all(|b| *b == want), "round {round}, sector {sector}");
        }
    }
}

/// Goal: one writer, or many readers.
#[test]
fn images_are_locked() {
    let dir = tempdir().expect("a directory");
    let path = image(&dir, 4096);
    let write = FileOptions::default();
    let read = FileOptions { read_only: true, ..write };
    let locked = |result: Result<FileStorage, StorageError>| {
        let Err(StorageError::Locked { path: named }) = result else { panic!("not locked") };
        assert_eq!(named, path);
    };
    let writer = FileStorage::open(&path, write).expect("the first writer");
    locked(FileStorage::open(&path, write));
    locked(FileStorage::open(&path, read));
    assert!(matches!(OverlayStorage::open(&path), Err(StorageError::Locked { .. })));
    drop(writer);
    let overlay = OverlayStorage::open(&path).expect("a reader");
    let reader = FileStorage::open(&path, read).expect("another reader");
    locked(FileStorage::open(&path, write));
    drop((overlay, reader));
    FileStorage::open(&path, FileOptions { direct: true, ..write }).expect("a writer again");
}

/// Goal: what cannot be an image is refused with a line that names it and what to do.
#[test]
fn what_is_no_image_is_refused() {
    let dir = tempdir().expect("a directory");
    let refused = |path: &Path| {
        let error = FileStorage::open(path, FileOptions::default()).expect_err("refused");
        let line = error.to_string();
        assert!(line.contains(&*path.to_string_lossy()), "{line}");
        assert!(!line.contains('\n'), "{line}");
        error
    };
    let file = |name: &str, bytes: u64| -> PathBuf {
        let path = dir.path().join(name);
        std::fs::File::create(&path).expect("a file").set_len(bytes).expect("its size");
        path
    };
    assert!(matches!(refused(&dir.path().join("none")), StorageError::Missing { .. }));
    assert!(matches!(refused(dir.path()), StorageError::NotAnImage { .. }));
    assert!(matches!(refused(Path::new("/dev/null")), StorageError::NotAnImage { .. }));
    assert!(matches!(refused(&file("empty", 0)), StorageError::Empty { .. }));
    let odd = refused(&file("odd", 1000));
    assert!(odd.to_string().contains("truncate -s 1024"), "{odd}");
    let read_only = FileOptions { read_only: true, ..FileOptions::default() };
    let storage = FileStorage::open(&file("ro", 4096), read_only).expect("opens");
    assert!(storage.read_only());
    assert!(matches!(storage.resize(8192), Err(StorageError::NotWritable { .. })));
}

/// Goal: a file that shrinks under the disk is an error for the guest, not for us.
#[test]
fn a_file_that_shrinks() {
    for kind in ["file-ring", "file-direct", "file-blocking", "overlay"] {
        let dir = tempdir().expect("a directory");
        let path = image(&dir, SECTORS * 512);
        let storage = open(kind, &path);
        let mut channel = storage.channel().expect("a channel");
        let memory = memory();
        let mut read = |len| {
            let to = segments(&memory, 0, len, &[]);
            run_at_once(&mut *channel, Io::Read { offset: 0, to })
        };
        // Often enough for whatever remembers what it has read.
        for _ in 0..4 {
            read(8192).expect("all of it is there");
        }
        let file = std::fs::File::options().write(true).open(&path).expect("the image");
        file.set_len(4096).expect("shrinks");
        read(8192).expect_err("half of it is gone");
        read(4096).expect("the other half is there");
    }
}
