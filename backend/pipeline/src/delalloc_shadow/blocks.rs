//! Ranges of logical blocks, each with a note.
//!
//! In: ranges to enter and to take out. Out: what is known of a range.
//! Must not know: what the notes mean.

use std::collections::BTreeMap;

/// Most ranges; beyond that the lowest is forgotten, which makes it unknown.
const MOST_RANGES: usize = 16_384;

/// Ranges that do not overlap: first block to (number of blocks, note).
#[derive(Debug)]
pub(super) struct Blocks<T>(BTreeMap<u32, (u32, T)>);

impl<T> Default for Blocks<T> {
    fn default() -> Blocks<T> {
        Blocks(BTreeMap::new())
    }
}

impl<T: Clone> Blocks<T> {
    /// Enters `first..first + len`; what was known of those blocks is replaced.
    pub(super) fn insert(&mut self, first: u32, len: u32, note: &T) {
        self.remove(first, len);
        if len == 0 {
            return;
        }
        if self.0.len() >= MOST_RANGES {
            self.0.pop_first();
        }
        self.0.insert(first, (len, note.clone()));
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

    /// Makes two of a range that has `point` in its middle.
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

    /// The first blocks of `first..first + len` that are known: where they begin, how many, and
    /// their note.
    pub(super) fn first_of(&self, first: u32, len: u32) -> Option<(u32, u32, T)> {
        let end = end_of(first, len);
        let before = self.0.range(..=first).next_back();
        let reaching = before.filter(|(at, (len, _))| end_of(**at, *len) > u64::from(first));
        let (at, (len, note)) = reaching.or_else(|| self.0.range(first..).next())?;
        let begin = (*at).max(first);
        let upto = end_of(*at, *len).min(end);
        (u64::from(begin) < upto).then(|| (begin, (upto - u64::from(begin)) as u32, note.clone()))
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
        ) {
            let mut blocks = Blocks::default();
            let mut cells = [None; 80];
            for (number, (insert, first, len)) in steps.into_iter().enumerate() {
                let range = first as usize..(first + len) as usize;
                if insert {
                    blocks.insert(first, len, &number);
                    cells[range].fill(Some(number));
                } else {
                    blocks.remove(first, len);
                    cells[range].fill(None);
                }
                for at in 0..80_u32 {
                    let found = blocks.first_of(at, 1).map(|(begin, len, note)| {
                        assert_eq!((begin, len), (at, 1));
                        note
                    });
                    prop_assert_eq!(found, cells[at as usize]);
                }
                let known = (10..50_u32).find(|at| cells[*at as usize].is_some());
                prop_assert_eq!(blocks.first_of(10, 40).map(|(begin, ..)| begin), known);
            }
        }
    }

    #[test]
    fn the_last_block_of_a_file_is_a_block() {
        let mut blocks = Blocks::default();
        blocks.insert(u32::MAX - 1, 1, &());
        blocks.remove(5, u32::MAX - 5);
        assert_eq!(blocks.first_of(0, u32::MAX), None);
    }
}
