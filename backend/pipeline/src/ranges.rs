//! Sets of whole numbers as rules spell them: `7`, `"0..=9"`, `"100.."`, or a list of these.
//!
//! In: ranges. Out: [`Ranges`], sorted and merged, asked by binary search.
//! Must not know: rules, what the numbers count.

use std::fmt;

/// A set of numbers as inclusive ranges: sorted, apart from each other, never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ranges(Box<[(u64, u64)]>);

impl Ranges {
    /// From inclusive ranges in any order; each must have `first <= last`.
    pub(crate) fn new(mut ranges: Vec<(u64, u64)>) -> Ranges {
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(tail) if first <= tail.1.saturating_add(1) => tail.1 = tail.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Ranges(merged.into_boxed_slice())
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        self.overlaps(number, number)
    }

    /// Whether a number of `first..=last` is in the set.
    pub(crate) fn overlaps(&self, first: u64, last: u64) -> bool {
        let next = self.0.partition_point(|range| range.1 < first);
        self.0.get(next).is_some_and(|range| range.0 <= last)
    }

    /// Whether every number of `other` is in the set.
    pub(crate) fn covers(&self, other: &Ranges) -> bool {
        other.0.iter().all(|&(first, last)| {
            let next = self.0.partition_point(|range| range.1 < first);
            self.0.get(next).is_some_and(|range| range.0 <= first && last <= range.1)
        })
    }

    /// The smallest number; 0 for a set that nothing was put into.
    pub(crate) fn min(&self) -> u64 {
        self.0.first().map_or(0, |range| range.0)
    }

    /// The largest number; 0 for a set that nothing was put into.
    pub(crate) fn max(&self) -> u64 {
        self.0.last().map_or(0, |range| range.1)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().copied()
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, &(first, last)) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            match (first, last) {
                (_, u64::MAX) => write!(f, "{first}.."),
                _ if first == last => write!(f, "{first}"),
                _ => write!(f, "{first}..={last}"),
            }?;
        }
        Ok(())
    }
}
