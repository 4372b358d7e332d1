//! Goal: a campaign that was stopped goes on where it was, a campaign stops when its verdict is
//! certain, and a bisection without the plan's rules has no answer.
//! Method: the founding plan on its affected kernel, few trials, a database of its own.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use campaign::bisect::{self, Settings};
use campaign::device::Device;
use campaign::plan::Plan;
use campaign::runner::{self, Limits, Order, UntilSure};
use campaign::sequential::Sequential;
use campaign::store::Store;
use campaign::verdict::Verdict;
use libtest_mimic::Trial;

use crate::machine::{Machine, Which};

const PLAN: &str = "mkwrite-fallocate";

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    vec![
        machine.test("campaigns::resumed_and_sure", Which::Own, resumed_and_sure),
        machine.test("campaigns::no_rules_no_answer", Which::Own, no_rules_no_answer),
    ]
}

fn order(machine: &Machine, trials: u32) -> Result<Order> {
    let plan = Plan::find(PLAN)?;
    let kernels = plan.kernels.affected.iter().map(|name| machine.kernel(name));
    Ok(Order {
        device: Device::Blk,
        image: machine.image_of(&plan)?,
        kernels: kernels.collect::<Result<Vec<_>>>()?,
        qemu: machine.qemu_for(Device::Blk),
        accel: machine.accel(),
        vcpus: 2,
        queues: 1,
        trials,
        only_trial: None,
        only_arms: vec!["rules".to_owned()],
        seed: 1,
        keep: None,
        shadow: false,
        jobs: 1,
        limits: Limits::default(),
        plan,
    })
}

fn resumed_and_sure(machine: &Machine) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = Arc::new(Store::open(&folder.path().join("results.db"))?);
    // Stopped after one trial of six.
    let mut order = order(machine, 1)?;
    let running = store.begin(PLAN, order.seed, "settings", "")?;
    order.limits.results = Some(running.clone());
    runner::run(&order, &|_| ())?;
    let earlier = running.earlier()?;
    ensure!(earlier.trials.len() == 1 && earlier.timelines.len() == 1, "{earlier:?}");

    order.trials = 6;
    order.limits.earlier = earlier.clone();
    order.limits.until_sure = Some(UntilSure {
        arm: "rules".to_owned(),
        test: Sequential { rate_if_affected: order.plan.rate_if_affected, error: 0.001 },
        at_least: 0,
    });
    let campaign = runner::run(&order, &|_| ())?;
    let arm = campaign.arms.first().context("an arm")?;
    // The first trial is that of before, to the microsecond: it was not run again.
    ensure!(arm.trials.first() == earlier.trials.first(), "{:?}", arm.trials);
    ensure!(arm.trials.len() < 6, "{} trials, though fewer are certain", arm.trials.len());
    ensure!(campaign.verdicts.iter().all(|(_, verdict, _)| *verdict == Verdict::Affected));
    ensure!(campaign.timelines.len() == 1, "the first hit's timeline is lost");
    ensure!(running.earlier()?.trials == arm.trials, "not every trial is stored, once");
    Ok(())
}

fn no_rules_no_answer(machine: &Machine) -> Result<()> {
    let order = order(machine, 1)?;
    let kernels = order.plan.kernels.clone();
    let names: Vec<&str> =
        kernels.affected.iter().chain(&kernels.fixed).map(String::as_str).collect();
    let settings =
        |arm: &str| Settings { arm: arm.to_owned(), error: 0.05, calibrate: 8, most_trials: 20 };
    let mut fetch = |name: &str| machine.kernel(name).map_err(|error| format!("{error:#}"));
    let found = bisect::run(&order, &names, &settings("rules"), &mut fetch, &|_| ())?;
    let change = found.change.with_context(|| format!("no answer: {:?}", found.reason))?;
    ensure!(kernels.fixed.contains(&change.first) && kernels.affected.contains(&change.last));
    ensure!(found.error <= 0.05, "{}", found.error);

    let found = bisect::run(&order, &names, &settings("none"), &mut fetch, &|_| ())?;
    ensure!(found.change.is_none(), "{:?}", found.change);
    let reason = found.reason.unwrap_or_default();
    ensure!(reason.contains("arm none hit"), "{reason}");
    Ok(())
}
