//! The smallest plan that still hits: rules, threads and operations are left out, delays are made
//! shorter, as long as the sequential test says that the hit stays.
//!
//! In: an [`Order`] with one kernel that is hit. Out: a [`Minimised`]: the smaller plan, and what
//! became of each attempt.
//! Must not know: how a trial runs, files.
//!
//! Greedy: what can go is left out for good, and every other piece is tried again until nothing
//! more can go. The result needs each of its pieces, as far as the test tells; it need not be the
//! smallest of all. An attempt is kept only if its hits are certain, so that a piece is kept in
//! doubt, and the plan that comes out is tested once more with a seed that nothing was chosen by.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::plan::edit::{Piece, PlanText};
use crate::plan::{Plan, PlanError, RULES_ARM};
use crate::runner::{self, Order, RunError, TrialRecord, UntilSure};
use crate::sequential::Sequential;
use crate::stats::Tally;
use crate::verdict::Verdict;

/// Trials of an attempt that tell nothing: it is given up then.
const MOST_INVALID: u32 = 2;
/// Shorter delays are not tried: a request takes about as long by itself.
const SHORTEST: Duration = Duration::from_millis(1);

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The largest probability that an attempt is taken for a hit and is none.
    pub error: f64,
    /// The most trials of one attempt.
    pub most_trials: u32,
    /// Trials of the plan that comes out.
    pub confirm: u32,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Attempt {
    /// What was changed.
    pub change: String,
    /// Whether the hit stayed, and with it the change.
    pub stays: bool,
    /// Trials that hit.
    pub hits: u64,
    /// Trials that tell something.
    pub trials: u64,
    /// Why the hit is not certain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Minimised {
    /// The smaller plan.
    pub text: PlanText,
    /// Every attempt, in order.
    pub attempts: Vec<Attempt>,
    /// Hits of the smaller plan, with a seed of its own.
    pub confirmed: Tally,
    /// Whether the time was up, or the operator asked for the end, before everything was tried.
    pub stopped: bool,
}

/// A plan cannot be made smaller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MinimiseError {
    /// Trials cannot be run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The plan does not hit as it is.
    #[error(
        "{kernel} is hit by {hits} of {trials} trials of the whole plan, which is too few to tell whether a smaller one hits{reason}"
    )]
    NoHit {
        /// The kernel.
        kernel: String,
        /// Trials that hit.
        hits: u64,
        /// Trials that tell something.
        trials: u64,
        /// Why, if it is known.
        reason: String,
    },
    /// The text of the plan cannot be changed.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Makes the plan of `order` smaller on its one kernel.
///
/// # Errors
/// The whole plan does not hit, or trials cannot be run. What stops it later ends the search with
/// what is known.
pub fn run(
    order: &Order,
    settings: &Settings,
    tell: &(dyn Fn(&Attempt) + Sync),
    progress: &(dyn Fn(&TrialRecord) + Sync),
) -> Result<Minimised, MinimiseError> {
    let mut text = PlanText::of(&order.plan)?;
    text.only_rules();
    let mut search = Search { order, settings, progress, tell, attempts: Vec::new(), text };
    let whole = search.attempt("the plan as it is", &search.text.clone())?;
    if !whole.stays {
        let Attempt { hits, trials, reason, .. } = whole;
        let kernel = order.kernels.first().map_or_else(String::new, |kernel| kernel.name.clone());
        let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        return Err(MinimiseError::NoHit { kernel, hits, trials, reason });
    }
    let stopped = match search.shrink() {
        Ok(()) => search.is_late(),
        Err(MinimiseError::Run(RunError::Interrupted)) => true,
        Err(error) => return Err(error),
    };
    let confirmed =
        if crate::interrupt::requested() { Tally::default() } else { search.confirm()? };
    Ok(Minimised { text: search.text, attempts: search.attempts, confirmed, stopped })
}

struct Search<'a> {
    order: &'a Order,
    settings: &'a Settings,
    progress: &'a (dyn Fn(&TrialRecord) + Sync),
    tell: &'a (dyn Fn(&Attempt) + Sync),
    attempts: Vec<Attempt>,
    /// The smallest so far.
    text: PlanText,
}

impl Search<'_> {
    fn is_late(&self) -> bool {
        self.order.limits.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn shrink(&mut self) -> Result<(), MinimiseError> {
        loop {
            let smaller = self.leave_out()?;
            if !smaller || self.is_late() {
                break;
            }
        }
        self.shorten()
    }

    /// Tries to leave out every piece once; whether one went.
    fn leave_out(&mut self) -> Result<bool, MinimiseError> {
        let mut any = false;
        // A piece that goes moves only those behind it, which were tried before it.
        for piece in self.text.pieces() {
            if self.is_late() {
                break;
            }
            let Some(smaller) = self.text.without(&piece) else {
                continue;
            };
            // What must be there for the plan to be one is not worth a guest.
            let (Ok(plan), Ok(_)) = (self.text.plan(), smaller.plan()) else {
                continue;
            };
            let change = format!("without {}", self.text.name_of(&piece, &plan));
            // With no rule the plan would be about the kernel alone.
            let lonely = matches!(piece, Piece::Rule(_)) && self.text.delays().len() == 1;
            if !lonely && self.attempt(&change, &smaller)?.stays {
                self.text = smaller;
                any = true;
            }
        }
        Ok(any)
    }

    /// Halves each delay as long as the hit stays, and then tries the middle.
    fn shorten(&mut self) -> Result<(), MinimiseError> {
        for (rule, mut good) in self.text.delays() {
            let mut bad = None;
            while good > SHORTEST && !self.is_late() {
                let next = bad.map_or(good / 2, |bad: Duration| (good + bad) / 2).max(SHORTEST);
                let next = Duration::from_micros(u64::try_from(next.as_micros()).unwrap_or(0));
                let Some(shorter) = self.text.with_delay(Some(rule), next) else {
                    break;
                };
                let change = format!("rule {} waits {next:?}", rule + 1);
                if self.attempt(&change, &shorter)?.stays {
                    (self.text, good) = (shorter, next);
                } else if bad.replace(next).is_some() {
                    break;
                }
                if bad.is_some_and(|bad| good < bad + bad / 4) {
                    break;
                }
            }
        }
        Ok(())
    }

    fn attempt(&mut self, change: &str, candidate: &PlanText) -> Result<Attempt, MinimiseError> {
        let plan = candidate.plan()?;
        // Not against noise: half of the plan's hits would not be its hit.
        let rate_if_affected = plan.rate_if_affected;
        let (rate_if_not, error) = (rate_if_affected / 2.0, self.settings.error);
        let test = Sequential { rate_if_affected, rate_if_not, error };
        let mut order = self.trials_of(plan, self.settings.most_trials);
        let until = UntilSure { arm: RULES_ARM.to_owned(), test, at_least: 0 };
        order.limits.until_sure = Some(until);
        order.limits.most_invalid = Some(MOST_INVALID);
        let campaign = runner::run(&order, self.progress)?;
        let verdict = campaign.verdicts.first().map(|(_, verdict, _)| *verdict);
        let tally = campaign.arms.first().map(runner::ArmOutcome::tally).unwrap_or_default();
        let stays = verdict == Some(Verdict::Affected);
        let reason = campaign.reasons.into_iter().next().map(|(_, reason)| reason);
        let Tally { hits, trials } = tally;
        let attempt = Attempt { change: change.to_owned(), stays, hits, trials, reason };
        (self.tell)(&attempt);
        self.attempts.push(attempt.clone());
        Ok(attempt)
    }

    /// Trials of the plan that came out, with another seed and no test to stop at.
    fn confirm(&self) -> Result<Tally, MinimiseError> {
        let mut order = self.trials_of(self.text.plan()?, self.settings.confirm);
        order.seed = runner::trial_seed(order.seed, u32::MAX);
        order.limits.deadline = None;
        let campaign = runner::run(&order, self.progress)?;
        Ok(campaign.arms.first().map(runner::ArmOutcome::tally).unwrap_or_default())
    }

    fn trials_of(&self, plan: Plan, trials: u32) -> Order {
        let mut order = Order { plan, trials, ..self.order.clone() };
        order.only_arms = vec![RULES_ARM.to_owned()];
        order.only_trial = None;
        order.limits.keep_going = true;
        order.limits.results = None;
        order
    }
}
