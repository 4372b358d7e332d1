//! The visited set: fingerprints with the number of the state behind each, and what its owner keeps
//! of that state.
//!
//! Open addressing with linear probing, one slot of 32 bytes a state, at most 5/8 full. A lookup
//! that misses the cache misses it once, which is what bounds a search of many states; and since
//! [`Table::prefetch`] says beforehand which slot comes next, the search need not wait even then.
//! The slots lie on huge pages where the system has them: on small ones nearly every lookup would
//! miss the TLB, too.
//!
//! Only fingerprints are kept, not states (hash compaction, as TLC does): two states with one
//! fingerprint are taken for one. [`crate::Coverage::omission_probability`] bounds that.

use std::alloc::{Layout, handle_alloc_error};

use memmap2::MmapMut;
use prefetch_index::prefetch_index;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::rng::mix;

/// Most states that one table can number.
pub(crate) const NUMBERS_MAX: u64 = u32::MAX as u64;

/// Bytes from which on huge pages are asked for: one of them.
const HUGE_BYTES: usize = 2 << 20;

/// What is known of one state. Aligned so that it never lies across two cache lines.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(32))]
pub(crate) struct Slot {
    key: u64,
    /// Number plus one; 0 in an empty slot.
    occupied: u32,
    /// The owner's.
    pub(crate) mark: u32,
    /// The owner's.
    pub(crate) words: [u64; 2],
}

impl Slot {
    /// Number of the state.
    #[inline]
    pub(crate) fn number(&self) -> u32 {
        self.occupied.wrapping_sub(1)
    }
}

/// A power of two of slots, empty at first.
struct Slots(MmapMut);

impl Slots {
    /// Memory that the system does not have ends the program, as it does for a `Vec`.
    fn new(count: usize) -> Slots {
        let bytes = count * size_of::<Slot>();
        let Ok(memory) = MmapMut::map_anon(bytes) else {
            handle_alloc_error(Layout::new::<Slot>());
        };
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_BYTES {
            // A refusal costs time only.
            let _ = memory.advise(memmap2::Advice::HugePage);
        }
        Slots(memory)
    }

    /// Never empty: a mapping starts at a page, and its length is a multiple of a slot's.
    #[inline]
    fn all(&self) -> &[Slot] {
        <[Slot]>::ref_from_bytes(&self.0).unwrap_or_default()
    }

    #[inline]
    fn all_mut(&mut self) -> &mut [Slot] {
        <[Slot]>::mut_from_bytes(&mut self.0).unwrap_or_default()
    }
}

/// Where the search for `key` begins in so many slots.
#[inline]
fn start(key: u64, slots: usize) -> usize {
    // A model's own fingerprint may be good only as a whole: spread it before cutting it down.
    mix(key) as usize & (slots - 1)
}

/// Where `key` is, or the empty slot where it belongs.
#[inline]
fn find(slots: &[Slot], key: u64) -> usize {
    let mut at = start(key, slots.len());
    // Ends: the table is never full.
    loop {
        let slot = &slots[at];
        if slot.occupied == 0 || slot.key == key {
            return at;
        }
        at = (at + 1) & (slots.len() - 1);
    }
}

/// A set of 64-bit keys, each with a 32-bit number and what its owner keeps with it.
pub(crate) struct Table {
    slots: Slots,
    len: usize,
}

impl Table {
    pub(crate) fn new() -> Table {
        Table { slots: Slots::new(1 << 10), len: 0 }
    }

    /// Has the slot where the search for `key` begins brought to the cache. Waits for nothing.
    #[inline]
    pub(crate) fn prefetch(&self, key: u64) {
        let slots = self.slots.all();
        prefetch_index(slots, start(key, slots.len()));
    }

    /// What is kept of `key`, if it is in the set.
    #[inline]
    pub(crate) fn get(&self, key: u64) -> Option<&Slot> {
        let slots = self.slots.all();
        let slot = &slots[find(slots, key)];
        (slot.occupied != 0).then_some(slot)
    }

    /// The same, to be changed.
    #[inline]
    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut Slot> {
        let slots = self.slots.all_mut();
        let at = find(slots, key);
        let slot = &mut slots[at];
        (slot.occupied != 0).then_some(slot)
    }

    /// Adds `key` with `number`, below [`NUMBERS_MAX`], unless it is there: then nothing changes.
    /// What is kept of it, and whether it is new.
    #[inline]
    pub(crate) fn insert(&mut self, key: u64, number: u32) -> (&mut Slot, bool) {
        if (self.len + 1) * 8 > self.slots.all().len() * 5 {
            self.grow();
        }
        let slots = self.slots.all_mut();
        let at = find(slots, key);
        let slot = &mut slots[at];
        let new = slot.occupied == 0;
        if new {
            slot.key = key;
            slot.occupied = number + 1;
            self.len += 1;
        }
        (slot, new)
    }

    #[cold]
    fn grow(&mut self) {
        let mut larger = Slots::new(self.slots.all().len() * 2);
        let slots = larger.all_mut();
        for slot in self.slots.all().iter().filter(|slot| slot.occupied != 0) {
            slots[find(slots, slot.key)] = *slot;
        }
        self.slots = larger;
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
                table.prefetch(key);
                let (slot, new) = table.insert(key, number);
                prop_assert_eq!(new, !map.contains_key(&key));
                if new {
                    slot.words = [key, 1];
                }
                let kept = map.entry(key).or_insert((number, 1));
                prop_assert_eq!((slot.number(), slot.words), (kept.0, [key, kept.1]));
                if number % 7 == 0 {
                    table.get_mut(key).unwrap().words[1] += 1;
                    kept.1 += 1;
                }
            }
            for key in 0..2000 {
                let kept = table.get(key).map(|slot| (slot.number(), slot.words[1]));
                prop_assert_eq!(kept, map.get(&key).copied());
            }
        }
    }
}
