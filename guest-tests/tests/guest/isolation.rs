//! Goal: with `isolation = "fresh"` each trial has a guest of its own, which nothing that ran before
//! has touched; a campaign that is interrupted leaves nothing behind, and goes on as it began.
//! Method: the founding plan on its affected kernel; a plan that spoils its guest, which hits once in
//! a shared guest and always in fresh ones; the tool as a process of its own, interrupted. Guests
//! that are restored from a snapshot fill and check a file system, on two QEMUs, and are compared with
//! booted ones in turn: `RACEGATE_RESTORES=20` is the long run.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::wire::{Trial as Order, Workload};
use anyhow::{Context as _, Result, ensure};
use campaign::device::Device;
use campaign::guest::{Guest, Snapshot};
use campaign::isolation::Isolation;
use campaign::plan::Plan;
use campaign::runner::{self, Campaign, Outcome};
use campaign::store::Store;
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};

use crate::campaigns::{nothing_is_left, racegate};
use crate::integrity::{reading, writing};
use crate::machine::{Machine, Which, boot, must, run};

const AFFECTED: &str = "debian-5.10.223";
const TRIALS: u32 = 3;
/// Enough for filling and reading a small file system.
const LIMIT: Duration = Duration::from_secs(240);

/// The first trial in a guest finds what the kernel starts with, every later one what the first has
/// left.
const SPOILING: &str = r#"
name = "spoiling"
summary = "a setting of the kernel is raised, and stays so as long as the guest lives"
trials = 3
rate_if_affected = 0.9
[filesystem]
bytes = 67108864
[guest]
isolation = "fresh"
[[arm]]
name = "rules"
[workload]
setup = [
  { read_value = { path = "/proc/sys/vm/swappiness", name = "before" } },
  { write_value = { path = "/proc/sys/vm/swappiness", value = "99" } },
]
finish = [{ read_value = { path = "/proc/sys/vm/swappiness", name = "after" } }]
[hit]
counter_rises = { before = "before", after = "after" }
"#;

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    vec![
        machine.test("isolation::founding", Which::Own, founding),
        machine.test("isolation::spoiled", Which::Own, spoiled),
        machine.test("isolation::interrupted", Which::Own, |_| interrupted()),
        machine.test("isolation::restored::qemu_own", Which::Own, |machine| {
            restored(machine, Which::Own, AFFECTED, 1)
        }),
        machine.test("isolation::restored::qemu_other", Which::Other, |machine| {
            restored(machine, Which::Other, "debian-6.12.107", 4)
        }),
        machine.test("isolation::faster", Which::Own, faster),
        machine.test("isolation::not_restored", Which::Own, not_restored),
    ]
}

/// Guests of one snapshot fill and read a file system; each finds the disk in its first state.
fn restored(machine: &Machine, which: Which, kernel: &str, queues: u16) -> Result<()> {
    let image = machine.image(128)?;
    let mut config = machine.guest(which, kernel, &image)?;
    config.backend.queues = queues;
    let mut guest = Snapshot::boot(&config)?;
    ensure!(!is_ahead(&mut guest)?, "a booted guest is not older than its backend");
    let (hello, first) = (guest.hello().clone(), guest.machine_pid());
    let mut snapshot = Snapshot::take(guest, &config)?;
    let mut states = Vec::new();
    for number in 0..2 {
        let mut guest = snapshot.restore(None)?;
        ensure!(*guest.hello() == hello && guest.machine_pid() != first);
        states.push(files(&mut guest)?);
        ensure!(is_ahead(&mut guest)?, "the clock is that of another guest");
        run(&mut guest, 1, writing(), LIMIT)?;
        run(&mut guest, 2, reading(), LIMIT)?;
        let filled = files(&mut guest)?;
        ensure!(filled != states[0], "guest {number} has written nothing: {filled}");
        guest.shutdown()?;
    }
    ensure!(states[0] == states[1], "the second disk is not as the first was: {states:?}");
    Ok(())
}

/// What e2fsck, which must be content, says of the number of files.
fn files(guest: &mut Guest) -> Result<String> {
    let checked = must(guest, "/bin/e2fsck", &["-f", "-n", "/dev/{disk}"])?;
    let line = checked.stdout.lines().find(|line| line.contains(" files ("));
    Ok(line.with_context(|| checked.stdout.clone())?.to_owned())
}

/// The clock of a restored guest goes on from the snapshot, that of its backend begins anew: unlike in
/// a booted guest, whose backend is there first, the guest's is ahead. The host has noticed.
fn is_ahead(guest: &mut Guest) -> Result<bool> {
    let order = Order { trial: 9, seed: 1, workload: Workload::default() };
    Ok(guest.run(order, LIMIT)?.clock.offset_ns < 0)
}

/// Boots and restores in turn; a restore must take less time.
fn faster(machine: &Machine) -> Result<()> {
    let turns = std::env::var("RACEGATE_RESTORES").map_or(Ok(2), |text| text.parse::<usize>())?;
    let image = machine.image(64)?;
    let mut config = machine.guest(Which::Own, AFFECTED, &image)?;
    // As campaigns have it.
    config.programs.clear();
    let timed = |work: &mut dyn FnMut() -> Result<Guest>| -> Result<(Duration, Guest)> {
        let started = Instant::now();
        let guest = work()?;
        Ok((started.elapsed(), guest))
    };
    let (first, guest) = timed(&mut || Ok(Snapshot::boot(&config)?))?;
    let started = Instant::now();
    let mut snapshot = Snapshot::take(guest, &config)?;
    eprintln!("isolation: {:.2} s to take a snapshot", started.elapsed().as_secs_f64());
    let (mut boots, mut restores) = (vec![first], Vec::new());
    for turn in 0..turns {
        restores.push(timed(&mut || Ok(snapshot.restore(None)?))?.0);
        if turn > 0 {
            boots.push(timed(&mut || boot(&config))?.0);
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    };
    let (boot, restore) = (median(&mut boots), median(&mut restores));
    eprintln!(
        "isolation: {:.2} boots/s, {:.2} restores/s: {:.1} times as many ({turns} of each, in turn)",
        1.0 / boot,
        1.0 / restore,
        boot / restore
    );
    ensure!(restore < boot, "a restore takes {restore:.2} s, a boot {boot:.2} s");
    Ok(())
}

/// What cannot be restored is booted, and the report says why.
fn not_restored(machine: &Machine) -> Result<()> {
    let mut order = machine.campaign(Plan::parse(SPOILING, "spoiling.toml")?, [AFFECTED], 2)?;
    order.device = Device::Nvdimm;
    let campaign = runner::run(&order, &|_| ())?;
    let guests = campaign.guests.first().context("guests")?;
    let why = guests.not_restored.as_deref().unwrap_or_default();
    ensure!(why == "a guest with nvdimm cannot be restored", "{why:?}");
    ensure!(guests.booted == 2 && guests.restored == 0, "{guests:?}");
    ensure!(campaign.arms[0].tally().hits == 2, "{:?}", campaign.arms);
    let told = campaign::report::text(&campaign);
    ensure!(told.contains(&guests.describe()) && told.contains(why), "{told}");
    Ok(())
}

/// When each trial of one arm began and ended on its guest's clock.
fn times(keep: &Path) -> Result<Vec<(u64, u64)>> {
    let text = fs::read_to_string(keep.join(AFFECTED).join("trials.jsonl"))?;
    let time = |line: &str| -> Result<(u64, u64)> {
        let line: serde_json::Value = serde_json::from_str(line)?;
        let at = |name| line["guest"][name].as_u64().context("a time of the guest");
        Ok((at("began_ns")?, at("ended_ns")?))
    };
    text.lines().map(time).collect()
}

fn founding(machine: &Machine) -> Result<()> {
    let text = campaign::plan::text("mkwrite-fallocate-gated").context("the plan")?;
    let text = text.replacen("[guest]\n", "[guest]\nisolation = \"fresh\"\n", 1);
    let plan = Plan::parse(&text, "fresh.toml")?;
    let keep = tempfile::tempdir()?;
    let mut order = machine.campaign(plan, [AFFECTED], TRIALS)?;
    order.only_arms = vec!["rules".to_owned()];
    order.keep = Some(keep.path().to_owned());
    let campaign = runner::run(&order, &|_| ())?;
    let arm = campaign.arms.first().context("an arm")?;
    ensure!(arm.tally().hits == u64::from(TRIALS), "{:?}", arm.trials);
    one_each(&campaign)?;
    // Each guest is younger than the one before has become.
    let times = times(keep.path())?;
    ensure!(times.len() == TRIALS as usize, "{times:?}");
    ensure!(times.windows(2).all(|pair| pair[1].0 < pair[0].1), "a guest lived on: {times:?}");

    // The canary: in a shared guest the clock goes on.
    let keep = tempfile::tempdir()?;
    order.isolation = Isolation::Shared;
    order.keep = Some(keep.path().to_owned());
    let campaign = runner::run(&order, &|_| ())?;
    let times = self::times(keep.path())?;
    ensure!(times.windows(2).all(|pair| pair[1].0 >= pair[0].1), "{times:?}");
    ensure!(campaign.guests[0].booted == 1, "{:?}", campaign.guests);
    Ok(())
}

/// Whether each trial had a guest, and none more; all but one of the boots was saved.
fn one_each(campaign: &Campaign) -> Result<()> {
    let guests = campaign.guests.first().context("guests")?;
    eprintln!("isolation: {}", guests.describe());
    ensure!(guests.booted == 1 && guests.restored == TRIALS, "{guests:?}");
    ensure!(guests.not_restored.is_none(), "{guests:?}");
    Ok(())
}

fn spoiled(machine: &Machine) -> Result<()> {
    let plan = Plan::parse(SPOILING, "spoiling.toml")?;
    let mut order = machine.campaign(plan, [AFFECTED], TRIALS)?;
    let hits = |campaign: &Campaign| -> Vec<bool> {
        let trials = campaign.arms.iter().flat_map(|arm| &arm.trials);
        trials.map(|trial| matches!(trial.outcome, Outcome::Hit { .. })).collect()
    };
    order.shadow = true;
    let fresh = runner::run(&order, &|_| ())?;
    ensure!(hits(&fresh) == [true, true, true], "{:?}", fresh.arms);
    one_each(&fresh)?;
    order.isolation = Isolation::Shared;
    let shared = runner::run(&order, &|_| ())?;
    ensure!(hits(&shared) == [true, false, false], "{:?}", shared.arms);
    // The backend of a restored guest knows the kernel as that of a booted one does.
    let rules = |campaign: &Campaign| campaign.watched.first().map(|seen| seen.rules.clone());
    ensure!(rules(&fresh) == rules(&shared) && rules(&fresh).is_some(), "{:?}", rules(&fresh));
    Ok(())
}

/// Interrupted after the first trial: no process and no file is left. Then it goes on, and a result
/// is replayed, with a guest for each trial though neither the plan nor the command says so.
fn interrupted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (db, plan, scratch) =
        (folder.path().join("results.db"), folder.path().join("p.toml"), folder.path().join("tmp"));
    fs::create_dir(&scratch)?;
    fs::write(&plan, SPOILING.replacen("isolation = \"fresh\"\n", "", 1))?;
    let plan = plan.display().to_string();
    let run =
        ["campaign", "run", &plan, "--kernel", AFFECTED, "--isolation", "fresh", "--seed", "1"];
    let run = |trials: &str| -> Result<_> {
        let mut command = racegate(&run, &db)?;
        command.args(["--trials", trials]).env("TMPDIR", &scratch);
        Ok(command)
    };
    let mut child = run("50")?.spawn()?;
    let store = Arc::new(Store::open(&db)?);
    let trials = || -> Result<usize> {
        let campaigns = store.campaigns()?;
        Ok(campaigns.first().map_or(0, |campaign| campaign.trials as usize))
    };
    let deadline = Instant::now() + Duration::from_secs(180);
    while trials()? == 0 {
        ensure!(child.try_wait()?.is_none() && Instant::now() < deadline, "no trial is stored");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    kill_process(Pid::from_child(&child), Signal::INT)?;
    let status = child.wait()?;
    ensure!(!status.success() && status.code().is_some(), "interrupted: {status}");
    nothing_is_left(&db)?;
    let left: Vec<_> = fs::read_dir(&scratch)?.collect();
    ensure!(left.is_empty(), "{left:?}");

    let done = trials()?;
    let all = (done + 2).to_string();
    let status = run(&all)?.arg("--resume").status()?;
    ensure!(status.code() == Some(1), "resumed: {status}");
    let campaigns = store.campaigns()?;
    ensure!(campaigns.len() == 1, "{campaigns:?}: it was not gone on with");
    let trials = store.earlier(campaigns[0].id)?.trials;
    ensure!(trials.len() == done + 2, "{trials:?}");
    ensure!(trials.iter().all(|trial| matches!(trial.outcome, Outcome::Hit { .. })), "{trials:?}");

    // In one guest only the first of them would come out as recorded.
    let status =
        racegate(&["replay", "1", "--times", "2"], &db)?.env("TMPDIR", &scratch).status()?;
    ensure!(status.success(), "replayed: {status}");
    let left: Vec<_> = fs::read_dir(&scratch)?.collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
