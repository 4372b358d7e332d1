//! Random draws that both sides can repeat.
//!
//! In: a trial's seed and the name of a thread. Out: numbers.
//! Must not know: what they decide.

/// Random draws of one thread: a function of the trial's seed, the thread's name and how many
/// draws came before. SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Draws {
    state: u64,
}

impl Draws {
    /// The draws of `thread` in a trial with that seed.
    pub fn new(seed: u64, thread: &str) -> Draws {
        // FNV-1a keeps threads of one trial apart.
        let name = thread.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Draws { state: seed ^ name }
    }

    /// Evenly from `min..=max`; the bias of the remainder is below 2^-38 for the ranges that a
    /// workload may ask for.
    pub fn between(&mut self, min: u64, max: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        match max.saturating_sub(min).checked_add(1) {
            Some(choices) => min + z % choices,
            None => z,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_repeatable_in_range_and_differ_by_seed_and_thread() {
        let draw = |seed, thread| {
            let mut draws = Draws::new(seed, thread);
            (0..1000).map(|_| draws.between(2000, 22_000)).collect::<Vec<_>>()
        };
        let one = draw(1, "storer");
        assert_eq!(one, draw(1, "storer"));
        assert_ne!(one, draw(2, "storer"));
        assert_ne!(one, draw(1, "allocator"));
        assert!(one.iter().all(|us| (2000..=22_000).contains(us)));
        let mean = one.iter().sum::<u64>() / 1000;
        assert!((11_000..13_000).contains(&mean), "{mean}");
        assert_eq!(Draws::new(1, "x").between(5, 5), 5);
    }
}
