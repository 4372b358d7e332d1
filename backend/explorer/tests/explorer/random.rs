// Goal: random strategies are reproducible, honest about what they are, and find what they should.
// Method: the same seed on different numbers of workers; PCT against its own bound and against
// uniform choice on a bug that needs one rare order.

use explorer::{Bound, Options, Report, Strategy};

use super::program::{Op, Program};
use super::{all, run};

/// Thread 0 sets a variable at once; thread 1 breaks if it is still unset after 12 steps of its
/// own. Needs thread 1 to run ahead: depth 1 for PCT, about one in 2^13 for uniform choice.
fn runs_ahead() -> Program {
    let mut late = vec![Op::Nop; 12];
    late.push(Op::AssertNot(0, 0));
    Program::new(vec![vec![Op::Set(0, 1)], late])
}

/// Needs a switch at the one place between two stores: depth 2.
fn split_stores() -> Program {
    let mut writer = vec![Op::Nop; 10];
    writer.extend([Op::Set(0, 1), Op::Set(0, 0)]);
    writer.extend([Op::Nop; 10]);
    Program::new(vec![writer, vec![Op::AssertNot(0, 1)]])
}

fn hits(program: &Program, strategy: Strategy) -> u128 {
    let report = run(program, &Options { strategy, ..all() }, 1);
    report.coverage.interleavings_violating.unwrap()
}

#[test]
fn the_same_seed_gives_the_same_search_on_any_number_of_workers() {
    for seed in 0..4 {
        for strategy in [
            Strategy::Random { seed, schedules: 5000 },
            Strategy::Pct { seed, schedules: 5000, depth: 3 },
        ] {
            let options = Options { strategy, shrink_states: 0, ..Options::default() };
            let one = run(&split_stores(), &options, 1);
            assert_eq!(run(&split_stores(), &options, 1), one);
            assert_eq!(run(&split_stores(), &options, 3), one);
        }
    }
}

#[test]
fn different_seeds_give_different_searches() {
    let adder = vec![Op::Load(0), Op::Inc, Op::Store(0)];
    let program =
        Program { threads: vec![adder; 2], ends_with: Some((0, 2)), ..Program::default() };
    let report = |seed| -> Report {
        let strategy = Strategy::Random { seed, schedules: 10_000 };
        run(&program, &Options { strategy, ..all() }, 1)
    };
    assert_ne!(report(1).coverage, report(2).coverage);
}

#[test]
fn random_search_never_claims_to_be_complete() {
    let strategy = Strategy::Random { seed: 0, schedules: 100 };
    let program = Program::new(vec![vec![Op::Nop]]);
    let coverage = run(&program, &Options { strategy, ..all() }, 1).coverage;
    assert_eq!(coverage.truncated, [Bound::Schedules]);
    assert_eq!((coverage.states, coverage.interleavings), (None, Some(100)));
}

/// PCT promises at least 1/(n k^(d-1)): 1/2 for two threads and depth 1, 1/46 for depth 2 and the
/// 23 steps of `split_stores`. Half of that is far outside of chance at these numbers.
#[test]
fn pct_keeps_its_promise_where_uniform_choice_does_not() {
    let schedules = 4000;
    let deep = |depth| Strategy::Pct { seed: 3, schedules, depth };
    let uniform = Strategy::Random { seed: 3, schedules };
    assert!(hits(&runs_ahead(), deep(1)) > 1500);
    assert!(hits(&runs_ahead(), uniform) < 20);
    assert!(hits(&split_stores(), deep(2)) > 4000 / 46 / 2);
    assert_eq!(hits(&split_stores(), deep(1)), 0);
}

/// What is found at random is shrunk to the same schedule as what is found by exhaustion.
#[test]
fn random_findings_shrink_to_the_minimum() {
    let program = split_stores();
    let exhaustive = run(&program, &all(), 1).violations;
    for strategy in [
        Strategy::Random { seed: 9, schedules: 1000 },
        Strategy::Pct { seed: 9, schedules: 1000, depth: 2 },
    ] {
        assert_eq!(run(&program, &Options { strategy, ..all() }, 1).violations, exhaustive);
    }
    assert!(exhaustive[0].schedule.to_string().ends_with(":Ax11-B"));
}

/// With one state allowed the search for a shortest schedule gives up and deletion takes over.
#[test]
fn deletion_takes_over_where_search_gives_up() {
    let program = Program {
        threads: vec![
            vec![Op::Set(0, 1), Op::Nop, Op::Set(1, 1), Op::Nop],
            vec![Op::Nop; 10],
            vec![Op::Nop, Op::Await(1, 1), Op::AssertNot(0, 1)],
        ],
        ..Program::default()
    };
    let strategy = Strategy::Random { seed: 5, schedules: 10 };
    let as_found = run(&program, &Options { strategy, shrink_states: 0, ..all() }, 1);
    let deleted = run(&program, &Options { strategy, shrink_states: 1, ..all() }, 1);
    let minimal = run(&program, &Options { strategy, ..all() }, 1);
    let lengths = [&as_found, &deleted, &minimal].map(|report| {
        let schedule = &report.violations[0].schedule;
        (schedule.steps.len(), schedule.switches())
    });
    assert!(lengths[0].0 > 10, "{lengths:?}");
    assert_eq!(lengths[1..], [(6, 1), (6, 1)]);
    let flags = [as_found, deleted, minimal].map(|report| report.violations[0].minimal);
    assert_eq!(flags, [false, false, true]);
}
