//! Where the verdict changes, in a row of kernels of which only a few are tested.
//!
//! In: what is known of each kernel. Out: which to test next, or the answer.
//! Must not know: kernels, plans, trials.

use crate::verdict::Verdict;

/// What is known of one kernel.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Known {
    /// Nothing yet.
    Untested,
    /// The verdict.
    Judged(Verdict),
    /// It cannot be told; why.
    Cannot(String),
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Next {
    /// Test these, by index, in order.
    Test(Vec<usize>),
    /// The verdict changes here.
    Found {
        /// The last kernel with the old verdict.
        last: usize,
        /// The first one with the new verdict.
        first: usize,
    },
    /// There is no answer; why.
    Nothing(String),
}

/// The next step of a search with `width` tests at a time.
///
/// The two ends come first. A kernel that cannot be told is passed over; if one lies where the
/// verdict changes, there is no answer.
pub(super) fn next(known: &[Known], names: &[&str], width: usize) -> Next {
    let can = |index: &usize| !matches!(known[*index], Known::Cannot(_));
    let (Some(left), Some(right)) = ((0..known.len()).find(can), (0..known.len()).rev().find(can))
    else {
        return Next::Nothing("no kernel of the series can be told".to_owned());
    };
    let untested = |index: &usize| known[*index] == Known::Untested;
    let mut ends: Vec<usize> = [left, right].into_iter().filter(untested).collect();
    ends.dedup();
    if !ends.is_empty() {
        return Next::Test(ends);
    }
    let (old, new) = (&known[left], &known[right]);
    if old == new {
        let Known::Judged(verdict) = old else {
            return Next::Nothing("no kernel of the series can be told".to_owned());
        };
        let (left, right) = (names[left], names[right]);
        return Next::Nothing(if left == right {
            format!("only {left} can be told: it is {verdict}")
        } else {
            format!("the verdict does not change: both {left} and {right} are {verdict}")
        });
    }
    let indices = || left..=right;
    let last = indices().rev().find(|&index| known[index] == *old).unwrap_or(left);
    let first = indices().find(|&index| known[index] == *new).unwrap_or(right);
    if last > first {
        let (first, last) = (names[first], names[last]);
        return Next::Nothing(format!(
            "the verdict changes more than once: at {first}, before {last}"
        ));
    }
    let between: Vec<usize> = (last + 1..first).filter(untested).collect();
    if between.is_empty() {
        return if first == last + 1 {
            Next::Found { last, first }
        } else {
            let unknown = names[last + 1..first].join(", ");
            Next::Nothing(format!(
                "the verdict changes between {} and {}, and {unknown} cannot be told",
                names[last], names[first]
            ))
        };
    }
    let width = width.clamp(1, between.len());
    // Evenly spaced, so that no part between two of them is larger than it must be.
    let pick = |part: usize| between[part * (between.len() + 1) / (width + 1) - 1];
    let mut picked: Vec<usize> = (1..=width).map(pick).collect();
    picked.dedup();
    Next::Test(picked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Plays a search to its end: the answer, and how many kernels were tested.
    fn play(truth: &[Known], width: usize) -> (Next, usize) {
        let names: Vec<String> = (0..truth.len()).map(|index| format!("k{index}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut known = vec![Known::Untested; truth.len()];
        let mut tested = 0;
        loop {
            match next(&known, &names, width) {
                Next::Test(indices) => {
                    assert!(!indices.is_empty() && indices.len() <= width.max(2));
                    for index in indices {
                        assert_eq!(known[index], Known::Untested, "tested twice");
                        known[index] = truth[index].clone();
                        tested += 1;
                    }
                }
                answer => return (answer, tested),
            }
        }
    }

    fn row(text: &str) -> Vec<Known> {
        let known = |c| match c {
            'b' => Known::Judged(Verdict::Affected),
            'g' => Known::Judged(Verdict::NotAffected),
            _ => Known::Cannot("does not boot".to_owned()),
        };
        text.chars().map(known).collect()
    }

    #[test]
    fn answers() {
        assert_eq!(play(&row("bbgggg"), 1).0, Next::Found { last: 1, first: 2 });
        assert_eq!(play(&row("ggb"), 2).0, Next::Found { last: 1, first: 2 });
        assert_eq!(play(&row("?bg?"), 2).0, Next::Found { last: 1, first: 2 });
        for (row_of, reason) in [
            ("bbbb", "both k0 and k3 are affected"),
            ("?b?", "only k1 can be told: it is affected"),
            ("??", "no kernel"),
            ("b?g", "changes between k0 and k2, and k1 cannot be told"),
        ] {
            let (Next::Nothing(said), _) = play(&row(row_of), 1) else { panic!("{row_of}") };
            assert!(said.contains(reason), "{row_of}: {said}");
        }
        let names = ["a", "b", "c", "d"];
        let Next::Nothing(said) = next(&row("bgbg"), &names, 1) else { panic!() };
        assert!(said.contains("more than once"), "{said}");
    }

    proptest! {
        /// The search agrees with a look at every kernel, and looks at few.
        #[test]
        fn the_answer_is_that_of_testing_all(
            len in 2usize..40, change in 1usize..40, holes in proptest::collection::vec(0usize..40, 0..4),
            width in 1usize..4, fixed in any::<bool>(),
        ) {
            let change = change.min(len - 1);
            let (old, new) = if fixed { ("b", "g") } else { ("g", "b") };
            let mut truth = row(&(old.repeat(change) + &new.repeat(len - change)));
            for hole in holes.iter().filter(|hole| **hole < len) {
                truth[*hole] = Known::Cannot("gone".to_owned());
            }
            let old = truth[..change].iter().rposition(|known| !matches!(known, Known::Cannot(_)));
            let new = truth[change..].iter().position(|known| !matches!(known, Known::Cannot(_)));
            let (answer, tested) = play(&truth, width);
            match (old, new.map(|new| new + change)) {
                (Some(last), Some(first)) if first == last + 1 => {
                    prop_assert_eq!(answer, Next::Found { last, first });
                }
                _ => prop_assert!(matches!(answer, Next::Nothing(_)), "{answer:?}"),
            }
            if width == 1 && holes.is_empty() {
                prop_assert!(tested <= 2 + (len as f64).log2().ceil() as usize, "{tested} of {len}");
            }
        }
    }
}
