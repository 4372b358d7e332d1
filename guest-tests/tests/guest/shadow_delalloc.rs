//! Goal: the shadows tell of bugs of real kernels when they happen, and of nothing on kernels that
//! do not have them.
//! Method: a few trials of each plan whose hit is a finding, and of the founding plan, with the
//! shadows on. On an affected kernel every trial must be noticed; of the founding bug within a
//! second, with both threads and the held request named. A kernel that says nothing at all would be
//! a shadow that sees nothing, so events are counted, and no probe may be missing.
//!
//! The rates over many trials are measured with `racegate campaign run PLAN`.

use anyhow::{Result, ensure};
use campaign::plan::Plan;
use campaign::runner::{self, Campaign};
use libtest_mimic::Trial;

use crate::machine::{Machine, Which};

const SEED: u64 = 1;
const TRIALS: u32 = 5;
const KERNELS: [(&str, bool); 4] = [
    ("debian-5.10.223", true),
    ("debian-5.10.262", false),
    ("debian-6.1.192", false),
    ("debian-6.12.107", false),
];
/// Plans of other bugs: a kernel that has it and one that does not. The one that has the fix of
/// `remount-nodelalloc` is not among the kernels of these tests.
const CANARIES: [(&str, &str, Option<&str>); 6] = [
    ("short-copy", "debian-5.10.262", Some("debian-6.1.192")),
    ("inline-truncate", "debian-5.10.262", Some("debian-6.1.192")),
    ("indirect-seek", "debian-6.12.107", Some("debian-6.1.192")),
    ("journaled-collapse", "debian-6.1.192", Some("debian-6.12.107")),
    ("failed-write-converts", "debian-6.1.192", Some("debian-6.12.107")),
    ("remount-nodelalloc", "debian-6.12.107", None),
];

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    let founding = KERNELS.into_iter().map(|(kernel, affected)| {
        let name = format!("shadow_delalloc::{kernel}");
        machine.test(&name, Which::Own, move |machine| founding(machine, kernel, affected))
    });
    let canaries = CANARIES.into_iter().flat_map(|(plan, affected, fixed)| {
        [Some((affected, true)), fixed.map(|fixed| (fixed, false))].into_iter().flatten().map(
            move |(kernel, affected)| {
                let name = format!("shadow_delalloc::{plan}::{kernel}");
                machine
                    .test(&name, Which::Own, move |machine| canary(machine, plan, kernel, affected))
            },
        )
    });
    founding.chain(canaries).collect()
}

fn watched(machine: &Machine, plan: &str, kernel: &str) -> Result<(Campaign, String)> {
    let plan = Plan::find(plan)?;
    let replay = format!(
        "repeat with: cargo racegate campaign run {} --kernel {kernel} --arm rules --trials \
         {TRIALS} --seed {SEED} --shadow",
        plan.name
    );
    let mut order = machine.campaign(plan, [kernel], TRIALS)?;
    order.only_arms = vec!["rules".to_owned()];
    order.seed = SEED;
    order.shadow = true;
    let campaign = runner::run(&order, &|_| ())?;
    let seen: u64 = campaign.watched.iter().map(|watched| watched.events).sum();
    let lost: u64 = campaign.watched.iter().map(|watched| watched.lost).sum();
    ensure!(seen > 10 * u64::from(TRIALS), "only {seen} events of the kernel were seen; {replay}");
    ensure!(lost == 0, "{lost} events of the kernel were lost; {replay}");
    let blind = campaign.findings.iter().find(|of| of.text.contains("does not see all"));
    ensure!(blind.is_none(), "{blind:?}; {replay}");
    Ok((campaign, replay))
}

fn founding(machine: &Machine, kernel: &str, affected: bool) -> Result<()> {
    let (campaign, replay) = watched(machine, "mkwrite-fallocate", kernel)?;
    ensure!(campaign.findings.is_empty(), "{:?}; {replay}", campaign.findings);
    if !affected {
        ensure!(campaign.noticed.is_empty(), "{:?}; {replay}", campaign.noticed);
        return Ok(());
    }
    let hits = campaign.arms.iter().map(|arm| arm.tally().hits).sum::<u64>();
    let over: Vec<_> = campaign.noticed.iter().filter(|noticed| noticed.rule == "A4").collect();
    ensure!(over.len() as u64 == hits, "{} of {hits} hits were noticed; {replay}", over.len());
    for noticed in over {
        let says = |part: &str| noticed.text.contains(part);
        let bitmap = noticed.parked.iter().any(|request| request.contains("block_bitmap"));
        ensure!(
            says("storer-") && says("allocator-") && bitmap && noticed.noticed_after_us < 1_000_000,
            "{noticed:?}; {replay}"
        );
    }
    Ok(())
}

fn canary(machine: &Machine, plan: &str, kernel: &str, affected: bool) -> Result<()> {
    let (campaign, replay) = watched(machine, plan, kernel)?;
    let invalid: u64 = campaign.arms.iter().map(runner::ArmOutcome::invalid).sum();
    ensure!(invalid == 0, "{invalid} trials are invalid; {replay}");
    let hits: u64 = campaign.arms.iter().map(|arm| arm.tally().hits).sum();
    if affected {
        ensure!(hits == u64::from(TRIALS), "{hits} of {TRIALS} trials were noticed; {replay}");
    } else {
        ensure!(hits == 0 && campaign.noticed.is_empty(), "{:?}; {replay}", campaign.noticed);
    }
    Ok(())
}
