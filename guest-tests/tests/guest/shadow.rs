//! Goal: the on-disk shadow is silent on real kernels, whatever the timing.
//! Method: fsstress-like and fio work in the guest over mkfs and mount options, on two kernels, with
//! and without half of all requests delayed; the disk has a shadow. 0 findings, and it must have
//! looked at requests and commits.
//!
//! A long run is made of pieces: with `RACEGATE_SHADOW_REQUESTS=N` the configurations are gone
//! through, with delays and without in turn, until the guest has made N requests;
//! `RACEGATE_SHADOW_CONFIGURATIONS=default,bigalloc` takes those only, and
//! `RACEGATE_SHADOW_SEED=N` seeds delays and work.

use std::time::{Duration, Instant};

use agent::wire::{FallocateMode, Op, Thread, Workload};
use anyhow::{Context, Result, bail, ensure};
use campaign::guest::Guest;
use libtest_mimic::Trial;
use pipeline::RuleSet;
use pipeline::control::{Request, Response};
use pipeline::shadow::{Checker, Options, Rule, ShadowStats};

use crate::machine::{Machine, Which, boot, must, run};

const LIMIT: Duration = Duration::from_secs(300);
const MIB: u64 = 1 << 20;
/// Requests from which on each configuration runs for a minute at a time; fewer: seconds.
const LONG: u64 = 100_000;

const DELAYS: &str = r#"
[[rule]]
name = "delay-half"
match = { op = ["write", "flush", "discard", "write_zeroes"], probability = 0.5 }
action = { delay = { uniform = ["100us", "8ms"] } }
"#;

/// A name, arguments of mkfs.ext4, and mount options.
const CONFIGURATIONS: &[(&str, &[&str], &str)] = &[
    ("default", &[], ""),
    ("blocks_1k", &["-b", "1024"], ""),
    ("nodelalloc", &[], "nodelalloc"),
    ("dioread_lock", &["-b", "4096", "-O", "^metadata_csum,^64bit"], "dioread_lock"),
    ("data_journal", &["-J", "size=8"], "data=journal"),
    ("small_journal", &["-J", "size=4"], "commit=1,discard"),
    ("bigalloc", &["-O", "bigalloc", "-C", "16384"], ""),
    ("orphan_file", &["-O", "orphan_file,inline_data,ea_inode"], "5.15+noatime"),
];

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    let mut tests = Vec::new();
    for (kernel, delayed, from) in [("debian-6.1.192", true, 0), ("debian-6.12.107", false, 1)] {
        let name = format!("shadow::silent::{kernel}");
        tests.push(
            machine.test(&name, Which::Own, move |machine| silent(machine, kernel, delayed, from)),
        );
    }
    for (kernel, stale) in [("debian-6.1.192", true), ("debian-6.12.107", false)] {
        let name = format!("shadow::catches::{kernel}");
        let run = move |machine: &Machine| catches(machine, kernel, stale);
        tests.push(machine.test(&name, Which::Own, run));
    }
    tests.push(machine.test("shadow::recorded", Which::Own, recorded));
    tests
}

/// Arguments of mkfs.ext4 for disks of which logs are recorded: small ones.
const SMALL: [&str; 6] = ["-b", "1024", "-N", "32", "-J", "size=1"];
/// Name, features, and mount options of the disks of which logs are recorded.
const RECORDED: &[(&str, &str, &str)] = &[
    ("guest-plain", "^metadata_csum,^64bit", "noatime"),
    ("guest-checksums", "metadata_csum,64bit", "noatime"),
    ("guest-journaled", "^metadata_csum,^64bit", "noatime,data=journal"),
];

/// What the environment asks for.
struct Asked {
    /// How many requests the guest shall make; `None`: what a test at every push can afford.
    requests: Option<u64>,
    /// Names of configurations; `None`: all.
    configurations: Option<Vec<String>>,
    seed: u64,
}

impl Asked {
    fn read() -> Result<Asked> {
        let number = |name: &str| match std::env::var(name) {
            Ok(count) => count.parse().map(Some).with_context(|| name.to_owned()),
            Err(_) => Ok(None),
        };
        let names = std::env::var("RACEGATE_SHADOW_CONFIGURATIONS").ok();
        let configurations: Option<Vec<String>> =
            names.map(|names| names.split(',').map(str::to_owned).collect());
        for name in configurations.iter().flatten() {
            ensure!(
                CONFIGURATIONS.iter().any(|(known, ..)| known == name),
                "RACEGATE_SHADOW_CONFIGURATIONS: there is no configuration {name}"
            );
        }
        Ok(Asked {
            requests: number("RACEGATE_SHADOW_REQUESTS")?,
            configurations,
            seed: number("RACEGATE_SHADOW_SEED")?.unwrap_or(1),
        })
    }

    /// A quick run takes every fourth configuration from `from` on.
    fn has(&self, place: usize, name: &str, from: usize) -> bool {
        match &self.configurations {
            Some(names) => names.iter().any(|of| of == name),
            None => self.requests.is_some() || place % 4 == from,
        }
    }
}

fn silent(machine: &Machine, kernel: &str, delayed: bool, from: usize) -> Result<()> {
    let asked = Asked::read()?;
    let image = machine.image(256)?;
    let mut config = machine.guest(Which::Own, kernel, &image)?;
    config.backend.extra = vec!["--shadow".into()];
    config.backend.seed = asked.seed;
    for (program, package) in [("stress-ng", "stress-ng"), ("fio", "fio")] {
        config.programs.push((program.to_owned(), package.to_owned()));
    }
    config.programs.push(("mount".to_owned(), "mount".to_owned()));
    config.programs.push(("umount".to_owned(), "mount".to_owned()));
    if let Some(kept) = std::env::var_os("RACEGATE_SHADOW_RECORD") {
        let log = std::path::Path::new(&kept).join(format!("{kernel}.jsonl"));
        config.backend.event_log = Some(log);
    }
    let mut guest = boot(&config)?;
    let seconds = if asked.requests.is_some_and(|wanted| wanted >= LONG) { "30" } else { "2" };
    let mut trial = asked.seed * 1000;
    let mut delayed = delayed;
    let begun = Instant::now();
    let (made, seen) = loop {
        for (place, (name, mkfs, options)) in CONFIGURATIONS.iter().enumerate() {
            if !asked.has(place, name, from) {
                continue;
            }
            guest.load(&RuleSet::parse("", "none")?)?;
            let args: Vec<&str> =
                ["-q", "-F"].iter().chain(*mkfs).copied().chain(["/dev/{disk}"]).collect();
            must(&mut guest, "/bin/mkfs.ext4", &args).with_context(|| (*name).to_owned())?;
            if delayed {
                guest.load(&RuleSet::parse(DELAYS, "shadow")?)?;
            }
            trial += 1;
            work(&mut guest, trial, options, seconds).with_context(|| (*name).to_owned())?;
            let stats = shadow(&mut guest)?;
            eprintln!(
                "shadow: {kernel} {name}, seed {trial}, {}: {} requests by the guest, {} looked at, \
                 {} commits, {} checked, {} unknown, {} KiB, {} findings",
                if delayed { "delayed" } else { "not delayed" },
                made(&mut guest)?,
                stats.requests,
                stats.commits,
                stats.checked,
                stats.unknown,
                stats.heap_bytes / 1024,
                stats.findings
            );
            ensure!(
                stats.findings == 0,
                "{kernel} {name}: {:?}\n{}",
                stats.rules,
                guest.backend_stderr()
            );
        }
        let (made, seen) = (made(&mut guest)?, shadow(&mut guest)?);
        if asked.requests.is_none_or(|wanted| made >= wanted) {
            break (made, seen);
        }
        delayed = !delayed;
    };
    ensure!(seen.requests > 500 && seen.commits > 20, "the shadow saw nothing: {seen:?}");
    guest.shutdown()?;
    eprintln!("shadow: {kernel}: {made} requests in {:.0?}, 0 findings", begun.elapsed());
    Ok(())
}

/// Requests that the guest's disk has completed (`Documentation/block/stat.rst`: reads, writes,
/// discards, flushes).
fn made(guest: &mut Guest) -> Result<u64> {
    let stat = must(guest, "/bin/cat", &["/sys/block/{disk}/stat"])?.stdout;
    let fields: Vec<u64> = stat.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    [0, 4, 11, 15]
        .map(|place| fields.get(place).copied())
        .into_iter()
        .sum::<Option<u64>>()
        .context(stat)
}

fn shadow(guest: &mut Guest) -> Result<ShadowStats> {
    let Response::Stats(stats) = guest.control().call(&Request::Stats)? else {
        bail!("stats were asked for");
    };
    stats.shadow.context("the disk has no shadow")
}

fn work(guest: &mut Guest, trial: u64, options: &str, seconds: &str) -> Result<()> {
    run(guest, trial, workload(options), LIMIT)?;
    let mounted = format!("rw,{}", options.split_once('+').map_or(options, |(_, rest)| rest));
    let mounted = mounted.trim_end_matches(',');
    must(guest, "/bin/mount", &["-t", "ext4", "-o", mounted, "/dev/{disk}", "/mnt"])?;
    let seed = trial.to_string();
    let stress: Vec<&str> = [
        "--temp-path",
        "/mnt",
        "--timeout",
        seconds,
        "--seed",
        &seed,
        "--quiet",
        "--oom-avoid",
        "--dentry",
        "1",
        "--dentries",
        "64",
        "--fallocate",
        "1",
        "--fallocate-bytes",
        "4m",
        "--hdd",
        "1",
        "--hdd-bytes",
        "4m",
        "--hdd-opts",
        "fsync,wr-rnd",
        "--rename",
        "1",
        "--xattr",
        "1",
        "--fpunch",
        "1",
    ]
    .to_vec();
    must(guest, "/bin/stress-ng", &stress)?;
    let runtime = format!("--runtime={seconds}");
    let seed = format!("--randseed={seed}");
    let fio = [
        "--name=mixed",
        "--directory=/mnt",
        "--size=4m",
        "--bs=4k",
        "--rw=randrw",
        "--ioengine=sync",
        "--direct=1",
        "--fsync=16",
        "--numjobs=2",
        "--thread",
        "--time_based",
        &runtime,
        &seed,
        "--output-format=terse",
        "--fallocate=none",
        "--file_append=1",
    ];
    must(guest, "/bin/fio", &fio)?;
    must(guest, "/bin/umount", &["/mnt"])?;
    must(guest, "/bin/e2fsck", &["-f", "-n", "/dev/{disk}"])?;
    Ok(())
}

/// Three threads that write, sync, truncate, punch, allocate and unlink.
fn workload(options: &str) -> Workload {
    let thread = |number: u64| {
        let mut ops = Vec::new();
        for round in 0..6_u64 {
            let file = format!("t{number}r{round}");
            ops.push(Op::Open {
                file: file.clone(),
                path: file.clone(),
                create: true,
                direct: false,
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

/// Fails the first write of data to blocks that are free.
const FAIL_DATA: &str = r#"
[[rule]]
name = "fail-data"
match = { op = "write", class = "free", times = 1 }
action = { fail = "EIO" }
"#;

/// Bugs of real kernels. "do not convert the unwritten extents if data writeback fails" (2025) is in
/// 6.12.107 and not in 6.1.192, where a block whose data could not be written becomes written.
/// "prevent delalloc to nodelalloc on remount" is in neither: data that was delayed is mapped, and
/// `i_blocks` does not count it.
fn catches(machine: &Machine, kernel: &str, stale: bool) -> Result<()> {
    let image = machine.made(128 * MIB, &["-b".to_owned(), "4096".to_owned()])?;
    let mut config = machine.guest(Which::Own, kernel, &image)?;
    config.backend.extra = vec!["--shadow".into()];
    for (program, package) in
        [("mount", "mount"), ("umount", "mount"), ("dd", "coreutils"), ("sync", "coreutils")]
    {
        config.programs.push((program.to_owned(), package.to_owned()));
    }
    let mut guest = boot(&config)?;
    must(&mut guest, "/bin/mount", &["-t", "ext4", "/dev/{disk}", "/mnt"])?;
    let dd = ["if=/dev/zero", "bs=4096", "count=16", "status=none"];
    let dd = |of: &'static str| [&dd[..], &[of]].concat();

    must(&mut guest, "/bin/dd", &dd("of=/mnt/sound"))?;
    must(&mut guest, "/bin/sync", &[])?;
    ensure!(shadow(&mut guest)?.findings == 0, "{:?}", shadow(&mut guest)?.rules);

    guest.load(&RuleSet::parse(FAIL_DATA, "fail")?)?;
    must(&mut guest, "/bin/dd", &dd("of=/mnt/failed"))?;
    // The failure is this call's, or that of one before it: either is right.
    guest.exec("/bin/sync", &["/mnt/failed"], LIMIT)?;
    must(&mut guest, "/bin/sync", &[])?;
    let seen = shadow(&mut guest)?.rules;
    ensure!(seen.contains_key(Rule::StaleData.id()) == stale, "after a failed write: {seen:?}");
    ensure!(seen.len() == usize::from(stale), "after a failed write: {seen:?}");

    must(&mut guest, "/bin/dd", &dd("of=/mnt/delayed"))?;
    must(&mut guest, "/bin/mount", &["-o", "remount,nodelalloc", "/mnt"])?;
    must(&mut guest, "/bin/sync", &[])?;
    let seen = shadow(&mut guest)?.rules;
    ensure!(seen.contains_key(Rule::BlockCount.id()), "after the remount: {seen:?}");
    Ok(())
}

/// A log recorded by a disk with a shadow gives the same findings offline: none. With
/// `RACEGATE_SHADOW_RECORD=FOLDER` the logs are kept there: those of the canaries are made so.
fn recorded(machine: &Machine) -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (name, features, options) in RECORDED {
        let mkfs =
            SMALL.iter().chain(&["-O", features]).map(ToString::to_string).collect::<Vec<_>>();
        let image = machine.made(8 * MIB, &mkfs)?;
        let mut config = machine.guest(Which::Own, "debian-6.12.107", &image)?;
        let log = folder.path().join(format!("{name}.jsonl"));
        config.backend.extra = vec!["--shadow".into()];
        config.backend.event_log = Some(log.clone());
        let mut guest = boot(&config)?;
        run(&mut guest, 1, short(options), LIMIT)?;
        let live = shadow(&mut guest)?;
        guest.shutdown()?;

        let mut checker = Checker::new(Options::default());
        let text = std::fs::read_to_string(&log)?;
        text.lines().try_for_each(|line| checker.line(line))?;
        let offline = checker.finish()?;
        ensure!(offline.findings.is_empty(), "{name}: {:?}", offline.findings);
        ensure!(
            offline.stats.commits == live.commits && offline.stats.checked == live.checked,
            "{name}: live {live:?}, offline {:?}",
            offline.stats
        );
        if let Some(kept) = std::env::var_os("RACEGATE_SHADOW_RECORD") {
            std::fs::copy(&log, std::path::Path::new(&kept).join(format!("{name}.jsonl")))?;
        }
    }
    Ok(())
}

/// A little of everything that the rules are about, over two mounts.
fn short(options: &str) -> Workload {
    let open = |file: &str, create| Op::Open {
        file: file.into(),
        path: file.into(),
        create,
        direct: false,
    };
    let write = |file: &str, offset, bytes| Op::Write { file: file.into(), offset, bytes, fill: 7 };
    let fsync = |file: &str| Op::Fsync { file: file.into() };
    let close = |file: &str| Op::Close { file: file.into() };
    let mount = || Op::Mount { options: options.into() };
    let mut ops = vec![mount()];
    for file in ["a", "b", "d"] {
        ops.extend([open(file, true), write(file, 0, 5000), fsync(file)]);
    }
    // Extents that need a block of their own, and are freed with a revoke.
    for file in ["a", "d"] {
        ops.extend((0..7).flat_map(|part| [write(file, part * 8192, 1024), fsync(file)]));
    }
    let allocate = FallocateMode::Allocate;
    ops.push(Op::Fallocate { file: "b".into(), mode: allocate, offset: 16_384, bytes: 65_536 });
    ops.extend([
        write("b", 20_480, 3000),
        fsync("b"),
        Op::Fill { prefix: "n".repeat(180), count: 14 },
    ]);
    ops.extend([Op::Syncfs {}, Op::Truncate { file: "a".into(), bytes: 0 }, fsync("a")]);
    ops.extend([close("a"), close("b"), close("d"), Op::Umount {}, mount(), open("c", true)]);
    ops.extend([write("c", 0, 30_000), fsync("c"), Op::Unlink { path: "b".into() }]);
    ops.extend([
        Op::Unlink { path: "d".into() },
        Op::Syncfs {},
        write("c", 40_000, 9000),
        fsync("c"),
    ]);
    ops.extend([close("c"), Op::Umount {}]);
    Workload { setup: ops, ..Workload::default() }
}
