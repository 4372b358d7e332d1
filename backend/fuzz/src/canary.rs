//! Planted bugs: a crash behind a comparison that chance does not pass, a leak, a balloon, a hang.
//!
//! In: an input. Out: one bug each, which the fuzzer must report, or it notices nothing.

use crate::Target;

pub(crate) const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    let seeds = || vec![vec![0; 4]];
    Target { name, run, seeds, longest: 64, most_bytes: 1 << 20, gives_back: true }
}

/// Needs coverage feedback: four bytes, each behind a branch of its own.
pub(crate) fn panics(input: &[u8]) {
    let is = |at: usize, byte: u8| std::hint::black_box(input.get(at) == Some(&byte));
    let whole = is(0, b'j') && is(1, b'b') && is(2, b'd') && is(3, b'2');
    assert!(!whole, "the planted bug");
}

pub(crate) fn leaks(input: &[u8]) {
    if input.first() == Some(&b'L') {
        std::mem::forget(std::hint::black_box(vec![0_u8; 100]));
    }
}

pub(crate) fn balloons(input: &[u8]) {
    if input.first() == Some(&b'B') {
        drop(std::hint::black_box(vec![1_u8; 2 << 20]));
    }
}

pub(crate) fn hangs(input: &[u8]) {
    while std::hint::black_box(input.first() == Some(&b'H')) {}
}
