//! Goal: with `isolation = "fresh"` each trial has a guest of its own, which nothing that ran before
//! has touched; a campaign that is interrupted leaves nothing behind, and goes on as it began.
//! Method: the founding plan on its affected kernel; a plan that spoils its guest, which hits once in
//! a shared guest and always in fresh ones; the tool as a process of its own, interrupted.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use campaign::isolation::Isolation;
use campaign::plan::Plan;
use campaign::runner::{self, Campaign, Outcome};
use campaign::store::Store;
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};

use crate::campaigns::{nothing_is_left, racegate};
use crate::machine::{Machine, Which};

const AFFECTED: &str = "debian-5.10.223";
const TRIALS: u32 = 3;

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
    ]
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

/// Whether each trial had a guest, and none more.
fn one_each(campaign: &Campaign) -> Result<()> {
    let guests = campaign.guests.first().context("guests")?;
    eprintln!("isolation: {}", guests.describe());
    ensure!(guests.booted == TRIALS, "{guests:?}");
    Ok(())
}

fn spoiled(machine: &Machine) -> Result<()> {
    let plan = Plan::parse(SPOILING, "spoiling.toml")?;
    let mut order = machine.campaign(plan, [AFFECTED], TRIALS)?;
    let hits = |campaign: &Campaign| -> Vec<bool> {
        let trials = campaign.arms.iter().flat_map(|arm| &arm.trials);
        trials.map(|trial| matches!(trial.outcome, Outcome::Hit { .. })).collect()
    };
    let campaign = runner::run(&order, &|_| ())?;
    ensure!(hits(&campaign) == [true, true, true], "{:?}", campaign.arms);
    one_each(&campaign)?;
    order.isolation = Isolation::Shared;
    let campaign = runner::run(&order, &|_| ())?;
    ensure!(hits(&campaign) == [true, false, false], "{:?}", campaign.arms);
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
