//! Many bugs on many kernels: one verdict for each pair, by a sequential test.
//!
//! In: an [`Order`] for each plan, all with the same kernels. Out: a [`Matrix`] of [`Cell`]s, and the
//! campaign of each plan. Must not know: where kernels come from, how a table looks.
//!
//! The error that is allowed for the whole table is shared by its cells. A cell that cannot be decided
//! is `inconclusive`, with the reason; it does not stop the others.

mod expect;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use serde::Serialize;

pub use expect::{BUILT_IN, Disagreement, ExpectError, Expected};

use crate::plan::RULES_ARM;
use crate::runner::{self, ArmOutcome, Campaign, Order, RunError, TrialRecord, UntilSure};
use crate::sequential::Sequential;
use crate::stats::Tally;
use crate::verdict::Verdict;

/// A pair of a plan and a kernel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// The plan.
    pub plan: String,
    /// The kernel.
    pub kernel: String,
    /// The verdict.
    pub verdict: Verdict,
    /// A bound on the probability that it is wrong.
    pub error: f64,
    /// Trials that hit.
    pub hits: u64,
    /// Trials that tell something.
    pub trials: u64,
    /// Trials that tell nothing.
    pub invalid: u64,
    /// Why the verdict is inconclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Matrix {
    /// The seed.
    pub seed: u64,
    /// The largest probability that any cell is wrong.
    pub error: f64,
    /// Name and summary of each plan, in the order of the columns.
    pub plans: Vec<(String, String)>,
    /// The kernels, in the order of the rows.
    pub kernels: Vec<String>,
    /// Kernels of a series that cannot be had and have no row, and why.
    pub passed_over: Vec<(String, String)>,
    /// Row by row.
    pub cells: Vec<Cell>,
}

impl Matrix {
    /// The cell of a plan and a kernel.
    pub fn cell(&self, plan: &str, kernel: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.plan == plan && cell.kernel == kernel)
    }
}

/// What is to be decided, besides the orders.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The largest probability that any cell is wrong.
    pub error: f64,
    /// The most trials of a cell.
    pub most_trials: u32,
    /// The most trials of a cell that tell nothing.
    pub most_invalid: u32,
    /// Kernels that cannot be had, and why. Those that were asked for by name have a row.
    pub missing: Vec<(String, String)>,
}

/// What the operator is told while it runs.
pub enum Step<'a> {
    /// A trial of a plan is over.
    Trial(&'a str, &'a TrialRecord),
    /// A cell is decided, or given up.
    Cell(&'a Cell),
}

/// Fills the table. `orders` has one plan each and all kernels that can be had; `kernels` is what
/// has a row. The deadline is that of the orders' limits. Gives the table, and the
/// campaign of each plan.
///
/// # Errors
/// An interrupt, or results that cannot be stored. A kernel that does not boot costs its cells alone.
pub fn run(
    orders: &[Order],
    kernels: &[String],
    settings: &Settings,
    tell: &(dyn Fn(&Step<'_>) + Sync),
) -> Result<(Matrix, Vec<Campaign>), RunError> {
    let count = (orders.len() * kernels.len()).max(1);
    let test =
        |order: &Order| Sequential::new(order.plan.rate_if_affected, settings.error / count as f64);
    let jobs = orders.iter().map(|order| order.jobs).max().unwrap_or(1).max(1);
    // Kernel by kernel: what is cut off by the budget is whole rows.
    let rows = orders.first().map_or(0, |order| order.kernels.len());
    let places: Vec<(usize, usize)> =
        (0..rows).flat_map(|row| (0..orders.len()).map(move |plan| (row, plan))).collect();
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let done: Mutex<Vec<(usize, Result<Campaign, RunError>)>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&(row, plan)) = places.get(index) else {
                        return;
                    };
                    let mut order = orders[plan].clone();
                    order.kernels = vec![order.kernels[row].clone()];
                    order.only_arms = vec![RULES_ARM.to_owned()];
                    order.trials = settings.most_trials;
                    order.jobs = 1;
                    order.limits.keep_going = true;
                    order.limits.most_invalid = Some(settings.most_invalid);
                    order.limits.until_sure = Some(UntilSure {
                        arm: RULES_ARM.to_owned(),
                        test: test(&order),
                        at_least: 0,
                    });
                    let left = places.len() - index;
                    order.limits.deadline = order.limits.share(Instant::now(), left, jobs);
                    let name = order.plan.name.clone();
                    let outcome = runner::run(&order, &|record| tell(&Step::Trial(&name, record)));
                    match &outcome {
                        Ok(campaign) => cells(campaign).iter().for_each(|c| tell(&Step::Cell(c))),
                        Err(_) => failed.store(true, Ordering::Relaxed),
                    }
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((plan, outcome));
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut campaigns: Vec<Campaign> = orders.iter().map(Campaign::none_yet).collect();
    for (plan, outcome) in done {
        campaigns[plan].join(outcome?);
    }
    let plans = orders.iter().map(|order| (order.plan.name.clone(), order.plan.summary.clone()));
    let plans: Vec<(String, String)> = plans.collect();
    let seed = orders.first().map_or(0, |order| order.seed);
    Ok((table(&plans, seed, kernels, settings, &campaigns), campaigns))
}

fn table(
    plans: &[(String, String)],
    seed: u64,
    kernels: &[String],
    settings: &Settings,
    campaigns: &[Campaign],
) -> Matrix {
    let known: Vec<Cell> = campaigns.iter().flat_map(cells).collect();
    let cell = |plan: &str, kernel: &String| {
        let is = |cell: &&Cell| cell.plan == plan && cell.kernel == *kernel;
        let missing = settings.missing.iter().find(|(name, _)| name == kernel);
        known.iter().find(is).cloned().unwrap_or_else(|| Cell {
            plan: plan.to_owned(),
            kernel: kernel.clone(),
            verdict: Verdict::Inconclusive,
            error: 1.0,
            hits: 0,
            trials: 0,
            invalid: 0,
            reason: Some(missing.map_or("it was not tried".to_owned(), |(_, why)| why.clone())),
        })
    };
    let of_kernel = |kernel| plans.iter().map(move |(plan, _)| cell(plan, kernel));
    Matrix {
        seed,
        error: settings.error,
        kernels: kernels.to_vec(),
        passed_over: settings
            .missing
            .iter()
            .filter(|(k, _)| !kernels.contains(k))
            .cloned()
            .collect(),
        cells: kernels.iter().flat_map(of_kernel).collect(),
        plans: plans.to_vec(),
    }
}

/// The cells that a plan's campaign decides.
fn cells(campaign: &Campaign) -> Vec<Cell> {
    let cell = |(kernel, verdict, error): &(String, Verdict, f64)| {
        let arm = campaign.arms.iter().find(|arm| arm.kernel == *kernel);
        let Tally { hits, trials } = arm.map(ArmOutcome::tally).unwrap_or_default();
        let reason = campaign.reasons.iter().find(|(known, _)| known == kernel);
        Cell {
            plan: campaign.plan.clone(),
            kernel: kernel.clone(),
            verdict: *verdict,
            error: *error,
            hits,
            trials,
            invalid: arm.map_or(0, ArmOutcome::invalid),
            reason: reason.map(|(_, reason)| reason.clone()),
        }
    };
    campaign.verdicts.iter().map(cell).collect()
}

/// Kernels of a row of names, `each` of every series: the oldest, the newest, and what lies evenly
/// between. Names keep their order.
pub fn spread<'a>(series: &[Vec<&'a str>], each: usize) -> Vec<&'a str> {
    let pick = |names: &Vec<&'a str>| -> Vec<&'a str> {
        let last = names.len().saturating_sub(1);
        let steps = each.saturating_sub(1).max(1);
        // A set: of a short series several steps are the same kernel.
        let places: BTreeSet<usize> =
            if each == 1 { [last].into() } else { (0..=steps).map(|i| i * last / steps).collect() };
        places.into_iter().filter_map(|place| names.get(place).copied()).collect()
    };
    series.iter().flat_map(pick).collect()
}

#[cfg(test)]
mod tests;
