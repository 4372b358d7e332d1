//! Ranges of logical blocks, each with a note.
//!
//! In: ranges to enter and to take out. Out: what is known of a range.
//! Must not know: what the notes mean.

use std::collections::BTreeMap;

/// Ranges that do not overlap: first block to (number of blocks, note).
#[derive(Debug)]
pub(super) struct Ranges<T>(BTreeMap<u32, (u32, T)>);

impl<T> Default for Ranges<T> {
    fn default() -> Ranges<T> {
        Ranges(BTreeMap::new())
    }
}

impl<T: Clone> Ranges<T> {
    /// How many ranges.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Enters `first..first + len`; what was known of those blocks is replaced.
    pub(super) fn insert(&mut self, first: u32, len: u32, note: T) {
        self.remove(first, len);
        if len > 0 {
            self.0.insert(first, (len, note));
        }
    }

    /// Takes out `first..first + len`.
    pub(super) fn remove(&mut self, first: u32, len: u32) {
        let end = end_of(first, len);
        self.split_at(u64::from(first));
        self.split_at(end);
        let inside = |(at, _): (&u32, &(u32, T))| (u64::from(*at) < end).then_some(*at);
        while let Some(at) = self.0.range(first..).next().and_then(inside) {
            self.0.remove(&at);
        }
    }

    /// Makes two of a range that has `point` in its middle. Both keep the note as it is.
    fn split_at(&mut self, point: u64) {
        let Ok(block) = u32::try_from(point) else {
            return;
        };
        let Some((&at, &(len, ref note))) = self.0.range(..block).next_back() else {
            return;
        };
        let end = end_of(at, len);
        if end > point {
            let note = note.clone();
            self.0.insert(at, (block - at, note.clone()));
            // A part of a range is no longer than the range.
            self.0.insert(block, ((end - point) as u32, note));
        }
    }

    /// The known parts of `first..first + len`, in order: where each begins, how many blocks, and
    /// its note.
    pub(super) fn within(&self, first: u32, len: u32) -> impl Iterator<Item = (u32, u32, &T)> {
        let end = end_of(first, len);
        let before = self.0.range(..first).next_back();
        let reaching = before.filter(|(at, (len, _))| end_of(**at, *len) > u64::from(first));
        let rest = self.0.range(first..).take_while(move |(at, _)| u64::from(**at) < end);
        reaching.into_iter().chain(rest).filter_map(move |(at, (len, note))| {
            let begin = (*at).max(first);
            let upto = end_of(*at, *len).min(end);
            (u64::from(begin) < upto).then(|| (begin, (upto - u64::from(begin)) as u32, note))
        })
    }

    /// Every range.
    pub(super) fn all(&self) -> impl Iterator<Item = (u32, u32, &T)> {
        self.0.iter().map(|(at, (len, note))| (*at, *len, note))
    }
}

fn end_of(first: u32, len: u32) -> u64 {
    u64::from(first) + u64::from(len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A vector with one cell per block is the oracle.
        #[test]
        fn as_one_cell_per_block(
            steps in prop::collection::vec((any::<bool>(), 0..40_u32, 0..40_u32), 0..60),
            (from, len) in (0..80_u32, 0..80_u32),
        ) {
            let mut ranges = Ranges::default();
            let mut cells = [None; 80];
            for (number, (insert, first, len)) in steps.into_iter().enumerate() {
                let range = first as usize..(first + len) as usize;
                if insert {
                    ranges.insert(first, len, number);
                    cells[range].fill(Some(number));
                } else {
                    ranges.remove(first, len);
                    cells[range].fill(None);
                }
            }
            let mut seen = [None; 80];
            for (begin, len, note) in ranges.within(from, len) {
                prop_assert!(len > 0);
                seen[begin as usize..(begin + len) as usize].fill(Some(*note));
            }
            for at in 0..80_u32 {
                let inside = at >= from && at < from + len;
                prop_assert_eq!(seen[at as usize], cells[at as usize].filter(|_| inside));
            }
            prop_assert_eq!(ranges.all().count(), ranges.len());
        }
    }

    #[test]
    fn the_last_block_of_a_file_is_a_block() {
        let mut ranges = Ranges::default();
        ranges.insert(u32::MAX - 1, 1, ());
        ranges.remove(5, u32::MAX - 5);
        assert!(ranges.within(0, u32::MAX).next().is_none());
        assert_eq!(ranges.len(), 0);
    }
}
