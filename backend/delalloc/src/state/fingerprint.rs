//! A hash of a state's bytes.
//!
//! In: bytes, a multiple of eight. Out: 64 bits.
//!
//! The words are taken in pairs; each word is shifted by a key of its own, the two are multiplied,
//! and the products are added without a carry between their halves (after NH, Black and others, CRYPTO 1999). No
//! multiplication waits for another, so a state of some 250 bytes costs about as much as three
//! that do. States that differ in one word never share the 128 bits before the last fold.

/// Words of the longest state.
const WORDS: usize = 32;

/// Numbers without a pattern (SplitMix64).
const KEYS: [u64; WORDS] = {
    let mut keys = [0; WORDS];
    let mut state = 0x7261_6365_6761_7465_u64;
    let mut at = 0;
    while at < WORDS {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut key = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        keys[at] = key ^ (key >> 31);
        at += 1;
    }
    keys
};

const _: () = {
    let bytes = size_of::<super::State>();
    assert!(bytes <= WORDS * 8 && bytes.is_multiple_of(8));
};

/// 64 bits that stand for a state.
#[inline]
pub(super) fn of(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    let (mut low, mut high) = (0_u64, 0_u64);
    for (pair, keys) in words.chunks(2).zip(KEYS.chunks_exact(2)) {
        let [first, second] = [0, 1].map(|n| {
            let word = pair.get(n).map_or(0, |&word| u64::from_le_bytes(word));
            word.wrapping_add(keys[n])
        });
        let product = u128::from(first) * u128::from(second);
        // Unlike operations, or the compiler takes the two through vector registers.
        low = low.wrapping_add(product as u64);
        high ^= (product >> 64) as u64;
    }
    fold(low ^ KEYS[0].rotate_left(32), high ^ KEYS[1].rotate_left(32))
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BYTES: usize = size_of::<crate::State>();

    proptest! {
        #[test]
        fn every_bit_counts(bytes in prop::collection::vec(any::<u8>(), BYTES)) {
            let whole = of(&bytes);
            for bit in 0..BYTES * 8 {
                let mut changed = bytes.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                prop_assert_ne!(of(&changed), whole, "bit {}", bit);
            }
        }

        /// Values that meet in many words, as those of neighbouring states do.
        #[test]
        fn places_tell_equal_words_apart(word in 1..u64::MAX, other in 1..u64::MAX) {
            let mut seen = std::collections::BTreeSet::new();
            for first in 0..BYTES / 8 {
                for second in 0..BYTES / 8 {
                    let mut bytes = [0; BYTES];
                    bytes[first * 8..][..8].copy_from_slice(&word.to_le_bytes());
                    bytes[second * 8..][..8].copy_from_slice(&other.to_le_bytes());
                    seen.insert(of(&bytes));
                }
            }
            let places = BYTES / 8;
            let pairs = if word == other { places * (places + 1) / 2 } else { places * places };
            prop_assert_eq!(seen.len(), pairs);
        }
    }
}
