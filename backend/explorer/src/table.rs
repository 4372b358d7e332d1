//! The visited set: fingerprints with the number of the state behind each.
//!
//! Open addressing with linear probing, one 16-byte slot a state, at most 5/8 full. A lookup that
//! misses the cache misses it once, which is what bounds a search of many states; a general hash
//! map touches two lines for each.
//!
//! Only fingerprints are kept, not states (hash compaction, as TLC does): two states with one
//! fingerprint are taken for one. [`crate::Coverage::omission_probability`] bounds that.

use crate::rng::mix;

/// The value of an empty slot; no state has this number.
const EMPTY: u32 = u32::MAX;

/// Most states that one table can number.
pub(crate) const NUMBERS_MAX: u64 = EMPTY as u64;

#[derive(Clone, Copy)]
struct Slot {
    key: u64,
    number: u32,
}

/// A set of 64-bit keys, each with a 32-bit number.
pub(crate) struct Table {
    slots: Vec<Slot>,
    len: usize,
}

impl Table {
    pub(crate) fn new() -> Table {
        Table { slots: vec![Slot { key: 0, number: EMPTY }; 1 << 10], len: 0 }
    }

    /// Where `key` is, or the empty slot where it belongs.
    #[inline]
    fn find(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        // A model's own fingerprint may be good only as a whole: spread it before cutting it down.
        let mut at = mix(key) as usize & mask;
        // Ends: the table is never full.
        loop {
            let slot = &self.slots[at];
            if slot.number == EMPTY || slot.key == key {
                return at;
            }
            at = (at + 1) & mask;
        }
    }

    /// The number of `key`, if it is in the set.
    #[inline]
    pub(crate) fn get(&self, key: u64) -> Option<u32> {
        let number = self.slots[self.find(key)].number;
        (number != EMPTY).then_some(number)
    }

    /// The number in the slot where the search for `key` begins: most often that of `key`, if it is
    /// in the set. Reading this for several keys in a row fetches their slots at the same time,
    /// where lookups one after another would wait for memory one after another.
    #[inline]
    pub(crate) fn glance(&self, key: u64) -> u32 {
        self.slots[mix(key) as usize & (self.slots.len() - 1)].number
    }

    /// Adds `key` with `number`, unless it is there: then its number is returned and nothing
    /// changes.
    #[inline]
    pub(crate) fn insert(&mut self, key: u64, number: u32) -> Option<u32> {
        let at = self.find(key);
        let found = self.slots[at].number;
        if found != EMPTY {
            return Some(found);
        }
        self.slots[at] = Slot { key, number };
        self.len += 1;
        if self.len * 8 > self.slots.len() * 5 {
            self.grow();
        }
        None
    }

    #[cold]
    fn grow(&mut self) {
        let larger = vec![Slot { key: 0, number: EMPTY }; self.slots.len() * 2];
        for slot in std::mem::replace(&mut self.slots, larger) {
            if slot.number != EMPTY {
                let at = self.find(slot.key);
                self.slots[at] = slot;
            }
        }
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
            let mut table = Table::new();
            let mut map = HashMap::new();
            for (number, &key) in (0..).zip(&keys) {
                prop_assert_eq!(table.insert(key, number), map.get(&key).copied());
                map.entry(key).or_insert(number);
            }
            for key in 0..2000 {
                prop_assert_eq!(table.get(key), map.get(&key).copied());
            }
        }
    }
}
