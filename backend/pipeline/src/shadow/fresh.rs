//! Blocks that were written since nobody owned their data: what a commit may make written.
//!
//! In: writes that complete, with their stamps; blocks that change owners. Out: whether a block's
//! data was there when the commit record arrived. One bit for each block and generation, in pages
//! of 4096 blocks; [`PAGES_MAX`] pages at most (8 MiB), beyond which all is forgotten and said to
//! be.

use std::collections::{HashMap, VecDeque};

use super::cache::{Cache, Stamp};

const PAGE_BITS: u32 = 12;
const WORDS: usize = 1 << (PAGE_BITS - 6);
/// Pages of 512 bytes kept at most.
pub(super) const PAGES_MAX: usize = 1 << 14;
/// Generations kept apart; a guest that has more flushes in flight loses the difference.
const GENERATIONS_MAX: usize = 64;
/// Commits during which a missing block says nothing after all was forgotten.
const BLIND: u32 = 3;

/// A set of blocks.
#[derive(Clone, Debug, Default)]
struct Blocks(HashMap<u64, Box<[u64; WORDS]>>);

impl Blocks {
    fn insert(&mut self, first: u64, end: u64) {
        each_word(first, end, |page, word, mask| {
            self.0.entry(page).or_insert_with(|| Box::new([0; WORDS]))[word] |= mask;
        });
    }

    fn remove(&mut self, first: u64, end: u64) {
        if self.0.is_empty() {
            return;
        }
        let (from, to) = (first >> PAGE_BITS, end.saturating_sub(1) >> PAGE_BITS);
        let cut = |page: u64, words: &mut [u64; WORDS]| {
            let start = page << PAGE_BITS;
            let stop = start.saturating_add(1 << PAGE_BITS);
            each_word(first.max(start), end.min(stop), |_, word, mask| words[word] &= !mask);
            words.iter().any(|word| *word != 0)
        };
        if to - from >= self.0.len() as u64 {
            // A range of more pages than there are: a discard of a whole disk.
            self.0.retain(|page, words| !(from..=to).contains(page) || cut(*page, words));
            return;
        }
        for page in from..=to {
            if self.0.get_mut(&page).is_some_and(|words| !cut(page, words)) {
                self.0.remove(&page);
            }
        }
    }

    fn word(&self, block: u64) -> u64 {
        let word = (block >> 6) as usize % WORDS;
        self.0.get(&(block >> PAGE_BITS)).map_or(0, |words| words[word])
    }

    fn has(&self, block: u64) -> bool {
        self.word(block) >> (block & 63) & 1 == 1
    }

    fn absorb(&mut self, other: Blocks) {
        for (page, words) in other.0 {
            match self.0.get_mut(&page) {
                Some(own) => own.iter_mut().zip(words.iter()).for_each(|(own, word)| *own |= word),
                None => {
                    self.0.insert(page, words);
                }
            }
        }
    }
}

/// Calls `visit(page, word, mask)` for the words of the range `first..end`.
fn each_word(first: u64, end: u64, mut visit: impl FnMut(u64, usize, u64)) {
    let mut at = first;
    while at < end {
        let stop = end.min((at | 63).saturating_add(1));
        let len = stop - at;
        let mask = if len == 64 { u64::MAX } else { ((1 << len) - 1) << (at & 63) };
        visit(at >> PAGE_BITS, (at >> 6) as usize % WORDS, mask);
        at = stop;
    }
}

#[derive(Clone, Debug)]
struct Generation {
    stamp: Stamp,
    /// Completed after the commit record at hand arrived.
    late: bool,
    blocks: Blocks,
}

/// What is known of a block's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// Stored, and durable where that is asked for.
    There,
    /// Completed, and no flush had covered it.
    NotFlushed,
    /// Completed after the commit record arrived.
    Late,
    /// Never written since the block was last freed, as far as is known.
    Never,
    /// Too much was going on.
    Unknown,
}

/// The sets.
#[derive(Clone, Debug, Default)]
pub(super) struct Fresh {
    durable: Blocks,
    /// Oldest first.
    generations: VecDeque<Generation>,
    /// A commit record is in flight: what was durable when it arrived stays apart.
    frozen: bool,
    /// Commits during which a missing block says nothing.
    blind: u32,
}

impl Fresh {
    /// The blocks were written.
    pub(super) fn written(&mut self, first: u64, end: u64, stamp: Stamp) {
        let pages = (end.saturating_sub(first) >> PAGE_BITS) as usize + 2;
        if self.pages() + pages > PAGES_MAX {
            self.lose();
            if pages > PAGES_MAX {
                return;
            }
        }
        let late = self.frozen;
        let same = self.generations.back().is_some_and(|last| {
            last.late == late && (last.stamp == stamp || self.generations.len() >= GENERATIONS_MAX)
        });
        if !same {
            self.generations.push_back(Generation { stamp, late, blocks: Blocks::default() });
        }
        if let Some(last) = self.generations.back_mut() {
            last.blocks.insert(first, end);
        }
    }

    /// The blocks may have been written.
    pub(super) fn assume(&mut self, first: u64, end: u64) {
        let pages = (end.saturating_sub(first) >> PAGE_BITS) as usize + 2;
        if self.pages() + pages <= PAGES_MAX {
            self.durable.insert(first, end);
        } else {
            self.blind = BLIND;
        }
    }

    /// All is forgotten; a missing block says nothing until as many commits have passed as may
    /// make such blocks written.
    pub(super) fn lose(&mut self) {
        *self = Fresh { frozen: self.frozen, blind: BLIND, ..Fresh::default() };
    }

    /// The blocks belong to somebody else, or to nobody, or are what they should be.
    pub(super) fn forget(&mut self, first: u64, end: u64) {
        self.durable.remove(first, end);
        for generation in &mut self.generations {
            generation.blocks.remove(first, end);
        }
        self.generations.retain(|generation| !generation.blocks.0.is_empty());
    }

    /// More is durable.
    pub(super) fn settle(&mut self, cache: &Cache) {
        if self.frozen {
            return;
        }
        while self.generations.front().is_some_and(|oldest| cache.flushed(oldest.stamp)) {
            if let Some(oldest) = self.generations.pop_front() {
                self.durable.absorb(oldest.blocks);
            }
        }
    }

    /// A commit record arrives.
    pub(super) fn freeze(&mut self, cache: &Cache) {
        self.settle(cache);
        self.frozen = true;
    }

    /// The commit took effect, or will not.
    pub(super) fn thaw(&mut self, cache: &Cache) {
        self.frozen = false;
        self.blind = self.blind.saturating_sub(1);
        for mut generation in std::mem::take(&mut self.generations) {
            generation.late = false;
            match self.generations.back_mut() {
                Some(last) if last.stamp == generation.stamp => {
                    last.blocks.absorb(generation.blocks);
                }
                _ => self.generations.push_back(generation),
            }
        }
        self.settle(cache);
    }

    /// The first block of `first..end` whose data was not there when the commit record arrived.
    pub(super) fn first_missing(&self, first: u64, end: u64, needs_flush: bool) -> Option<u64> {
        let mut at = first;
        while at < end {
            let there = |of: &&Generation| !of.late && !needs_flush;
            let generations = self.generations.iter().filter(there);
            let words = generations.map(|of| of.blocks.word(at));
            let there = words.fold(self.durable.word(at), |all, word| all | word);
            let missing = !there >> (at & 63);
            let block = at + u64::from(missing.trailing_zeros());
            let next = (at | 63).saturating_add(1);
            if missing != 0 && block < next.min(end) {
                return Some(block);
            }
            at = next;
        }
        None
    }

    /// What was known of a block when the commit record arrived.
    pub(super) fn data(&self, block: u64, needs_flush: bool) -> Data {
        if self.durable.has(block) {
            return Data::There;
        }
        let mut found = if self.blind > 0 { Data::Unknown } else { Data::Never };
        for generation in self.generations.iter().filter(|of| of.blocks.has(block)) {
            match (generation.late, needs_flush) {
                (false, false) => return Data::There,
                (false, true) => found = Data::NotFlushed,
                (true, _) if found == Data::Never => found = Data::Late,
                (true, _) => {}
            }
        }
        if self.blind > 0 && found != Data::There { Data::Unknown } else { found }
    }

    fn pages(&self) -> usize {
        self.durable.0.len() + self.generations.iter().map(|of| of.blocks.0.len()).sum::<usize>()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.pages() * (WORDS * 8 + 48)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::shadow::cache::Barriers;

    proptest! {
        #[test]
        fn sets_are_sets(steps in prop::collection::vec(
            (any::<bool>(), 0_u64..20_000, 1_u64..600), 1..40,
        )) {
            let (mut blocks, mut dumb) = (Blocks::default(), BTreeSet::new());
            for (insert, first, len) in steps {
                if insert {
                    blocks.insert(first, first + len);
                    dumb.extend(first..first + len);
                } else {
                    blocks.remove(first, first + len);
                    dumb.retain(|block| !(first..first + len).contains(block));
                }
            }
            for block in 0..21_000 {
                prop_assert_eq!(blocks.has(block), dumb.contains(&block));
            }
            let fresh = Fresh { durable: blocks, ..Fresh::default() };
            for first in (0..21_000).step_by(97) {
                let missing = (first..21_000).find(|block| !dumb.contains(block));
                prop_assert_eq!(fresh.first_missing(first, 21_000, true), missing);
            }
        }
    }

    #[test]
    fn what_counts_is_what_was_there_when_the_commit_record_arrived() {
        let mut cache = Cache::default();
        cache.barriers = Barriers::On;
        let mut fresh = Fresh::default();
        fresh.written(10, 12, cache.stamp());
        let flush = cache.flush_arrived();
        fresh.written(12, 14, cache.stamp());
        cache.flush_done(flush);
        fresh.freeze(&cache);
        fresh.written(14, 16, cache.stamp());
        let all = [10, 12, 14, 16].map(|block| fresh.data(block, true));
        assert_eq!(all, [Data::There, Data::NotFlushed, Data::Late, Data::Never]);
        assert_eq!(fresh.data(12, false), Data::There);
        fresh.forget(10, 11);
        assert_eq!([10, 11].map(|block| fresh.data(block, true)), [Data::Never, Data::There]);
        fresh.thaw(&cache);
        assert_eq!(fresh.data(14, false), Data::There);
    }

    #[test]
    fn beyond_the_bound_it_says_that_it_does_not_know() {
        let (cache, mut fresh) = (Cache::default(), Fresh::default());
        for page in 0..=PAGES_MAX as u64 {
            fresh.written(page << PAGE_BITS, (page << PAGE_BITS) + 1, cache.stamp());
        }
        assert!(fresh.heap_bytes() < 10 << 20);
        assert_eq!(fresh.data(0, false), Data::Unknown);
        (0..3).for_each(|_| fresh.thaw(&cache));
        assert_eq!(fresh.data(0, false), Data::Never);
    }
}
