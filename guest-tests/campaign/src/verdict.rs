//! From counts to a verdict, with the probability that it is wrong.
//!
//! In: hits and valid trials of the arm `rules`, and the rate that the plan promises on affected
//! kernels. Out: [`Verdict`] and its error.
//! Must not know: plans, kernels, other arms.
//!
//! Two simple hypotheses are compared with the count of hits:
//!
//! - *not affected*: a trial hits with probability at most [`NOISE`]. (A hit is the kernel's own
//!   complaint, so this allows for a mistake of the harness in one trial of a hundred.)
//! - *affected*: a trial hits with probability at least the plan's `rate_if_affected`.
//!
//! A hypothesis is rejected if a count at least this far from it has a probability of at most
//! [`ALPHA`] under it. `affected` needs the first rejected; the error is the probability of so
//! many hits on a kernel that is not affected. `not-affected` needs the second rejected and the
//! first kept; the error is the probability of so few hits on an affected kernel. Anything else
//! is `inconclusive`, and so is a campaign of which more than half of the trials were invalid.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::stats::Tally;

/// The most that a kernel without the bug may hit, per trial.
pub const NOISE: f64 = 0.01;

/// The largest error probability with which a verdict is given.
pub const ALPHA: f64 = 0.01;

/// What a campaign says about a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The kernel has the bug.
    Affected,
    /// It does not.
    NotAffected,
    /// The trials do not tell.
    Inconclusive,
}

impl Verdict {
    /// The spelling in reports and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Affected => "affected",
            Verdict::NotAffected => "not-affected",
            Verdict::Inconclusive => "inconclusive",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The verdict and the probability of such a count, or one further off, if the opposite holds.
/// For `inconclusive`: the smaller of the two probabilities, which was not small enough.
pub fn judge(tally: Tally, invalid: u64, rate_if_affected: f64) -> (Verdict, f64) {
    let if_clean = tally.at_least(NOISE);
    let if_affected = tally.at_most(rate_if_affected);
    if invalid > tally.trials {
        (Verdict::Inconclusive, 1.0)
    } else if if_clean <= ALPHA {
        (Verdict::Affected, if_clean)
    } else if if_affected <= ALPHA {
        (Verdict::NotAffected, if_affected)
    } else {
        (Verdict::Inconclusive, if_clean.min(if_affected))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn verdict(hits: u64, trials: u64) -> Verdict {
        judge(Tally { hits, trials }, 0, 0.8).0
    }

    #[test]
    fn few_trials_are_enough_at_high_rates_and_too_few_are_not() {
        assert_eq!(verdict(2, 2), Verdict::Affected);
        assert_eq!(verdict(49, 50), Verdict::Affected);
        assert_eq!(verdict(0, 2), Verdict::Inconclusive);
        assert_eq!(verdict(0, 3), Verdict::NotAffected);
        assert_eq!(verdict(1, 50), Verdict::NotAffected);
        assert_eq!(verdict(5, 50), Verdict::Affected);
        assert_eq!(verdict(0, 0), Verdict::Inconclusive);
    }

    #[test]
    fn invalid_trials_are_not_passed_over() {
        assert_eq!(judge(Tally { hits: 0, trials: 20 }, 21, 0.8).0, Verdict::Inconclusive);
        assert_eq!(judge(Tally { hits: 0, trials: 20 }, 20, 0.8).0, Verdict::NotAffected);
    }

    /// Probability of the counts for which `pick` holds, as a plain sum.
    fn probability(trials: u64, rate: f64, pick: impl Fn(u64) -> bool) -> f64 {
        (0..=trials)
            .filter(|&hits| pick(hits))
            .map(|k| {
                let choose = (0..k).fold(1.0, |c, i| c * (trials - i) as f64 / (k - i) as f64);
                choose * rate.powi(k as i32) * (1.0 - rate).powi((trials - k) as i32)
            })
            .sum()
    }

    proptest! {
        /// The promise of the module: a wrong verdict has at most the stated probability.
        #[test]
        fn wrong_verdicts_are_rare(trials in 0u64..80, noise in 0.0..=NOISE, rate in 0.8..=1.0f64) {
            let affected = probability(trials, noise, |k| verdict(k, trials) == Verdict::Affected);
            prop_assert!(affected <= ALPHA + 1e-9, "{affected}");
            let cleared = probability(trials, rate, |k| verdict(k, trials) == Verdict::NotAffected);
            prop_assert!(cleared <= ALPHA + 1e-9, "{cleared}");
        }

        #[test]
        fn more_hits_never_clear_a_kernel(trials in 1u64..80, hits in 0u64..79) {
            prop_assume!(hits < trials);
            let order = |v| match v {
                Verdict::NotAffected => 0,
                Verdict::Inconclusive => 1,
                Verdict::Affected => 2,
            };
            prop_assert!(order(verdict(hits, trials)) <= order(verdict(hits + 1, trials)));
        }
    }
}
