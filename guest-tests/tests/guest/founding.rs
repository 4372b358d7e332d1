//! Goal: the founding bug is hit on the kernel that has it because a request is held, and never
//! on the fixed one.
//! Method: the built-in plans, a few trials of each arm, on both kernels. The same plan without
//! its rules is the control where it runs: at most 2 of 6 trials may hit.

use anyhow::{Result, ensure};
use campaign::device::Device;
use campaign::plan::Plan;
use campaign::runner;
use campaign::verdict::Verdict;
use libtest_mimic::Trial;

use crate::machine::{Machine, Which};

const SEED: u64 = 1;

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    let mut tests = Vec::new();
    let run = |plan, device, trials, vcpus, arms| Run { plan, device, trials, vcpus, arms };
    let runs = [
        run("mkwrite-fallocate", Device::Blk, 6, 2, &["rules", "none"] as &[_]),
        run("mkwrite-fallocate", Device::Blk, 6, 1, &["rules", "none", "uniform"]),
        run("mkwrite-fallocate-journal", Device::Blk, 8, 2, &["rules"]),
        run("mkwrite-fallocate-gated", Device::Blk, 10, 2, &["rules"]),
        run("mkwrite-fallocate", Device::Nvdimm, 6, 2, &["rules", "none"]),
        run("mkwrite-fallocate", Device::VirtioPmem, 6, 2, &["rules"]),
        run("mkwrite-fallocate", Device::VhostUserPmem, 6, 2, &["rules"]),
        run("mkwrite-fallocate-journal", Device::Nvdimm, 6, 2, &["rules"]),
    ];
    for run in runs {
        let Run { plan, device, vcpus, .. } = run;
        let name = format!("founding::{plan}::{device}_vcpus_{vcpus}");
        let which = Which::for_device(device);
        tests.push(machine.test(&name, which, move |machine| hits_what_it_should(machine, &run)));
    }
    tests
}

/// One run of a plan on both of its kernels.
struct Run {
    plan: &'static str,
    device: Device,
    trials: u32,
    vcpus: u32,
    arms: &'static [&'static str],
}

fn hits_what_it_should(machine: &Machine, run: &Run) -> Result<()> {
    let &Run { plan, device, trials, vcpus, arms } = run;
    let plan = Plan::find(plan)?;
    let affected = plan.kernels.affected.clone();
    let fixed = plan.kernels.fixed.clone();
    let names = affected.iter().chain(&fixed).map(String::as_str);
    let mut order = machine.campaign(plan, names, trials)?;
    order.device = device;
    order.qemu = machine.qemu_for(device);
    order.vcpus = vcpus;
    order.only_arms = arms.iter().map(ToString::to_string).collect();
    order.seed = SEED;
    let campaign = runner::run(&order, &|_| ())?;
    let replay = format!(
        "repeat with: cargo racegate campaign run {} --device {device} --trials {trials} \
         --vcpus {vcpus} --seed {SEED}",
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
