// Goal: a bound holds exactly, and a search that it cut says so.
// Method: generated programs against the oracle; known small ones by their figures.

use std::ops::ControlFlow;

use explorer::{Bound, Options, OptionsError, Strategy, explore};
use proptest::prelude::*;

use super::oracle::enumerate;
use super::program::{Op, Program, programs};
use super::{Threads, all, run};

fn preempting(preemptions: u32) -> Options {
    Options { preemptions_max: Some(preemptions), ..all() }
}

proptest! {
    #[test]
    fn a_preemption_bound_admits_the_schedules_that_keep_it(
        program in programs(4, false),
        bound in 0_u32..4,
    ) {
        let oracle = enumerate(&program, bound);
        for workers in [1, 2] {
            let report = run(&program, &preempting(bound), workers);
            if let Some(interleavings) = report.coverage.interleavings {
                prop_assert_eq!(interleavings, oracle.schedules);
            }
            let invariants = report.violations.iter().map(|violation| violation.invariant);
            prop_assert!(invariants.eq(oracle.cheapest.keys().copied()));
        }
    }

    #[test]
    fn random_schedules_keep_a_preemption_bound(program in programs(4, false), bound in 0_u32..3) {
        let oracle = enumerate(&program, bound);
        let strategy = Strategy::Random { seed: 7, schedules: 50 };
        let report = run(&program, &Options { strategy, ..preempting(bound) }, 1);
        for violation in report.violations {
            prop_assert!(oracle.cheapest.contains_key(&violation.invariant));
        }
    }
}

/// AAABBB, BBBAAA; with one preemption also AABBBA, ABBBAA and their mirror images; the last
/// block of a schedule switches because its predecessor is done, which is no preemption.
#[test]
fn preemptions_are_counted_as_chess_does() {
    let program = Program::new(vec![vec![Op::Nop; 3]; 2]);
    let count = |bound| run(&program, &preempting(bound), 1).coverage;
    assert_eq!(count(0).interleavings, Some(2));
    assert_eq!(count(1).interleavings, Some(6));
    assert_eq!(count(0).truncated, [Bound::Preemptions]);
    assert!(count(0).pruned_by_bound > 0);
    // ABABAB has the most: four.
    assert_eq!(count(4).interleavings, Some(20));
    assert_eq!(count(3).truncated, [Bound::Preemptions]);
    assert_eq!(count(4).truncated, []);
}

#[test]
fn a_step_bound_is_reported() {
    let program = Program::new(vec![vec![Op::Nop; 3]; 2]);
    let coverage = run(&program, &Options { steps_max: Some(2), ..all() }, 1).coverage;
    assert_eq!(coverage.truncated, [Bound::Steps]);
    assert_eq!(coverage.interleavings, Some(4));
    assert_eq!(coverage.states, Some(6));
    assert_eq!(coverage.pruned_by_bound, 6);
    let coverage = run(&program, &Options { steps_max: Some(6), ..all() }, 1).coverage;
    assert_eq!(coverage.truncated, []);
    assert_eq!(coverage.interleavings, Some(20));
}

#[test]
fn a_limit_on_states_is_reported() {
    let program = Program::new(vec![vec![Op::Nop; 30]; 3]);
    for workers in [1, 2] {
        let coverage =
            run(&program, &Options { states_max: Some(1000), ..all() }, workers).coverage;
        assert_eq!(coverage.truncated, [Bound::States]);
        assert_eq!(coverage.interleavings, None);
        assert!((1000..3000).contains(&coverage.states.unwrap()));
    }
}

#[test]
fn a_callback_can_end_a_search() {
    let program = Program::new(vec![vec![Op::Nop; 50]; 3]);
    let random = Strategy::Random { seed: 1, schedules: 1 << 40 };
    for (strategy, workers) in
        [(Strategy::Exhaustive, 1), (Strategy::Exhaustive, 2), (random, 1), (random, 2)]
    {
        let options = Options { strategy, ..all() };
        let mut calls = 0;
        let mut on_progress = |_| {
            calls += 1;
            if calls < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let report = explore(&program, &options, &Threads(workers), &mut on_progress).unwrap();
        assert!(report.coverage.truncated.contains(&Bound::Cancelled), "{report:?}");
        assert_eq!(calls, 3);
    }
}

#[test]
fn a_search_that_stops_at_the_first_violation_is_not_complete() {
    let program = Program::new(vec![vec![Op::Set(0, 1), Op::Nop], vec![Op::AssertNot(0, 1)]]);
    for workers in [1, 2] {
        let report = run(&program, &Options::default(), workers);
        assert_eq!(report.violations.len(), 1);
        assert_eq!(report.coverage.truncated, [Bound::FirstViolation]);
    }
}

#[test]
fn unsound_options_are_refused() {
    let refusal = |program: &Program, options: &Options| {
        let mut on_progress = |_| ControlFlow::Continue(());
        explore(program, options, &Threads(1), &mut on_progress).expect_err("must be refused")
    };
    let program = Program::new(vec![vec![Op::Nop]; 2]);
    let options = Options { strategy: Strategy::PartialOrder, ..preempting(1) };
    assert_eq!(refusal(&program, &options), OptionsError::PreemptionsWithPartialOrder);
    let strategy = Strategy::Pct { seed: 0, schedules: 1, depth: 0 };
    assert_eq!(refusal(&program, &Options { strategy, ..all() }), OptionsError::PctDepth);
    let crowd = Program::new(vec![vec![]; 27]);
    assert_eq!(refusal(&crowd, &all()), OptionsError::TooManyThreads { threads: 27 });
}
