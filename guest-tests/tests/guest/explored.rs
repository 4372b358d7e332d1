//! Goal: a counterexample of the model is one of the real kernel: compiled to a plan, it hits the
//! kernel that the model says is affected, and not the one that it says is not.
//! Method: `racegate explore SCENARIO --variant KERNEL --plan FILE`, then a few trials of that plan
//! on the first affected and the first fixed kernel that it names.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use campaign::plan::Plan;
use campaign::runner;
use campaign::verdict::Verdict;
use libtest_mimic::Trial;

use crate::machine::{Machine, Which};

const SEED: u64 = 1;
const TRIALS: u32 = 5;
/// Scenario, model, and how many requests must be held for it.
const COMPILED: [(&str, &str, usize); 5] = [
    ("mkwrite-fallocate", "linux-5.10.223", 1),
    ("mkwrite-fallocate-shadow", "linux-5.10.223", 1),
    ("truncate-inline", "linux-5.10.262", 0),
    ("remount-nodelalloc", "linux-6.1.192", 0),
    ("indirect-seek-data", "linux-6.12.107", 0),
];

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    let test = |(scenario, model, held)| {
        let name = format!("explored::{scenario}");
        machine.test(&name, Which::Own, move |machine| hits(machine, scenario, model, held))
    };
    COMPILED.into_iter().map(test).collect()
}

fn hits(machine: &Machine, scenario: &str, model: &str, held: usize) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("compiled.toml");
    let mut explore = Command::new(std::env::current_exe()?);
    explore.args(["explore", scenario, "--variant", model, "--plan"]).arg(&path);
    let status = explore.stdout(Stdio::null()).status()?;
    // A violation is exit status 1.
    ensure!(status.code() == Some(1), "explore {scenario} --variant {model}: {status}");
    let plan = Plan::find(&path.display().to_string())?;
    let rules: usize = plan.arms.iter().map(|arm| arm.rules.len()).sum();
    ensure!(rules == held, "{rules} rules, not {held}:\n{}", plan.source);
    let known = plan.kernels.clone();
    let affected = known.affected.iter().find(|name| name.ends_with(&model["linux-".len()..]));
    let names: Vec<_> = affected.into_iter().chain(known.fixed.first()).collect();
    ensure!(names.len() == 2, "no prediction: {known:?}");
    let mut order = machine.campaign(plan, names.iter().map(|name| name.as_str()), TRIALS)?;
    order.seed = SEED;
    order.shadow = true;
    let campaign = runner::run(&order, &|_| ())?;
    let replay = format!(
        "repeat with: cargo racegate explore {scenario} --variant {model} --plan p.toml; cargo \
         racegate campaign run p.toml --trials {TRIALS} --seed {SEED}"
    );
    for (kernel, verdict, _) in &campaign.verdicts {
        let known =
            if known.affected.contains(kernel) { Verdict::Affected } else { Verdict::NotAffected };
        let reasons = &campaign.reasons;
        ensure!(*verdict == known, "{kernel}: {verdict}, predicted {known}: {reasons:?}; {replay}");
    }
    ensure!(campaign.verdicts.len() == 2, "a kernel has no verdict; {replay}");
    Ok(())
}
