//! Goal: both shadows are silent on real kernels, whatever the timing.
//! Method: stress-ng, fio and the agent at work in the guest over mkfs and mount options, on two
//! kernels, with and without half of all requests delayed; the disk has a shadow, and the kernel is
//! watched. 0 findings, and they must have looked at requests, commits and events. The kernel says
//! more than a busy guest can pass on: what is lost is counted, and makes the shadow forget.
//!
//! A long run is made of pieces: with `RACEGATE_SHADOW_REQUESTS=N` the configurations are gone
//! through, with delays and without in turn, until the guest has made N requests;
//! `RACEGATE_SHADOW_CONFIGURATIONS=default,bigalloc` takes those only, and
//! `RACEGATE_SHADOW_SEED=N` seeds delays and work (an even one begins with what an odd one has
//! second). `RACEGATE_SHADOW_RECORD=FOLDER` keeps the event log of each kernel there, to be looked
//! into with `racegate check`; with `RACEGATE_SHADOW_PROBES=0` the kernel is not watched, and the
//! guest makes more requests a second.

use std::path::Path;
use std::time::{Duration, Instant};

use agent::wire::TraceOrder;
use anyhow::{Context, Result, ensure};
use campaign::guest::Guest;
use campaign::unpacked::Unpacked;
use libtest_mimic::Trial;
use pipeline::RuleSet;
use pipeline::delalloc_shadow::{self, PROBES};

use super::work::{Length, Work};
use crate::machine::{Machine, Which, boot, must};

/// Room for events of a kernel at work, per processor.
const BUFFER_KIB: u32 = 16 * 1024;
/// Requests from which on each piece runs for a minute at a time; fewer: seconds.
const LONG: u64 = 100_000;

const DELAYS: &str = r#"
[[rule]]
name = "delay-half"
match = { op = ["write", "flush", "discard", "write_zeroes"], probability = 0.5 }
action = { delay = { uniform = ["100us", "8ms"] } }
"#;

/// How a file system is made and mounted.
pub(super) struct Configuration {
    pub(super) name: &'static str,
    /// Arguments of mkfs.ext4.
    pub(super) mkfs: &'static [&'static str],
    /// Its size; the disk's, if there is none.
    pub(super) mib: Option<u32>,
    /// Mount options.
    pub(super) options: &'static str,
}

const fn of(
    name: &'static str,
    mkfs: &'static [&'static str],
    mib: Option<u32>,
    options: &'static str,
) -> Configuration {
    Configuration { name, mkfs, mib, options }
}

/// `data=journal` has blocks of the size of a page: with smaller ones 6.1.192 can change a page whose
/// blocks are on their way to the log, and the copy's checksum then does not fit (C-checksum, seen
/// once in 20,000 requests with holes punched).
const CONFIGURATIONS: &[Configuration] = &[
    of("default", &[], None, ""),
    of("blocks_1k", &["-b", "1024"], None, ""),
    of("full", &["-b", "4096", "-m", "0"], Some(40), "discard"),
    of("dioread_lock", &["-b", "4096", "-O", "^metadata_csum,^64bit"], None, "dioread_lock"),
    of("data_journal", &["-b", "4096", "-J", "size=8"], None, "data=journal"),
    of("small_journal", &["-J", "size=4"], None, "commit=1,discard"),
    of("bigalloc", &["-O", "bigalloc", "-C", "16384"], None, ""),
    of("orphan_file", &["-O", "orphan_file,inline_data,ea_inode"], None, "5.15+noatime"),
    of("full_1k", &["-b", "1024", "-m", "0", "-J", "size=1"], Some(16), "nodelalloc"),
    of("nobarrier", &["-O", "^flex_bg"], None, "nobarrier,lazytime"),
    of("fast_commit", &["-O", "fast_commit"], None, "commit=2"),
    of("indirect", &["-O", "^extents,^64bit,^metadata_csum", "-b", "2048"], None, ""),
];

/// Every so many configurations, a run at every push takes one.
const SAMPLE: usize = 6;

pub(super) fn tests(machine: &Machine) -> Vec<Trial> {
    let kernels = [("debian-6.1.192", true, 4), ("debian-6.12.107", false, 2)];
    let tests = kernels.map(|(kernel, delayed, from)| {
        let name = format!("shadow::silent::{kernel}");
        machine.test(&name, Which::Own, move |machine| silent(machine, kernel, delayed, from))
    });
    tests.into()
}

/// Stressors that meet a bug of the kernel, which is not what this test is for. fpunch collapses and
/// writes one file from several processes: with `data=journal`, 6.1.192 loses such writes, and the
/// shadow tells (D7-tail-too-far; the plan `journaled-collapse`).
fn left_out(kernel: &str, configuration: &Configuration) -> &'static [&'static str] {
    let loses = kernel == "debian-6.1.192" && configuration.options.contains("data=journal");
    if loses { &["--fpunch"] } else { &[] }
}

/// What the environment asks for.
struct Asked {
    /// How many requests the guest shall make; `None`: what a test at every push can afford.
    requests: Option<u64>,
    /// Names of configurations; `None`: all.
    configurations: Option<Vec<String>>,
    seed: u64,
    /// Whether the kernel is watched.
    probes: bool,
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
                CONFIGURATIONS.iter().any(|known| known.name == name),
                "RACEGATE_SHADOW_CONFIGURATIONS: there is no configuration {name}"
            );
        }
        Ok(Asked {
            requests: number("RACEGATE_SHADOW_REQUESTS")?,
            configurations,
            seed: number("RACEGATE_SHADOW_SEED")?.unwrap_or(1),
            probes: number("RACEGATE_SHADOW_PROBES")? != Some(0),
        })
    }

    /// A quick run takes a few configurations from `from` on.
    fn has(&self, place: usize, name: &str, from: usize) -> bool {
        match &self.configurations {
            Some(names) => names.iter().any(|of| of == name),
            None => self.requests.is_some() || place % SAMPLE == from,
        }
    }

    fn length(&self) -> Length {
        let long = self.requests.is_some_and(|wanted| wanted >= LONG);
        if long { Length::Long } else { Length::Short }
    }
}

fn silent(machine: &Machine, kernel: &str, delayed: bool, from: usize) -> Result<()> {
    let asked = Asked::read()?;
    let image = machine.image(256)?;
    let mut config = machine.guest(Which::Own, kernel, &image)?;
    config.backend.extra = vec!["--shadow".into()];
    config.backend.seed = asked.seed;
    // A guest that goes on after an oops only waits.
    config.cmdline.push("oops=panic".into());
    let packages = Unpacked::of_own_release(machine.cache(), &["fio", "stress-ng"])?;
    for program in ["fio", "stress-ng"] {
        config.unpacked.push((program.to_owned(), packages.clone()));
    }
    let own = [("mount", "mount"), ("umount", "mount"), ("fallocate", "util-linux")];
    for (program, package) in own.into_iter().chain([("fstrim", "util-linux")]) {
        config.programs.push((program.to_owned(), package.to_owned()));
    }
    if let Some(kept) = std::env::var_os("RACEGATE_SHADOW_RECORD") {
        config.backend.event_log = Some(Path::new(&kept).join(format!("{kernel}.jsonl")));
    }
    let mut guest = boot(&config)?;
    if asked.probes {
        watch(&mut guest)?;
    }
    let mut trial = asked.seed * 1000;
    let mut delayed = delayed ^ asked.seed.is_multiple_of(2);
    let begun = Instant::now();
    let (made, seen) = 'rounds: loop {
        for (place, configuration) in CONFIGURATIONS.iter().enumerate() {
            let name = configuration.name;
            if !asked.has(place, name, from) {
                continue;
            }
            trial += 1;
            let work = Work {
                configuration,
                left_out: left_out(kernel, configuration),
                trial,
                length: asked.length(),
            };
            let done = piece(&mut guest, &work, delayed);
            let stats = super::shadow(&mut guest)?;
            let inside = super::kernel(&mut guest)?;
            let found = guest.take_findings();
            eprintln!(
                "shadow: {kernel} {name}, seed {trial}, {}: {} requests by the guest, {} looked \
                 at, {} commits, {} checked, {} unknown, {} + {} KiB, {} events of the kernel, {} \
                 lost, {} times forgotten, {} findings, {:.0?}",
                if delayed { "delayed" } else { "not delayed" },
                requests(&mut guest)?,
                stats.requests,
                stats.commits,
                stats.checked,
                stats.unknown,
                stats.heap_bytes / 1024,
                stats.layout_bytes / 1024,
                inside.events,
                inside.lost,
                inside.forgotten,
                found.len(),
                begun.elapsed()
            );
            ensure!(
                stats.findings == 0 && found.is_empty(),
                "{kernel} {name}: {:?} {found:?}\n{}",
                stats.rules,
                guest.backend_stderr()
            );
            done.with_context(|| format!("{kernel} {name}"))?;
            let made = requests(&mut guest)?;
            if asked.requests.is_some_and(|wanted| made >= wanted) {
                break 'rounds (made, stats);
            }
        }
        if asked.requests.is_none() {
            break (requests(&mut guest)?, super::shadow(&mut guest)?);
        }
        delayed = !delayed;
    };
    ensure!(seen.requests > 500 && seen.commits > 20, "the shadow saw nothing: {seen:?}");
    let inside = super::kernel(&mut guest)?;
    ensure!(!asked.probes || inside.events > 10_000, "the shadow saw nothing: {inside:?}");
    guest.shutdown()?;
    eprintln!("shadow: {kernel}: {made} requests in {:.0?}, 0 findings", begun.elapsed());
    Ok(())
}

/// Has the delalloc shadow follow the kernel.
fn watch(guest: &mut Guest) -> Result<()> {
    let missing = guest.watch_kernel(TraceOrder {
        id: 0,
        probes: PROBES.iter().map(ToString::to_string).collect(),
        events: Vec::new(),
        buffer_kib: BUFFER_KIB,
    })?;
    let missing: Vec<_> = missing.iter().filter(|probe| delalloc_shadow::needed(probe)).collect();
    ensure!(missing.is_empty(), "{missing:?}");
    Ok(())
}

/// One file system from mkfs to e2fsck.
fn piece(guest: &mut Guest, work: &Work<'_>, delayed: bool) -> Result<()> {
    guest.load(&RuleSet::parse("", "none")?)?;
    let size = work.configuration.mib.map(|mib| format!("{mib}M"));
    let mut args = vec!["-q", "-F"];
    args.extend(work.configuration.mkfs);
    args.push("/dev/{disk}");
    args.extend(size.as_deref());
    must(guest, "/bin/mkfs.ext4", &args)?;
    if delayed {
        guest.load(&RuleSet::parse(DELAYS, "shadow")?)?;
    }
    work.all(guest)
}

/// Requests that the guest's disk has completed (`Documentation/block/stat.rst`: reads, writes,
/// discards, flushes).
fn requests(guest: &mut Guest) -> Result<u64> {
    let stat = must(guest, "/bin/cat", &["/sys/block/{disk}/stat"])?.stdout;
    let fields: Vec<u64> = stat.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    [0, 4, 11, 15]
        .map(|place| fields.get(place).copied())
        .into_iter()
        .sum::<Option<u64>>()
        .context(stat)
}

/// Longest that a program of a piece may take.
pub(super) const LIMIT: Duration = Duration::from_secs(300);
