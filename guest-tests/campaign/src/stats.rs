//! Rates and what can be said about them.
//!
//! In: hits and trials. Out: Clopper-Pearson intervals and binomial tails.
//! Must not know: what a hit is, which arm it was.

use statrs::distribution::{Beta, Binomial, ContinuousCDF, DiscreteCDF};

/// Hits among valid trials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Trials that hit.
    pub hits: u64,
    /// Trials that were carried out and tell something: hits and misses.
    pub trials: u64,
}

impl Tally {
    /// Share of the trials that hit; 0 without trials.
    pub fn rate(self) -> f64 {
        if self.trials == 0 { 0.0 } else { self.hits as f64 / self.trials as f64 }
    }

    /// The exact (Clopper and Pearson, 1934) 95 % interval of the rate.
    pub fn interval95(self) -> (f64, f64) {
        self.interval(0.95)
    }

    /// The exact interval that covers the true rate with at least this confidence, in (0, 1).
    ///
    /// `[0, 1]` without trials.
    pub fn interval(self, confidence: f64) -> (f64, f64) {
        let tail = (1.0 - confidence) / 2.0;
        let (hits, misses) = (self.hits as f64, self.trials.saturating_sub(self.hits) as f64);
        let quantile =
            |a: f64, b: f64, at: f64| Beta::new(a, b).ok().map(|beta| beta.inverse_cdf(at));
        let low = if self.hits == 0 { None } else { quantile(hits, misses + 1.0, tail) };
        let high = if misses == 0.0 { None } else { quantile(hits + 1.0, misses, 1.0 - tail) };
        (low.unwrap_or(0.0), high.unwrap_or(1.0))
    }

    /// Probability of at least this many hits if each trial hits with probability `rate`.
    pub fn at_least(self, rate: f64) -> f64 {
        match self.hits.checked_sub(1) {
            None => 1.0,
            Some(below) => self.binomial(rate).map_or(1.0, |b| b.sf(below)),
        }
    }

    /// Probability of at most this many hits if each trial hits with probability `rate`.
    pub fn at_most(self, rate: f64) -> f64 {
        if self.hits >= self.trials {
            return 1.0;
        }
        self.binomial(rate).map_or(1.0, |b| b.cdf(self.hits))
    }

    /// The interval (Wilson, 1927) that covers the true rate with about 95 %: narrower than the
    /// exact one, for plots.
    pub fn wilson95(self) -> (f64, f64) {
        if self.trials == 0 {
            return (0.0, 1.0);
        }
        let (n, rate, z) = (self.trials as f64, self.rate(), Z95);
        let centre = (rate + z * z / (2.0 * n)) / (1.0 + z * z / n);
        let half = z / (1.0 + z * z / n) * (rate * (1.0 - rate) / n + z * z / (4.0 * n * n)).sqrt();
        ((centre - half).max(0.0), (centre + half).min(1.0))
    }

    fn binomial(self, rate: f64) -> Option<Binomial> {
        Binomial::new(rate, self.trials).ok()
    }
}

/// The 97.5 % point of the normal distribution.
const Z95: f64 = 1.959_963_985;

/// How many times as often one workload hits as another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amplification {
    /// The rates' ratio; infinite if the other never hit.
    pub ratio: f64,
    /// Bounds that hold together with at least 95 %; the upper one is infinite if the other rate
    /// may be 0.
    pub ci95: (f64, f64),
}

/// The ratio of two rates. Each gets an exact interval of 97.5 %; both hold together with at least
/// 95 % (Bonferroni), and then so do the ratios of their ends. `None` if one has no trials.
pub fn amplification(with: Tally, without: Tally) -> Option<Amplification> {
    if with.trials == 0 || without.trials == 0 {
        return None;
    }
    let ((low, high), (other_low, other_high)) = (with.interval(0.975), without.interval(0.975));
    let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { f64::INFINITY };
    Some(Amplification {
        ratio: if with.hits == 0 { 0.0 } else { ratio(with.rate(), without.rate()) },
        ci95: (ratio(low, other_high), ratio(high, other_low)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The tail as the sum that defines it.
    fn sum(trials: u64, rate: f64, hits: impl Iterator<Item = u64>) -> f64 {
        hits.map(|k| {
            let choose = (0..k).fold(1.0, |c, i| c * (trials - i) as f64 / (k - i) as f64);
            choose * rate.powi(k as i32) * (1.0 - rate).powi((trials - k) as i32)
        })
        .sum()
    }

    #[test]
    fn figures_of_the_tables() {
        let near = |(low, high): (f64, f64), expect: (f64, f64)| {
            assert!(
                (low - expect.0).abs() < 5e-4 && (high - expect.1).abs() < 5e-4,
                "{low} {high}"
            );
        };
        near(Tally { hits: 30, trials: 30 }.interval95(), (0.8843, 1.0));
        near(Tally { hits: 0, trials: 50 }.interval95(), (0.0, 0.0711));
        near(Tally { hits: 5, trials: 50 }.interval95(), (0.0333, 0.2181));
        near(Tally { hits: 0, trials: 0 }.interval95(), (0.0, 1.0));
    }

    #[test]
    fn wilson_of_the_tables() {
        // Brown, Cai and DasGupta (2001) give the formula; 10 of 100 is the usual example.
        let (low, high) = Tally { hits: 10, trials: 100 }.wilson95();
        assert!((low - 0.0552).abs() < 1e-4 && (high - 0.1744).abs() < 1e-4, "{low} {high}");
        let (low, high) = Tally { hits: 0, trials: 10 }.wilson95();
        assert!(low <= 1e-12 && (high - 0.2775).abs() < 1e-4, "{low} {high}");
    }

    #[test]
    fn how_much_a_rule_amplifies() {
        let tally = |hits, trials| Tally { hits, trials };
        let ratio = amplification(tally(300, 300), tally(3, 3000)).unwrap();
        assert!((ratio.ratio - 1000.0).abs() < 1e-9);
        assert!(ratio.ci95.0 > 300.0 && ratio.ci95.1 < 7000.0, "{ratio:?}");
        let never = amplification(tally(300, 300), tally(0, 3000)).unwrap();
        assert!(never.ratio.is_infinite() && never.ci95.1.is_infinite());
        assert!(never.ci95.0 > 600.0, "{never:?}");
        let neither = amplification(tally(0, 10), tally(0, 10)).unwrap();
        assert!(neither.ratio <= 0.0 && neither.ci95.0 <= 0.0);
        assert_eq!(amplification(tally(0, 0), tally(0, 10)), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Whatever the two true rates, the interval of their ratio misses it in at most 5 %.
        #[test]
        fn the_interval_of_a_ratio_covers(
            trials in 1u64..16, others in 1u64..16, rate in 0.01..0.99f64, other in 0.01..0.99f64,
        ) {
            let missed = |hits, other_hits| {
                let (with, without) =
                    (Tally { hits, trials }, Tally { hits: other_hits, trials: others });
                amplification(with, without).is_some_and(|a| {
                    let ratio = rate / other;
                    ratio < a.ci95.0 - 1e-9 || ratio > a.ci95.1 + 1e-9
                })
            };
            let missed: f64 = (0..=trials)
                .flat_map(|hits| (0..=others).map(move |other_hits| (hits, other_hits)))
                .filter(|&(hits, other_hits)| missed(hits, other_hits))
                .map(|(hits, other_hits)| {
                    sum(trials, rate, hits..=hits) * sum(others, other, other_hits..=other_hits)
                })
                .sum();
            prop_assert!(missed <= 0.05 + 1e-6, "{missed}");
        }

        #[test]
        fn tails_are_binomial_sums(trials in 1u64..60, share in 0.0..=1.0f64, rate in 0.001..0.999f64) {
            let hits = (share * trials as f64) as u64;
            let tally = Tally { hits, trials };
            prop_assert!((tally.at_most(rate) - sum(trials, rate, 0..=hits)).abs() < 1e-9);
            prop_assert!((tally.at_least(rate) - sum(trials, rate, hits..=trials)).abs() < 1e-9);
        }

        /// The ends of the interval are the rates at which the count becomes a 2.5 % surprise.
        #[test]
        fn ends_of_the_interval_are_where_the_tails_are(trials in 1u64..60, share in 0.0..=1.0f64) {
            let hits = (share * trials as f64) as u64;
            let (low, high) = Tally { hits, trials }.interval95();
            prop_assert!(low <= hits as f64 / trials as f64 && hits as f64 / trials as f64 <= high);
            if hits > 0 {
                prop_assert!((sum(trials, low, hits..=trials) - 0.025).abs() < 1e-5);
            } else {
                prop_assert!(low <= 0.0);
            }
            if hits < trials {
                prop_assert!((sum(trials, high, 0..=hits) - 0.025).abs() < 1e-5);
            } else {
                prop_assert!(high >= 1.0);
            }
        }

        /// Whatever the true rate, the interval misses it in at most 5 % of the cases.
        #[test]
        fn the_interval_covers(trials in 1u64..40, rate in 0.001..0.999f64) {
            let missed = (0..=trials).filter(|&hits| {
                let (low, high) = Tally { hits, trials }.interval95();
                rate < low - 1e-9 || rate > high + 1e-9
            });
            prop_assert!(sum(trials, rate, missed) <= 0.05 + 1e-6);
        }
    }
}
