//! Goal: the delalloc shadow tells of the founding bug when it happens, and of nothing on a kernel
//! that does not have it.
//! Method: a few trials of the plan with the shadow on. On the affected kernel every trial with
//! the held request must be noticed, with both threads and the request named, within a second;
//! a kernel that says nothing at all would be a shadow that sees nothing, so events are counted.

use anyhow::{Result, ensure};
use campaign::device::Device;
use campaign::plan::Plan;
use campaign::runner::{self, Limits, Order};
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

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    KERNELS
        .into_iter()
        .map(|(kernel, affected)| {
            let name = format!("shadow_delalloc::{kernel}");
            machine.test(&name, Which::Own, move |machine| watched(machine, kernel, affected))
        })
        .collect()
}

fn watched(machine: &Machine, kernel: &str, affected: bool) -> Result<()> {
    let plan = Plan::find("mkwrite-fallocate")?;
    let order = Order {
        device: Device::Blk,
        image: machine.image_of(&plan)?,
        kernels: vec![machine.kernel(kernel)?],
        qemu: machine.qemu_for(Device::Blk),
        accel: machine.accel(),
        vcpus: 2,
        queues: 1,
        trials: TRIALS,
        only_trial: None,
        only_arms: vec!["rules".to_owned()],
        seed: SEED,
        keep: None,
        shadow: true,
        jobs: 1,
        limits: Limits::default(),
        plan,
    };
    let campaign = runner::run(&order, &|_| ())?;
    let replay = format!(
        "repeat with: cargo racegate campaign run mkwrite-fallocate --kernel {kernel} --arm rules \
         --trials {TRIALS} --seed {SEED} --shadow"
    );
    let seen: u64 = campaign.watched.iter().map(|watched| watched.events).sum();
    let lost: u64 = campaign.watched.iter().map(|watched| watched.lost).sum();
    ensure!(seen > 10 * u64::from(TRIALS), "only {seen} events of the kernel were seen; {replay}");
    ensure!(lost == 0, "{lost} events of the kernel were lost; {replay}");
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
