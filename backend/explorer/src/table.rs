//! The visited set: fingerprints with the number of the state behind each, and what its owner keeps
//! of that state.
//!
//! Open addressing with linear probing, one slot of 32 bytes a state, at most 5/8 full. A lookup
//! that misses the cache misses it once, which is what bounds a search of many states; and since
//! [`Table::prefetch`] says beforehand which slot comes next, the search need not wait even then.
//!
//! Only fingerprints are kept, not states (hash compaction, as TLC does): two states with one
//! fingerprint are taken for one. [`crate::Coverage::omission_probability`] bounds that.

use prefetch_index::prefetch_index;

use crate::rng::mix;

/// The number in an empty slot; no state has it.
const EMPTY: u32 = u32::MAX;

/// Most states that one table can number.
pub(crate) const NUMBERS_MAX: u64 = EMPTY as u64;

/// What is known of one state. Aligned so that it never lies across two cache lines.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Slot<V> {
    key: u64,
    number: u32,
    value: V,
}

impl<V: Copy + Default> Slot<V> {
    fn empty() -> Slot<V> {
        Slot { key: 0, number: EMPTY, value: V::default() }
    }
}

/// A set of 64-bit keys, each with a 32-bit number and a value.
pub(crate) struct Table<V = ()> {
    slots: Vec<Slot<V>>,
    len: usize,
}

impl<V: Copy + Default> Table<V> {
    pub(crate) fn new() -> Table<V> {
        Table { slots: vec![Slot::empty(); 1 << 10], len: 0 }
    }

    #[inline]
    fn start(&self, key: u64) -> usize {
        // A model's own fingerprint may be good only as a whole: spread it before cutting it down.
        mix(key) as usize & (self.slots.len() - 1)
    }

    /// Where `key` is, or the empty slot where it belongs.
    #[inline]
    fn find(&self, key: u64) -> usize {
        let mut at = self.start(key);
        // Ends: the table is never full.
        loop {
            let slot = &self.slots[at];
            if slot.number == EMPTY || slot.key == key {
                return at;
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    /// Has the slot where the search for `key` begins brought to the cache. Waits for nothing.
    #[inline]
    pub(crate) fn prefetch(&self, key: u64) {
        prefetch_index(&self.slots, self.start(key));
    }

    /// The number of `key` and its value, if it is in the set.
    #[inline]
    pub(crate) fn get(&self, key: u64) -> Option<(u32, V)> {
        let slot = &self.slots[self.find(key)];
        (slot.number != EMPTY).then_some((slot.number, slot.value))
    }

    /// The value of `key`, to be changed, if it is in the set.
    #[inline]
    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut V> {
        let at = self.find(key);
        let slot = &mut self.slots[at];
        (slot.number != EMPTY).then_some(&mut slot.value)
    }

    /// Adds `key` with `number` and a value, unless it is there: then its number and its value are
    /// returned and nothing changes.
    #[inline]
    pub(crate) fn insert(&mut self, key: u64, number: u32, value: V) -> Option<(u32, &mut V)> {
        let mut at = self.find(key);
        if self.slots[at].number == EMPTY {
            if (self.len + 1) * 8 > self.slots.len() * 5 {
                self.grow();
                at = self.find(key);
            }
            self.slots[at] = Slot { key, number, value };
            self.len += 1;
            return None;
        }
        let slot = &mut self.slots[at];
        Some((slot.number, &mut slot.value))
    }

    #[cold]
    fn grow(&mut self) {
        let larger = vec![Slot::empty(); self.slots.len() * 2];
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
                let known = table.insert(key, number, key * 3).map(|(number, &mut value)| (number, value));
                prop_assert_eq!(known, map.get(&key).copied());
                map.entry(key).or_insert((number, key * 3));
                if number % 7 == 0 {
                    *table.get_mut(key).unwrap() = 1;
                    map.get_mut(&key).unwrap().1 = 1;
                }
                table.prefetch(key);
            }
            for key in 0..2000 {
                prop_assert_eq!(table.get(key), map.get(&key).copied());
            }
        }
    }
}
