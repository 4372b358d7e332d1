//! Goal: the map of a disk that a real guest has formatted and aged is what e2fsprogs says.
//! Method: for each set of features: mkfs in the guest, age the file system (files, fragments,
//! holes, unwritten blocks, removals), unmount; then compare every block of every group, once in
//! a map read from the image and once in the map that the running disk kept current.

use std::time::Duration;

use agent::wire::{FallocateMode, Op, Trial as Order, Workload};
use anyhow::{Context, Result, bail, ensure};
use campaign::backend::Storage;
use campaign::{image, oracle};
use libtest_mimic::Trial;
use pipeline::control::{Request, Response};
use pipeline::event::SpanRecord;

use crate::machine::{Machine, Which, boot, must};

const KERNEL: &str = "debian-6.12.107";
const LIMIT: Duration = Duration::from_secs(240);
const DISK_MIB: u64 = 96;

/// Name of the set, and arguments of mkfs.ext4.
const FEATURES: &[(&str, &[&str])] = &[
    ("default", &[]),
    ("blocks_1k", &["-b", "1024"]),
    ("blocks_2k", &["-b", "2048"]),
    ("no_64bit", &["-O", "^64bit"]),
    ("no_flex_bg", &["-O", "^flex_bg"]),
    ("meta_bg", &["-b", "1024", "-O", "meta_bg,^resize_inode"]),
    ("sparse_super2", &["-b", "1024", "-O", "sparse_super2,^resize_inode"]),
    ("no_metadata_csum", &["-O", "^metadata_csum"]),
    ("bigalloc", &["-O", "bigalloc", "-C", "16384"]),
    ("indirect", &["-O", "^extents,^64bit", "-b", "1024"]),
    ("inline_data", &["-O", "inline_data"]),
    ("no_journal", &["-O", "^has_journal"]),
    ("fast_commit", &["-O", "fast_commit"]),
    ("inode_128", &["-I", "128", "-O", "^metadata_csum"]),
    ("orphan_file", &["-O", "orphan_file"]),
    ("ea_inode", &["-O", "ea_inode"]),
];

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    vec![machine.test("layout::aged_by_a_guest", Which::Own, aged)]
}

fn aged(machine: &Machine) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    image::copy(&machine.image(DISK_MIB)?, &disk)?;
    let mut config = machine.guest(Which::Own, KERNEL, &disk)?;
    config.backend.storage = Storage::File;
    let mut guest = boot(&config)?;
    // A subscriber or a question makes the disk keep its map; the guest is subscribed already.
    let mut compared = 0;
    for (trial, (name, features)) in FEATURES.iter().enumerate() {
        let args: Vec<&str> =
            ["-q", "-F"].iter().chain(*features).copied().chain(["/dev/{disk}"]).collect();
        must(&mut guest, "/bin/mkfs.ext4", &args).with_context(|| (*name).to_owned())?;
        let order =
            Order { trial: trial as u64 + 1, seed: 1, workload: ageing(*name != "indirect") };
        let observed = guest.run(order, LIMIT).with_context(|| (*name).to_owned())?;
        ensure!(observed.result.error.is_none(), "{name}: {:?}", observed.result.error);

        let report = oracle::compare(&disk).with_context(|| (*name).to_owned())?;
        ensure!(report.difference_count == 0, "{name}: read from the image: {report}");
        ensure!(
            report.kinds.get("file_data").is_some_and(|blocks| *blocks > 100),
            "{name}: {report}"
        );
        let difference = live_difference(&mut guest, &disk)?;
        ensure!(difference.is_none(), "{name}: kept current by the disk: {difference:?}");
        compared += report.blocks;
    }
    guest.shutdown()?;
    eprintln!("layout: {compared} blocks of {} file systems, 0 differences", FEATURES.len());
    Ok(())
}

/// The first range on which the running disk's map and that of the image differ.
fn live_difference(
    guest: &mut campaign::guest::Guest,
    disk: &std::path::Path,
) -> Result<Option<(SpanRecord, Option<SpanRecord>)>> {
    let sectors = (DISK_MIB << 20) / 512;
    let request = Request::Layout { sector: Some(0), sectors: Some(sectors) };
    let Response::Layout { ranges: live } = guest.control().call(&request)? else {
        bail!("a layout was asked for");
    };
    let mut image = Vec::new();
    oracle::open_map(disk)?.classify(0, sectors, &mut |span| image.push(SpanRecord::from(span)));
    ensure!(!live.is_empty(), "the running disk has no map");
    let differs = image.iter().enumerate().find(|(index, range)| live.get(*index) != Some(range));
    Ok(differs.map(|(index, range)| (*range, live.get(index).copied())))
}

/// Files of many extents, holes, unwritten blocks, removals, folders with several blocks.
fn ageing(extents: bool) -> Workload {
    let open = |file: &str| Op::Open {
        file: file.into(),
        path: file.into(),
        create: true,
        direct: false,
        sync: false,
    };
    let mut ops = vec![Op::Mount { options: String::new() }];
    for file in ["a", "b"] {
        ops.push(open(file));
    }
    // Two files that grow in turns, each turn written out, fragment each other; gaps make
    // extents and, without extents, indirect blocks.
    for step in 0..40_u64 {
        for file in ["a", "b"] {
            ops.push(Op::Write {
                file: file.into(),
                offset: step * 40_960,
                bytes: 12_288,
                fill: step as u8,
            });
            if step % 4 == 0 {
                ops.push(Op::Fsync { file: file.into() });
            }
        }
    }
    ops.push(open("large"));
    ops.push(Op::Write { file: "large".into(), offset: 0, bytes: 8 << 20, fill: 7 });
    ops.push(Op::Syncfs {});
    ops.push(Op::Truncate { file: "a".into(), bytes: 700_000 });
    ops.push(Op::Fill { prefix: "small".into(), count: 150 });
    ops.push(Op::Syncfs {});
    for index in (0..150).step_by(3) {
        ops.push(Op::Unlink { path: format!("small{index}") });
    }
    // Block-mapped inodes know no unwritten blocks.
    if extents {
        ops.push(open("prepared"));
        ops.push(Op::Fallocate {
            file: "prepared".into(),
            mode: FallocateMode::Allocate,
            offset: 0,
            bytes: 2 << 20,
        });
        ops.push(Op::Write { file: "prepared".into(), offset: 65_536, bytes: 65_536, fill: 9 });
    }
    ops.push(Op::Fallocate {
        file: "large".into(),
        mode: FallocateMode::PunchHole,
        offset: 1 << 20,
        bytes: 1 << 20,
    });
    let files = ["a", "b", "large", "prepared"];
    let closing = files[..if extents { 4 } else { 3 }].iter();
    let closing = closing.map(|file| Op::Close { file: (*file).into() });
    let cleanup = closing.chain([Op::Umount {}]).collect();
    Workload { setup: ops, threads: Vec::new(), finish: Vec::new(), cleanup }
}
