//! The visited set: fingerprints, and what its owner keeps of the state behind each.
//!
//! Open addressing with linear probing, at most 5/8 full. A place is a few words that lie in one
//! cache line, the spread fingerprint first, so a lookup misses the cache once: that is what bounds
//! a search of many states. [`Table::prefetch`] says beforehand which place comes next, so that the
//! search need not even wait for that. The places lie on huge pages where the system has them: on
//! small ones nearly every lookup would miss the TLB, too.
//!
//! Only fingerprints are kept, not states (hash compaction, as TLC does): two states with one
//! fingerprint are taken for one. [`crate::Coverage::omission_probability`] bounds that.

use std::alloc::{Layout, handle_alloc_error};

use memmap2::MmapMut;
use prefetch_index::prefetch_index;
use zerocopy::FromBytes;

use crate::rng::mix;

/// Bytes from which on huge pages are asked for: one of them.
const HUGE_BYTES: usize = 2 << 20;

/// A power of two of places, zero at first. `WORDS` is a power of two, so that none lies across two
/// cache lines.
struct Places<const WORDS: usize>(MmapMut);

impl<const WORDS: usize> Places<WORDS> {
    /// Memory that the system does not have ends the program, as it does for a `Vec`.
    fn new(count: usize) -> Places<WORDS> {
        let bytes = count * size_of::<[u64; WORDS]>();
        let Ok(memory) = MmapMut::map_anon(bytes) else {
            handle_alloc_error(Layout::new::<[u64; WORDS]>());
        };
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_BYTES {
            // A refusal costs time only.
            let _ = memory.advise(memmap2::Advice::HugePage);
        }
        Places(memory)
    }

    /// As many as were asked for: a mapping starts at a page, and its length is a multiple.
    #[inline]
    fn all(&self) -> &[[u64; WORDS]] {
        <[[u64; WORDS]]>::ref_from_bytes(&self.0).unwrap_or_default()
    }

    #[inline]
    fn all_mut(&mut self) -> &mut [[u64; WORDS]] {
        <[[u64; WORDS]]>::mut_from_bytes(&mut self.0).unwrap_or_default()
    }
}

/// A model's own fingerprint may be good only as a whole: spread it before cutting it down. Nobody
/// has the 0 that stands for an empty place.
#[inline]
fn spread(key: u64) -> u64 {
    mix(key).max(1)
}

/// Where a spread key is, or the empty place where it belongs.
#[inline]
fn find<const WORDS: usize>(places: &[[u64; WORDS]], spread: u64) -> usize {
    let mask = places.len() - 1;
    let mut at = spread as usize & mask;
    // Ends: the table is never full.
    while places[at][0] != spread && places[at][0] != 0 {
        at = (at + 1) & mask;
    }
    at
}

/// A set of 64-bit keys, each with `WORDS` words: the first is the table's own, the others are its
/// owner's, and 0 at first.
pub(crate) struct Table<const WORDS: usize> {
    places: Places<WORDS>,
    len: usize,
}

impl<const WORDS: usize> Table<WORDS> {
    pub(crate) fn new() -> Self {
        Table { places: Places::new(1 << 10), len: 0 }
    }

    /// Has the place where the search for `key` begins brought to the cache. Waits for nothing.
    #[inline]
    pub(crate) fn prefetch(&self, key: u64) {
        let places = self.places.all();
        prefetch_index(places, spread(key) as usize & (places.len() - 1));
    }

    /// The words of `key`, if it is in the set.
    #[inline]
    pub(crate) fn get(&self, key: u64) -> Option<&[u64; WORDS]> {
        let places = self.places.all();
        let place = &places[find(places, spread(key))];
        (place[0] != 0).then_some(place)
    }

    /// The words of `key`, to be changed, and whether it is new in the set.
    #[inline]
    pub(crate) fn insert(&mut self, key: u64) -> (&mut [u64; WORDS], bool) {
        if (self.len + 1) * 8 > self.places.all().len() * 5 {
            self.grow();
        }
        let spread = spread(key);
        let places = self.places.all_mut();
        let at = find(places, spread);
        let place = &mut places[at];
        let new = place[0] == 0;
        if new {
            place[0] = spread;
            self.len += 1;
        }
        (place, new)
    }

    #[cold]
    fn grow(&mut self) {
        let mut larger = Places::new(self.places.all().len() * 2);
        let places = larger.all_mut();
        for place in self.places.all().iter().filter(|place| place[0] != 0) {
            places[find(places, place[0])] = *place;
        }
        self.places = larger;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the standard map, with keys that collide often, 0 among them.
        #[test]
        fn agrees_with_a_map(keys in prop::collection::vec(0_u64..2000, 0..4000)) {
            let mut table = Table::<2>::new();
            let mut map = HashMap::new();
            for (number, &key) in (1..).zip(&keys) {
                table.prefetch(key);
                let (words, new) = table.insert(key);
                prop_assert_eq!(new, !map.contains_key(&key));
                if new {
                    prop_assert_eq!(words[1], 0);
                    words[1] = number;
                }
                prop_assert_eq!(words[1], *map.entry(key).or_insert(number));
            }
            for key in 0..2000 {
                prop_assert_eq!(table.get(key).map(|words| words[1]), map.get(&key).copied());
            }
        }
    }
}
