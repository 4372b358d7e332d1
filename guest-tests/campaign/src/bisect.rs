//! Which kernel of a series is the first one whose verdict differs, by few trials on few kernels.
//!
//! In: an [`Order`] without kernels, names of kernels from old to new, a way to fetch one.
//! Out: a [`Bisection`]: the answer and its error probability, or why there is none.
//! Must not know: how trials run, what a series is.
//!
//! How many misses clear a kernel depends on how often an affected one is hit, here and now: a
//! busy host hits less often. So the arm is calibrated first, on a kernel that is known to be
//! affected, and only a rate that was measured there, or is worse, is relied on. An arm that does
//! not hit a kernel that is known to be affected can tell nothing of others.

mod search;

use std::time::Instant;

use serde::Serialize;

use crate::kernels::Kernel;
use crate::plan::RULES_ARM;
use crate::runner::{self, Order, RunError, TrialRecord, UntilSure};
use crate::sequential::{MIN_RATE, Sequential};
use crate::stats::Tally;
use crate::verdict::Verdict;
use search::{Known, Next};

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The arm whose hits count.
    pub arm: String,
    /// The largest probability that the answer is wrong.
    pub error: f64,
    /// Trials of the calibration; 0 relies on the plan's word.
    pub calibrate: u32,
    /// The most trials of one kernel.
    pub most_trials: u32,
}

/// A kernel that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Tested {
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
    /// Why the verdict is inconclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How often the arm hits a kernel that is known to be affected.
#[derive(Clone, Debug, Serialize)]
pub struct Calibration {
    /// The kernel.
    pub kernel: String,
    /// Trials that hit.
    pub hits: u64,
    /// Trials that tell something.
    pub trials: u64,
    /// The rate is at least this, with half of the allowed error.
    pub rate_at_least: f64,
}

/// Where the verdict changes.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// The last kernel with the old verdict.
    pub last: String,
    /// The first one with the new verdict.
    pub first: String,
    /// The new verdict: `not-affected` if the series was fixed there.
    pub verdict: Verdict,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Bisection {
    /// Where the verdict changes; none if the answer is `inconclusive`.
    pub change: Option<Change>,
    /// Why there is no answer.
    pub reason: Option<String>,
    /// A bound on the probability that the answer is wrong.
    pub error: f64,
    /// How the arm was calibrated.
    pub calibration: Option<Calibration>,
    /// Every kernel that was looked at, from old to new.
    pub tested: Vec<Tested>,
}

/// What the operator is told while it runs.
pub enum Step<'a> {
    /// A trial is over.
    Trial(&'a TrialRecord),
    /// A kernel is judged.
    Judged(&'a Tested),
    /// The arm is calibrated.
    Calibrated(&'a Calibration),
}

/// Searches `names`, from old to new, for the kernel where the verdict of the arm changes.
/// `fetch` gives a kernel, or says why it cannot be had. The deadline is that of `order.limits`.
///
/// # Errors
/// What ends a campaign: an interrupt, an arm that is not there. A kernel that does not boot is
/// passed over.
pub fn run(
    order: &Order,
    names: &[&str],
    settings: &Settings,
    fetch: &mut dyn FnMut(&str) -> Result<Kernel, String>,
    tell: &(dyn Fn(&Step<'_>) + Sync),
) -> Result<Bisection, RunError> {
    let mut search = Bisect::new(order, names, settings, fetch, tell);
    if let Some(reason) = search.calibrate()? {
        return Ok(search.end(Err(reason)));
    }
    loop {
        match search::next(&search.known, names, order.jobs) {
            Next::Found { last, first } => return Ok(search.end(Ok((last, first)))),
            Next::Nothing(reason) => return Ok(search.end(Err(reason))),
            Next::Test(_) if search.is_late() => {
                return Ok(search.end(Err("the time is up".to_owned())));
            }
            Next::Test(indices) => {
                let wanted: Vec<&str> = indices.iter().map(|&index| names[index]).collect();
                search.test(&wanted, 1)?;
            }
        }
    }
}

struct Bisect<'a> {
    order: &'a Order,
    names: &'a [&'a str],
    settings: &'a Settings,
    fetch: &'a mut dyn FnMut(&str) -> Result<Kernel, String>,
    tell: &'a (dyn Fn(&Step<'_>) + Sync),
    known: Vec<Known>,
    tested: Vec<Tested>,
    calibration: Option<Calibration>,
    test: Sequential,
    records: Vec<TrialRecord>,
}

impl<'a> Bisect<'a> {
    fn new(
        order: &'a Order,
        names: &'a [&'a str],
        settings: &'a Settings,
        fetch: &'a mut dyn FnMut(&str) -> Result<Kernel, String>,
        tell: &'a (dyn Fn(&Step<'_>) + Sync),
    ) -> Bisect<'a> {
        let shares =
            most_tests(names.len(), order.jobs) * if settings.calibrate > 0 { 2 } else { 1 };
        let test = Sequential::new(order.plan.rate_if_affected, settings.error / shares as f64);
        let known = vec![Known::Untested; names.len()];
        Bisect {
            order,
            names,
            settings,
            fetch,
            tell,
            known,
            tested: Vec::new(),
            calibration: None,
            test,
            records: Vec::new(),
        }
    }

    fn is_late(&self) -> bool {
        self.order.limits.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Measures the arm's rate on a kernel that is known to be affected, and looks at the ends of
    /// the series meanwhile. Gives the reason if nothing can come of it.
    fn calibrate(&mut self) -> Result<Option<String>, RunError> {
        let Settings { arm, calibrate, error, .. } = self.settings;
        if *calibrate == 0 {
            let promised = arm == RULES_ARM;
            return Ok((!promised).then(|| {
                format!("the plan promises nothing of arm {arm}; it must be calibrated")
            }));
        }
        let affected = &self.order.plan.kernels.affected;
        let of_series = affected.iter().find(|name| self.names.contains(&name.as_str()));
        let Some(name) = of_series.or(affected.first()).cloned() else {
            return Ok(Some(format!(
                "plan {} names no affected kernel ([kernels], affected) to calibrate arm {arm} \
                 with; --calibrate 0 relies on its rate_if_affected",
                self.order.plan.name
            )));
        };
        let mut batch = vec![name.as_str()];
        batch.extend([self.names.first(), self.names.last()].into_iter().flatten());
        batch.dedup();
        self.test(&batch, *calibrate)?;
        let Some(tested) = self.tested.iter().find(|tested| tested.kernel == name) else {
            return Ok(Some(format!("{name} cannot be had, and so arm {arm} not be calibrated")));
        };
        let tally = Tally { hits: tested.hits, trials: tested.trials };
        // One-sided: half of the error is below the interval.
        let (rate_at_least, _) = tally.interval(1.0 - error);
        let Tally { hits, trials } = tally;
        let calibration = Calibration { kernel: name.clone(), hits, trials, rate_at_least };
        (self.tell)(&Step::Calibrated(&calibration));
        self.calibration = Some(calibration);
        if rate_at_least < MIN_RATE {
            for tested in &mut self.tested {
                (tested.verdict, tested.error) = (Verdict::Inconclusive, 1.0);
            }
            return Ok(Some(format!(
                "arm {arm} hit {hits} of {trials} on {name}, which is known to be affected: so it \
                 tells nothing of other kernels"
            )));
        }
        self.test.rate_if_affected = if arm == RULES_ARM {
            rate_at_least.min(self.order.plan.rate_if_affected)
        } else {
            rate_at_least
        };
        self.judge_again();
        self.tested.iter().for_each(|tested| (self.tell)(&Step::Judged(tested)));
        Ok(None)
    }

    /// Runs the trials of `wanted`, at least `at_least` each, and judges.
    fn test(&mut self, wanted: &[&str], at_least: u32) -> Result<(), RunError> {
        let mut order = self.order.clone();
        order.only_arms = vec![self.settings.arm.clone()];
        order.trials = self.settings.most_trials.max(at_least);
        order.limits.keep_going = true;
        let arm = self.settings.arm.clone();
        order.limits.until_sure = Some(UntilSure { arm, test: self.test, at_least });
        order.kernels.clear();
        for &name in wanted {
            match (self.fetch)(name) {
                Ok(kernel) => order.kernels.push(kernel),
                Err(reason) => self.learn(Tested {
                    kernel: name.to_owned(),
                    verdict: Verdict::Inconclusive,
                    error: 1.0,
                    hits: 0,
                    trials: 0,
                    reason: Some(reason),
                }),
            }
        }
        // A kernel that is looked at again goes on where it was.
        order.limits.earlier.trials.extend(self.records.iter().cloned());
        let campaign = runner::run(&order, &|record| (self.tell)(&Step::Trial(record)))?;
        self.records.retain(|record| order.kernels.iter().all(|k| k.name != record.kernel));
        self.records.extend(campaign.arms.iter().flat_map(|arm| arm.trials.iter().cloned()));
        for (kernel, verdict, error) in &campaign.verdicts {
            let arm = campaign.arms.iter().find(|arm| arm.kernel == *kernel);
            let Tally { hits, trials } = arm.map(runner::ArmOutcome::tally).unwrap_or_default();
            let reason = campaign.reasons.iter().find(|(known, _)| known == kernel);
            self.learn(Tested {
                kernel: kernel.clone(),
                verdict: *verdict,
                error: *error,
                hits,
                trials,
                reason: reason.map(|(_, reason)| reason.clone()),
            });
        }
        Ok(())
    }

    fn learn(&mut self, tested: Tested) {
        // Before the calibration a verdict is that of the plan's promise, which may not hold here.
        if self.calibration.is_some() || self.settings.calibrate == 0 {
            (self.tell)(&Step::Judged(&tested));
        }
        if let Some(index) = self.names.iter().position(|name| *name == tested.kernel) {
            self.known[index] = match (&tested.verdict, &tested.reason) {
                (Verdict::Inconclusive, reason) => {
                    Known::Cannot(reason.clone().unwrap_or_default())
                }
                (verdict, _) => Known::Judged(*verdict),
            };
        }
        self.tested.retain(|other| other.kernel != tested.kernel);
        self.tested.push(tested);
    }

    /// Judges what is tested by the rate that was measured; what that leaves open is tested again.
    fn judge_again(&mut self) {
        for tested in &mut self.tested {
            let tally = Tally { hits: tested.hits, trials: tested.trials };
            let Some(index) = self.names.iter().position(|name| *name == tested.kernel) else {
                continue;
            };
            let (verdict, error) = self.test.judge(tally, 0);
            if verdict != Verdict::Inconclusive && tested.verdict != Verdict::Inconclusive {
                (tested.verdict, tested.error) = (verdict, error);
                self.known[index] = Known::Judged(verdict);
            } else if tested.trials > 0 {
                self.known[index] = Known::Untested;
            }
        }
    }

    fn end(mut self, answer: Result<(usize, usize), String>) -> Bisection {
        let place = |tested: &Tested| self.names.iter().position(|name| *name == tested.kernel);
        self.tested.sort_by_key(place);
        let calibration = self.calibration.as_ref().map_or(0.0, |_| self.settings.error / 2.0);
        let judged = self.tested.iter().filter(|tested| tested.verdict != Verdict::Inconclusive);
        let error = judged.map(|tested| tested.error).sum::<f64>() + calibration;
        let change = answer.as_ref().ok().map(|&(last, first)| Change {
            last: self.names[last].to_owned(),
            first: self.names[first].to_owned(),
            verdict: match self.known[first] {
                Known::Judged(verdict) => verdict,
                _ => Verdict::Inconclusive,
            },
        });
        Bisection {
            error: if change.is_some() { error.min(1.0) } else { 1.0 },
            change,
            reason: answer.err(),
            calibration: self.calibration,
            tested: self.tested,
        }
    }
}

/// The most kernels that a search looks at, each of which may be judged wrongly.
fn most_tests(kernels: usize, width: usize) -> usize {
    let parts = width.max(1) + 1;
    let mut rounds = 0;
    let mut left = kernels.saturating_sub(2);
    while left > 0 {
        left = (left - left.min(width.max(1))).div_ceil(parts);
        rounds += 1;
    }
    (3 + rounds * width.max(1)).min(kernels + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tests_are_enough() {
        assert_eq!(most_tests(6, 1), 6);
        assert_eq!(most_tests(2, 1), 3);
        assert!(most_tests(64, 1) <= 10);
    }
}
