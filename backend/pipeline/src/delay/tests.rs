//! Goal: draws follow the distributions that rules name. Method: the largest distance between
//! the drawn and the expected distribution function (Kolmogorov-Smirnov), the latter from
//! statrs, which shares nothing with the code under test.

use statrs::distribution::{ContinuousCDF, Exp, Normal, Pareto, Uniform};

use super::Delay;
use crate::draw::{Draw, stream};
use crate::rules::LIMIT_NS;

const DRAWS: usize = 20_000;
const MS: f64 = 1e6;

fn samples(delay: &Delay) -> Vec<f64> {
    let stream = stream(1, "rule");
    let mut samples: Vec<f64> =
        (0..DRAWS as u64).map(|n| delay.sample(&mut Draw::new(stream, n)) as f64).collect();
    samples.sort_by(f64::total_cmp);
    samples
}

/// The largest distance between the drawn distribution and the expected one.
fn distance(delay: &Delay, expected: &impl ContinuousCDF<f64, f64>) -> f64 {
    let samples = samples(delay);
    let apart = |(rank, sample): (usize, &f64)| {
        let expected = expected.cdf(*sample);
        let (below, above) = (rank as f64, rank as f64 + 1.0);
        (expected - below / DRAWS as f64).abs().max((above / DRAWS as f64 - expected).abs())
    };
    samples.iter().enumerate().map(apart).fold(0.0, f64::max)
}

/// 1.95 / sqrt(n): a sound generator is further away once in 1000 seeds; the seed is fixed.
fn limit() -> f64 {
    1.95 / (DRAWS as f64).sqrt()
}

#[test]
fn draws_follow_their_distribution() {
    let uniform = Delay::Uniform { from_ns: 1_000_000, to_ns: 20_000_000 };
    let expected = Uniform::new(MS, 20.0 * MS).expect("bounds");
    assert!(distance(&uniform, &expected) < limit());

    let normal = Delay::Normal { mean_ns: 50.0 * MS, stddev_ns: 5.0 * MS };
    let expected = Normal::new(50.0 * MS, 5.0 * MS).expect("bounds");
    assert!(distance(&normal, &expected) < limit());

    let exponential = Delay::Exponential { mean_ns: 2.0 * MS };
    assert!(distance(&exponential, &Exp::new(1.0 / (2.0 * MS)).expect("bounds")) < limit());

    let pareto = Delay::Pareto { scale_ns: MS, shape: 1.5 };
    // Cut at 60 s, which 1 in 14 million reaches.
    assert!(distance(&pareto, &Pareto::new(MS, 1.5).expect("bounds")) < limit());

    // The test can fail: a mean that is off by 5 %.
    let off = Exp::new(1.0 / (2.1 * MS)).expect("bounds");
    assert!(distance(&exponential, &off) > limit());
}

#[test]
fn histogram_draws_follow_their_weights() {
    let delay = Delay::Histogram { steps: Box::new([(1, 90), (2, 99), (3, 100)]) };
    let samples = samples(&delay);
    for (value, share) in [(1_u64, 0.90), (2, 0.09), (3, 0.01)] {
        let count = samples.iter().filter(|sample| **sample as u64 == value).count() as f64;
        let spread = (DRAWS as f64 * share * (1.0 - share)).sqrt();
        let expected = DRAWS as f64 * share;
        assert!((count - expected).abs() < 4.0 * spread, "{value}: {count} of {expected}");
    }
}

#[test]
fn draws_stay_within_0_and_60_s() {
    for delay in [
        Delay::Normal { mean_ns: 1.0, stddev_ns: 60e9 },
        Delay::Pareto { scale_ns: 60e9, shape: 1e-9 },
        Delay::Exponential { mean_ns: 60e9 },
    ] {
        let largest = samples(&delay).last().map(|ns| *ns as u64);
        assert_eq!(largest, Some(LIMIT_NS), "{delay:?} reaches its limit and stays there");
    }
}
