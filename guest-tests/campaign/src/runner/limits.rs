//! When to stop, where to go on, and where results go.
//!
//! In: what the operator allows. Out: [`Limits`]; without any, a campaign runs every trial that
//! was ordered, and its results live in memory.
//! Must not know: guests.

use std::time::{Duration, Instant};

use crate::sequential::Sequential;
use crate::store::{Earlier, Running, Shard};

/// What ends a campaign besides its last trial, and what it starts from.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// No trial starts after this. Each kernel gets its share of what is left when it starts.
    pub deadline: Option<Instant>,
    /// A kernel is done as soon as its verdict is certain.
    pub until_sure: Option<UntilSure>,
    /// A kernel that does not boot, or whose guest fails again and again, is inconclusive, and the
    /// others go on; else it ends the campaign.
    pub keep_going: bool,
    /// Only these trials; all if not given.
    pub shard: Option<Shard>,
    /// A kernel is given up, as inconclusive, as soon as this many of its trials told nothing.
    pub most_invalid: Option<u32>,
    /// How often each trial is carried out besides the first time.
    pub again: u32,
    /// Where results are stored as they come.
    pub results: Option<Running>,
    /// What was stored of this campaign before; these trials are not carried out again.
    pub earlier: Earlier,
}

/// The test that ends a kernel's trials.
#[derive(Clone, Debug, PartialEq)]
pub struct UntilSure {
    /// The arm that it looks at.
    pub arm: String,
    /// The test.
    pub test: Sequential,
    /// Trials that are carried out in any case.
    pub at_least: u32,
}

impl Limits {
    /// How many of so many trials are carried out here.
    pub fn of(&self, trials: u32) -> usize {
        let shard = self.shard;
        (0..trials).filter(|trial| shard.is_none_or(|shard| shard.has(*trial))).count()
    }

    /// The deadline of one kernel of `left` that have not been started, this one included, when
    /// `jobs` run side by side.
    pub(crate) fn share(&self, now: Instant, left: usize, jobs: usize) -> Option<Instant> {
        let rounds = u32::try_from(left.div_ceil(jobs.max(1))).unwrap_or(u32::MAX).max(1);
        let remaining = self.deadline?.saturating_duration_since(now);
        Some(now + remaining.checked_div(rounds).unwrap_or(Duration::ZERO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_share_what_time_is_left() {
        let now = Instant::now();
        let minute = Duration::from_secs(60);
        let limits = Limits { deadline: Some(now + 10 * minute), ..Limits::default() };
        assert_eq!(limits.share(now, 5, 1), Some(now + 2 * minute));
        assert_eq!(limits.share(now, 5, 2), Some(now + 10 * minute / 3));
        assert_eq!(limits.share(now, 1, 2), Some(now + 10 * minute));
        // Nothing is left: the kernel is over before it starts.
        assert_eq!(limits.share(now + 11 * minute, 3, 2), Some(now + 11 * minute));
        assert_eq!(Limits::default().share(now, 3, 2), None);
    }
}
