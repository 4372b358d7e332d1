//! Goal: the on-disk shadow is silent on real kernels (`silent`), finds what is wrong with some, and
//! finds the same in a recorded log.
//! Method: bugs of packaged kernels, each beside a kernel that does not have it; a recorded log
//! checked offline against what was found live.

mod silent;
mod work;

use std::path::Path;
use std::time::Duration;

use agent::wire::{FallocateMode, Op, Workload};
use anyhow::{Context, Result, bail, ensure};
use campaign::guest::Guest;
use libtest_mimic::Trial;
use pipeline::RuleSet;
use pipeline::control::{Request, Response};
use pipeline::delalloc_shadow::FollowerStats;
use pipeline::shadow::{Checked, Checker, Finding, Options, Rule, ShadowStats};

use crate::machine::{Machine, Which, boot, must, run};

const LIMIT: Duration = Duration::from_secs(300);
const MIB: u64 = 1 << 20;

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    let mut tests = silent::tests(machine);
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

fn shadow(guest: &mut Guest) -> Result<ShadowStats> {
    let Response::Stats(stats) = guest.control().call(&Request::Stats)? else {
        bail!("stats were asked for");
    };
    stats.shadow.context("the disk has no shadow")
}

/// What the delalloc shadow has seen.
fn kernel(guest: &mut Guest) -> Result<FollowerStats> {
    let Response::Stats(stats) = guest.control().call(&Request::Stats)? else {
        bail!("stats were asked for");
    };
    Ok(stats.kernel.unwrap_or_default())
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
/// `i_blocks` does not count it. The log, checked offline, gives the same findings to the letter.
fn catches(machine: &Machine, kernel: &str, stale: bool) -> Result<()> {
    let image = machine.made(128 * MIB, &["-b".to_owned(), "4096".to_owned()])?;
    let mut config = machine.guest(Which::Own, kernel, &image)?;
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log.jsonl");
    config.backend.extra = vec!["--shadow".into()];
    config.backend.event_log = Some(log.clone());
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
    guest.shutdown()?;
    let offline = offline(&log)?;
    let known = |found: Vec<(usize, Finding)>| -> Vec<Finding> {
        found.into_iter().map(|(_, finding)| finding).collect()
    };
    let (found, live) = (known(offline.findings), known(offline.recorded));
    ensure!(!live.is_empty() && found == live, "offline {found:?}\nlive {live:?}");
    Ok(())
}

/// What a check of a recorded log finds.
fn offline(log: &Path) -> Result<Checked> {
    let mut checker = Checker::new(Options::default());
    let text = std::fs::read_to_string(log)?;
    text.lines().try_for_each(|line| checker.line(line))?;
    Ok(checker.finish()?)
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

        let offline = offline(&log)?;
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
        sync: false,
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
