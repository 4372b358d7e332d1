//! Delays: a fixed time, or a distribution to draw one from.
//!
//! In: a [`Draw`](crate::draw::Draw). Out: nanoseconds, at most [`LIMIT_NS`].
//! Must not know: rules, requests, how a draw is made.

use crate::draw::Draw;
use crate::rules::LIMIT_NS;

/// A delay.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Delay {
    Fixed {
        ns: u64,
    },
    Uniform {
        from_ns: u64,
        to_ns: u64,
    },
    Normal {
        mean_ns: f64,
        stddev_ns: f64,
    },
    Exponential {
        mean_ns: f64,
    },
    Pareto {
        scale_ns: f64,
        shape: f64,
    },
    /// Values with the running sum of their weights; the last sum is the total, above 0.
    Histogram {
        steps: Box<[(u64, u64)]>,
    },
}

impl Delay {
    /// The delay for one draw, by inversion of the distribution function (Box-Muller for the
    /// normal distribution, which has no closed inverse).
    pub(crate) fn sample(&self, draw: &mut Draw) -> u64 {
        let ns = match self {
            Delay::Fixed { ns } => return *ns,
            Delay::Uniform { from_ns, to_ns } => {
                return from_ns + draw.below(to_ns - from_ns + 1);
            }
            Delay::Histogram { steps } => {
                let total = steps.last().map_or(1, |step| step.1);
                let at = draw.below(total);
                let index = steps.partition_point(|step| step.1 <= at);
                return steps.get(index).map_or(0, |step| step.0);
            }
            Delay::Normal { mean_ns, stddev_ns } => {
                // 1 - unit() is in (0, 1], so that the logarithm is finite.
                let radius = (-2.0 * (1.0 - draw.unit()).ln()).sqrt();
                let angle = std::f64::consts::TAU * draw.unit();
                mean_ns + stddev_ns * radius * angle.cos()
            }
            Delay::Exponential { mean_ns } => -mean_ns * (1.0 - draw.unit()).ln(),
            Delay::Pareto { scale_ns, shape } => scale_ns / (1.0 - draw.unit()).powf(1.0 / shape),
        };
        // Rounds down, takes negative times as 0 and infinity as the limit.
        (ns as u64).min(LIMIT_NS)
    }
}

#[cfg(test)]
mod tests;
