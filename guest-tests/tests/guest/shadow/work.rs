//! Work on a file system in the guest: the agent's threads, stress-ng, fio, and mounts in between.
//!
//! In: a guest with a file system that nobody has mounted, a seed, how long. Out: the file system
//! unmounted and found sound by e2fsck.
//! Must not know: shadows, rules.

use agent::wire::{FallocateMode, Op, Thread, Workload};
use anyhow::{Result, ensure};
use campaign::guest::Guest;

use super::MIB;
use super::silent::{Configuration, LIMIT};
use crate::machine::{must, run};

/// How long a piece of work runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// Some seconds in all.
    Short,
    /// About two minutes.
    Long,
}

impl Length {
    fn seconds(self) -> u32 {
        if self == Length::Short { 2 } else { 15 }
    }
}

/// Stressors of stress-ng that work on files, with their options; each run takes some of them.
/// Those that drop the kernel's caches are left out (iomix): 6.1.192 then finds no page of its buddy
/// cache and dies of it (`ext4_mb_load_buddy_gfp`).
const STRESSORS: &[&[&str]] = &[
    &["--fallocate", "1", "--fallocate-bytes", "4m"],
    &["--hdd", "1", "--hdd-bytes", "4m", "--hdd-opts", "fsync,wr-rnd"],
    &["--fpunch", "1"],
    &["--rename", "1"],
    &["--xattr", "1"],
    &["--dentry", "1", "--dentries", "64"],
    &["--mmap", "1", "--mmap-file", "--mmap-bytes", "4m"],
    &["--sync-file", "1", "--sync-file-bytes", "4m"],
    &["--dir", "1", "--dir-dirs", "128"],
    &["--seek", "1", "--seek-size", "4m", "--seek-punch"],
    &["--link", "1"],
    &["--hdd", "1", "--hdd-bytes", "2m", "--hdd-opts", "direct,wr-seq,syncfs"],
    &["--symlink", "1"],
    &["--utime", "1", "--utime-fsync"],
    &["--aiol", "1"],
    &["--chmod", "1"],
    &["--fiemap", "1", "--fiemap-bytes", "4m"],
    &["--msync", "1", "--msync-bytes", "2m"],
];
/// Stressors at a time.
const AT_ONCE: usize = 5;

/// Jobs of fio: synchronous and direct, through a mapping, asynchronous, with fallocate and with
/// small files made and removed.
const JOBS: &[&[&str]] = &[
    &["--name=mixed", "--rw=randrw", "--ioengine=sync", "--direct=1", "--fsync=16", "--bs=4k"],
    &["--name=mapped", "--rw=randwrite", "--ioengine=mmap", "--fsync=64", "--bs=4k"],
    &[
        "--name=deep",
        "--rw=randwrite",
        "--ioengine=libaio",
        "--direct=1",
        "--iodepth=8",
        "--bsrange=4k-64k",
    ],
    &[
        "--name=buffered",
        "--rw=randwrite",
        "--ioengine=psync",
        "--fdatasync=8",
        "--bsrange=1k-16k",
        "--overwrite=0",
    ],
    &[
        "--name=appended",
        "--rw=write",
        "--ioengine=sync",
        "--bs=8k",
        "--fsync=4",
        "--file_append=1",
        "--fallocate=none",
    ],
];

/// What is done to one file system.
pub(super) struct Work<'a> {
    pub(super) configuration: &'a Configuration,
    /// Stressors of stress-ng that are not run.
    pub(super) left_out: &'a [&'a str],
    /// Seeds everything.
    pub(super) trial: u64,
    pub(super) length: Length,
}

impl Work<'_> {
    /// Everything, one after the other.
    pub(super) fn all(&self, guest: &mut Guest) -> Result<()> {
        let (options, trial) = (self.configuration.options, self.trial);
        let seconds = self.length.seconds().to_string();
        let small = self.small();
        let mut workload = threads(options);
        if self.configuration.mkfs.iter().any(|of| of.contains("^extents")) {
            // Files without extents cannot be allocated ahead.
            for thread in &mut workload.threads {
                thread.ops.retain(|op| !matches!(op, Op::Fallocate { .. }));
            }
        }
        run(guest, trial, workload, LIMIT)?;
        mount(guest, options)?;
        if small {
            let room = self.configuration.mib.unwrap_or(0) / 2;
            let size = format!("{room}M");
            must(guest, "/bin/fallocate", &["-l", &size, "/mnt/ballast"])?;
        }
        self.stress(guest, trial)?;
        fio(guest, trial, &seconds, small)?;
        must(guest, "/bin/mount", &["-o", "remount,ro", "/mnt"])?;
        must(guest, "/bin/mount", &["-o", "remount,rw,commit=1", "/mnt"])?;
        self.stress(guest, trial + 7)?;
        must(guest, "/bin/fstrim", &["/mnt"])?;
        must(guest, "/bin/umount", &["/mnt"])?;
        mount(guest, options)?;
        fio(guest, trial + 1, &seconds, small)?;
        bulk(guest, trial, &seconds, small)?;
        must(guest, "/bin/umount", &["/mnt"])?;
        must(guest, "/bin/e2fsck", &["-f", "-n", "/dev/{disk}"])?;
        Ok(())
    }

    /// On a small file system half is for the agent's work; later work runs out of blocks.
    fn small(&self) -> bool {
        self.configuration.mib.is_some()
    }

    fn stress(&self, guest: &mut Guest, seed: u64) -> Result<()> {
        let (from, seconds) = (seed as usize * AT_ONCE, self.length.seconds().to_string());
        let seed = seed.to_string();
        let mut args = vec!["--temp-path", "/mnt", "--timeout", &seconds, "--seed", &seed];
        args.extend(["--quiet", "--oom-avoid"]);
        let chosen = (from..from + AT_ONCE).filter_map(|at| STRESSORS.get(at % STRESSORS.len()));
        let mut names = Vec::new();
        for stressor in chosen {
            // A stressor given twice would be one with the later options.
            if let Some(name) = stressor.first().filter(|name| !names.contains(*name))
                && !self.left_out.contains(name)
            {
                names.push(name);
                args.extend(*stressor);
            }
        }
        try_program(guest, "/bin/stress-ng", &args, self.small())
    }
}

fn mount(guest: &mut Guest, options: &str) -> Result<()> {
    // As the agent takes them: `5.15+noatime`.
    let plain = options.split(',').map(|of| of.split_once('+').map_or(of, |(_, of)| of));
    let options = ["rw"].into_iter().chain(plain).filter(|of| !of.is_empty());
    let options = options.collect::<Vec<_>>().join(",");
    must(guest, "/bin/mount", &["-t", "ext4", "-o", &options, "/dev/{disk}", "/mnt"])?;
    Ok(())
}

/// Runs a program that may run out of blocks if the file system is `small`.
fn try_program(guest: &mut Guest, program: &str, args: &[&str], small: bool) -> Result<()> {
    let done = guest.exec(program, args, LIMIT)?;
    ensure!(
        done.status == 0 || small && done.status < 128,
        "{program} {} ended with {}: {}{}",
        args.join(" "),
        done.status,
        done.stdout,
        done.stderr
    );
    Ok(())
}

/// As many requests as the guest can make, most of them to data that is written already.
fn bulk(guest: &mut Guest, trial: u64, seconds: &str, small: bool) -> Result<()> {
    let runtime = format!("--runtime={seconds}");
    let seed = format!("--randseed={trial}");
    let size = if small { "--size=3m" } else { "--size=24m" };
    let args = [
        "--directory=/mnt",
        "--thread",
        "--time_based",
        &runtime,
        &seed,
        "--output-format=terse",
        "--unlink=1",
        "--name=bulk",
        "--rw=randrw",
        "--rwmixread=30",
        "--ioengine=libaio",
        "--direct=1",
        "--iodepth=32",
        "--bs=4k",
        "--fsync=512",
        size,
    ];
    try_program(guest, "/bin/fio", &args, small)
}

fn fio(guest: &mut Guest, trial: u64, seconds: &str, small: bool) -> Result<()> {
    let runtime = format!("--runtime={seconds}");
    let seed = format!("--randseed={trial}");
    let mut args = vec!["--directory=/mnt", "--thread", "--time_based", &runtime, &seed];
    args.extend(["--output-format=terse", "--size=4m", "--unlink=1"]);
    let from = trial as usize * 2;
    for job in (from..from + 2).filter_map(|at| JOBS.get(at % JOBS.len())) {
        args.extend(*job);
    }
    try_program(guest, "/bin/fio", &args, small)
}

/// Three threads that write, sync, truncate, punch, allocate and unlink.
fn threads(options: &str) -> Workload {
    let thread = |number: u64| {
        let mut ops = Vec::new();
        for round in 0..6_u64 {
            let file = format!("t{number}r{round}");
            ops.push(Op::Open {
                file: file.clone(),
                path: file.clone(),
                create: true,
                direct: false,
                sync: false,
            });
            for part in 0..6_u64 {
                ops.push(Op::Write {
                    file: file.clone(),
                    offset: part * 81_920,
                    bytes: 20_000 + 7_000 * number,
                    fill: 1 + part as u8,
                });
                if part % 3 == number % 3 {
                    ops.push(Op::Fsync { file: file.clone() });
                }
            }
            ops.push(Op::Fallocate {
                file: file.clone(),
                mode: FallocateMode::Allocate,
                offset: MIB,
                bytes: 300_000,
            });
            ops.push(Op::Write {
                file: file.clone(),
                offset: MIB + 65_536,
                bytes: 65_536,
                fill: 9,
            });
            ops.push(Op::Fsync { file: file.clone() });
            ops.push(Op::Fallocate {
                file: file.clone(),
                mode: FallocateMode::PunchHole,
                offset: 81_920,
                bytes: 100_000,
            });
            ops.push(Op::Truncate { file: file.clone(), bytes: 150_000 * (1 + round % 3) });
            ops.push(Op::Fsync { file: file.clone() });
            ops.push(Op::Close { file: file.clone() });
            if round % 2 == 1 {
                ops.push(Op::Unlink { path: file });
            }
        }
        Thread { name: format!("worker{number}"), ops, ..Thread::default() }
    };
    Workload {
        setup: vec![
            Op::Mount { options: options.to_owned() },
            Op::Fill { prefix: "small".into(), count: 60 },
            Op::Syncfs {},
        ],
        threads: (0..3).map(thread).collect(),
        finish: vec![Op::Syncfs {}],
        cleanup: vec![Op::Umount {}],
    }
}
