//! A verdict that may be asked for after every trial, and ends the trials as soon as it is certain.
//!
//! In: hits and valid trials so far, the rate on affected kernels. Out: a [`Verdict`] and a bound
//! on the probability that it is wrong, however often it was asked for.
//! Must not know: plans, kernels, what a hit is.
//!
//! Wald's sequential probability ratio test (1945) of the two hypotheses of [`crate::verdict`]: a
//! trial hits with probability at most [`NOISE`], or with at least the rate on affected kernels.
//! If a kernel is not affected, the likelihood ratio (affected : not affected) is a non-negative
//! supermartingale that starts at 1, so it ever reaches `1 / error` with probability at most
//! `error` (Ville's inequality); the same holds the other way round. Both bounds hold for every
//! rate within a hypothesis, because each trial's ratio moves in one direction with the rate.

use crate::stats::Tally;
use crate::verdict::{NOISE, Verdict};

/// The lowest rate on affected kernels that can be told from noise in a sensible time.
pub const MIN_RATE: f64 = 0.05;

/// A rate of 1 would make one miss an absolute proof.
const MAX_RATE: f64 = 0.999;

/// The test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sequential {
    /// The share of trials that hit on an affected kernel, at least.
    pub rate_if_affected: f64,
    /// The share that hit on one that is not, at most: [`NOISE`], unless less than the whole rate is
    /// to count as none.
    pub rate_if_not: f64,
    /// The largest probability of a wrong verdict, in (0, 1).
    pub error: f64,
}

impl Sequential {
    /// The test of a rate against noise.
    pub const fn new(rate_if_affected: f64, error: f64) -> Sequential {
        Sequential { rate_if_affected, rate_if_not: NOISE, error }
    }

    /// The natural logarithm of the likelihood ratio, affected : not affected.
    pub fn evidence(&self, tally: Tally) -> f64 {
        let affected = self.rate_if_affected.clamp(MIN_RATE, MAX_RATE);
        let (hits, misses) = (tally.hits as f64, tally.trials.saturating_sub(tally.hits) as f64);
        let not = self.rate_if_not;
        hits * (affected / not).ln() + misses * ((1.0 - affected) / (1.0 - not)).ln()
    }

    /// The verdict after these trials, and a bound on the probability that such evidence ever
    /// comes up if the opposite holds; 1 at most.
    ///
    /// `inconclusive` means: go on. So does a kernel of which more than half of the trials are
    /// invalid.
    pub fn judge(&self, tally: Tally, invalid: u64) -> (Verdict, f64) {
        let evidence = self.evidence(tally);
        let error = (-evidence.abs()).exp();
        if invalid > tally.trials {
            (Verdict::Inconclusive, 1.0)
        } else if error > self.error {
            (Verdict::Inconclusive, error)
        } else if evidence > 0.0 {
            (Verdict::Affected, error)
        } else {
            (Verdict::NotAffected, error)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEST: Sequential = Sequential::new(0.8, 0.01);

    fn verdict(hits: u64, trials: u64) -> Verdict {
        TEST.judge(Tally { hits, trials }, 0).0
    }

    #[test]
    fn a_high_rate_needs_few_trials() {
        assert_eq!(verdict(0, 0), Verdict::Inconclusive);
        assert_eq!(verdict(1, 1), Verdict::Inconclusive);
        assert_eq!(verdict(2, 2), Verdict::Affected);
        assert_eq!(verdict(0, 2), Verdict::Inconclusive);
        assert_eq!(verdict(0, 3), Verdict::NotAffected);
        let strict = Sequential { error: 1e-6, ..TEST };
        assert_eq!(strict.judge(Tally { hits: 3, trials: 3 }, 0).0, Verdict::Inconclusive);
        assert_eq!(strict.judge(Tally { hits: 4, trials: 4 }, 0).0, Verdict::Affected);
    }

    #[test]
    fn half_a_rate_is_not_the_rate() {
        let whole = Sequential { rate_if_not: 0.4, ..TEST };
        assert_eq!(whole.judge(Tally { hits: 2, trials: 2 }, 0).0, Verdict::Inconclusive);
        assert_eq!(whole.judge(Tally { hits: 7, trials: 7 }, 0).0, Verdict::Affected);
        assert_eq!(whole.judge(Tally { hits: 8, trials: 20 }, 0).0, Verdict::NotAffected);
    }

    #[test]
    fn invalid_trials_are_not_passed_over() {
        assert_eq!(TEST.judge(Tally { hits: 0, trials: 5 }, 6).0, Verdict::Inconclusive);
        assert_eq!(TEST.judge(Tally { hits: 0, trials: 5 }, 5).0, Verdict::NotAffected);
    }

    /// Probability that the test ever gives `wrong` within `most` trials, by the law of total
    /// probability over the counts that are still undecided.
    fn ever(test: Sequential, rate: f64, most: usize, wrong: Verdict) -> f64 {
        let mut undecided = vec![1.0];
        let mut ended = 0.0;
        for trials in 1..=most {
            let mut next = vec![0.0; trials + 1];
            for (hits, probability) in undecided.iter().enumerate() {
                next[hits] += probability * (1.0 - rate);
                next[hits + 1] += probability * rate;
            }
            for (hits, probability) in next.iter_mut().enumerate() {
                let tally = Tally { hits: hits as u64, trials: trials as u64 };
                let (verdict, _) = test.judge(tally, 0);
                if verdict != Verdict::Inconclusive {
                    ended += if verdict == wrong { *probability } else { 0.0 };
                    *probability = 0.0;
                }
            }
            undecided = next;
        }
        ended
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The promise of the module, though the verdict is asked for after each of 200 trials.
        #[test]
        fn a_wrong_verdict_is_as_rare_as_stated(
            promised in MIN_RATE..1.0f64,
            error in 0.0001..0.1f64,
            noise in 0.0..=NOISE,
            above in 0.0..=1.0f64,
        ) {
            let test = Sequential::new(promised, error);
            let rate = promised.clamp(MIN_RATE, MAX_RATE);
            let affected = ever(test, noise, 200, Verdict::Affected);
            prop_assert!(affected <= error + 1e-9, "{affected} > {error}");
            let cleared = ever(test, rate + above * (1.0 - rate), 200, Verdict::NotAffected);
            prop_assert!(cleared <= error + 1e-9, "{cleared} > {error}");
        }
    }
}
