//! Random draws that depend on nothing but seed, rule name and match number.
//!
//! In: these three. Out: [`Draw`], a short stream of numbers. Must not know: rules, requests.
//!
//! A generator with state would make each draw depend on how many were made before, by any
//! rule, in whatever order the requests came. Here the n-th match of a rule has its own stream,
//! found by hashing: a rule added to the file, or one more request on another queue, changes no
//! other draw. The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable
//! pseudorandom number generators", 2014, variant 13 of Stafford), whose every output bit
//! depends on every input bit; the name is hashed once, when the rules are loaded, by FNV-1a.

/// Random numbers for one match of one rule.
#[derive(Clone, Debug)]
pub(crate) struct Draw {
    state: u64,
}

/// 2^64 divided by the golden ratio, odd: the step of SplitMix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

const fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The stream of a rule: seed and name as one number.
pub(crate) fn stream(seed: u64, rule: &str) -> u64 {
    let name = rule.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(mix(seed.wrapping_add(STEP)) ^ name)
}

impl Draw {
    /// For the match with that number in a stream.
    pub(crate) const fn new(stream: u64, number: u64) -> Draw {
        Draw { state: mix(stream ^ mix(number.wrapping_add(STEP))) }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Uniform in `0..limit`; `limit` must not be 0. The bias (Lemire's multiplication without
    /// rejection) is below `limit / 2^64`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }
}
