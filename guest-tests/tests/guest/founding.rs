//! Goal: the founding bug is hit on the kernel that has it because a request is held, and never
//! on the fixed one.
//! Method: the built-in plans, a few trials of each arm, on both kernels. The same plan without
//! its rules is the control where it runs: at most 2 of 6 trials may hit.

use anyhow::{Context, Result, ensure};
use campaign::device::Device;
use campaign::plan::Plan;
use campaign::runner::{self, Order};
use campaign::verdict::Verdict;
use libtest_mimic::Trial;

use crate::machine::{Machine, Which};

const SEED: u64 = 1;

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    let mut tests = Vec::new();
    // Plan, trials, virtual CPUs, arms.
    let runs: [(&'static str, u32, u32, &'static [&'static str]); 4] = [
        ("mkwrite-fallocate", 6, 2, &["rules", "none"]),
        ("mkwrite-fallocate", 6, 1, &["rules", "none", "uniform"]),
        ("mkwrite-fallocate-journal", 8, 2, &["rules"]),
        ("mkwrite-fallocate-gated", 10, 2, &["rules"]),
    ];
    for (plan, trials, vcpus, arms) in runs {
        let name = format!("founding::{plan}::vcpus_{vcpus}");
        tests.push(machine.test(&name, Which::Own, move |machine| {
            hits_what_it_should(machine, plan, trials, vcpus, arms)
        }));
    }
    tests
}

fn hits_what_it_should(
    machine: &Machine,
    plan: &str,
    trials: u32,
    vcpus: u32,
    arms: &[&str],
) -> Result<()> {
    let plan = Plan::find(plan)?;
    let affected = plan.kernels.affected.clone();
    let names = affected.iter().chain(&plan.kernels.fixed);
    let kernels = names.map(|name| machine.kernel(name)).collect::<Result<Vec<_>>>()?;
    let order = Order {
        device: Device::Blk,
        image: machine.image_of(&plan)?,
        kernels,
        qemu: machine.qemu().0.clone(),
        accel: machine.qemu().1,
        vcpus,
        queues: 1,
        trials,
        only_trial: None,
        only_arms: arms.iter().map(ToString::to_string).collect(),
        seed: SEED,
        keep: None,
        shadow: false,
        jobs: 1,
        plan,
    };
    let campaign = runner::run(&order, &|_| ())?;
    let replay = format!(
        "repeat with: cargo racegate campaign run {} --trials {trials} --vcpus {vcpus} --seed {SEED}",
        order.plan.name
    );
    for (kernel, verdict, _) in &campaign.verdicts {
        let known =
            if affected.contains(kernel) { Verdict::Affected } else { Verdict::NotAffected };
        ensure!(*verdict == known, "{kernel}: {verdict}, known to be {known}; {replay}");
    }
    ensure!(campaign.verdicts.len() == order.kernels.len(), "a kernel has no verdict; {replay}");
    for arm in &campaign.arms {
        let tally = arm.tally();
        let place = format!("{}, {}: {} of {}", arm.kernel, arm.arm, tally.hits, tally.trials);
        ensure!(arm.invalid() == 0, "{place}, {} invalid; {replay}", arm.invalid());
        if !affected.contains(&arm.kernel) {
            ensure!(tally.hits == 0, "{place}; {replay}");
        } else if arm.arm == "none" {
            // Without the device's help the race is rare; it is not impossible.
            ensure!(tally.hits <= 2, "{place}; {replay}");
        }
    }
    let hit = campaign.timelines.iter().any(|(kernel, _)| affected.contains(kernel));
    ensure!(hit, "no timeline of a hit; {replay}");
    Ok(())
}

impl Machine {
    fn image_of(&self, plan: &Plan) -> Result<std::path::PathBuf> {
        let filesystem = &plan.filesystem;
        self.made(filesystem.bytes, &filesystem.mkfs).context("making the base image")
    }
}
