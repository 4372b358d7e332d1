// Goal: the figures are exact, for every engine and number of workers.
// Method: programs whose interleavings are known by formula; generated ones against the oracle.

use explorer::{Report, Strategy};
use proptest::prelude::*;

use super::oracle::enumerate;
use super::program::{Op, Program, programs};
use super::{all, run};

/// Threads that never meet, of the given lengths.
fn apart(lengths: &[usize]) -> Program {
    Program::new(lengths.iter().map(|&length| vec![Op::Nop; length]).collect())
}

/// Depth first, layers on one worker (a bound that does not bite), layers on three.
fn engines(program: &Program) -> [Report; 3] {
    let layered = explorer::Options { steps_max: Some(1000), ..all() };
    [run(program, &all(), 1), run(program, &layered, 1), run(program, &all(), 3)]
}

/// Two threads of three steps: AAABBB AABABB AABBAB AABBBA ABAABB ABABAB ABABBA ABBAAB ABBABA
/// ABBBAA, and the same ten with A and B swapped.
#[test]
fn two_threads_of_three_steps_have_20_interleavings() {
    for report in engines(&apart(&[3, 3])) {
        let coverage = report.coverage;
        assert_eq!(coverage.interleavings, Some(20));
        assert_eq!(coverage.interleavings_violating, Some(0));
        assert_eq!(coverage.states, Some(16));
        assert_eq!(coverage.transitions, 24);
        assert_eq!(coverage.pruned_by_hash, 24 - 15);
        assert_eq!(coverage.ends, 1);
        assert_eq!(coverage.depth_max, 6);
        assert!(coverage.complete());
        assert!(report.violations.is_empty());
    }
}

#[test]
fn an_empty_program_has_one_interleaving() {
    for report in engines(&apart(&[0, 0])) {
        assert_eq!(report.coverage.interleavings, Some(1));
        assert_eq!(report.coverage.states, Some(1));
        assert_eq!(report.coverage.transitions, 0);
    }
}

/// 80! / 40!^2 is above 2^64.
#[test]
fn more_than_a_word_holds_is_counted_exactly() {
    for report in engines(&apart(&[40, 40])) {
        assert_eq!(report.coverage.interleavings, Some(multinomial(&[40, 40])));
    }
}

/// 2 threads of 70 steps: 140! / 70!^2 is above 2^128.
#[test]
fn more_than_can_be_counted_saturates() {
    let report = run(&apart(&[70, 70]), &all(), 1);
    assert_eq!(report.coverage.interleavings, Some(u128::MAX));
    assert_eq!(report.coverage.states, Some(71 * 71));
}

/// Layers wide enough to be shared out.
#[test]
fn wide_layers_are_shared_exactly() {
    let program = apart(&[20, 20, 20, 4]);
    let layered = explorer::Options { steps_max: Some(1000), ..all() };
    let one = run(&program, &layered, 1);
    assert_eq!(one.coverage.states, Some(21 * 21 * 21 * 5));
    for workers in [2, 5] {
        assert_eq!(run(&program, &all(), workers), one, "{workers} workers");
    }
}

/// A cycle has no number of interleavings, and is visited once.
#[test]
fn a_cycle_is_visited_once_and_not_counted() {
    let spin = vec![Op::Load(0), Op::JumpIf(0, 0)];
    let set = vec![Op::Set(0, 1)];
    for report in engines(&Program::new(vec![spin, set])) {
        assert_eq!(report.coverage.interleavings, None);
        assert_eq!(report.coverage.ends, 1);
        assert!(report.coverage.complete());
        assert!(report.violations.is_empty());
    }
}

fn multinomial(lengths: &[usize]) -> u128 {
    let mut total = 0_u128;
    let mut product = 1_u128;
    for &length in lengths {
        for part in 1..=length as u128 {
            total += 1;
            product = product * total / part;
        }
    }
    product
}

proptest! {
    #[test]
    fn independent_threads_follow_the_formula(lengths in prop::collection::vec(0_usize..5, 1..5)) {
        let states: u64 = lengths.iter().map(|&length| length as u64 + 1).product();
        for report in engines(&apart(&lengths)) {
            prop_assert_eq!(report.coverage.interleavings, Some(multinomial(&lengths)));
            prop_assert_eq!(report.coverage.states, Some(states));
        }
        // All steps are independent: one interleaving is enough.
        let reduced = explorer::Options { strategy: Strategy::PartialOrder, ..all() };
        let report = run(&apart(&lengths), &reduced, 1);
        prop_assert_eq!(report.coverage.interleavings, Some(1));
        prop_assert_eq!(report.coverage.states, Some(lengths.iter().sum::<usize>() as u64 + 1));
    }

    #[test]
    fn generated_programs_agree_with_the_oracle(program in programs(4, false)) {
        let oracle = enumerate(&program, u32::MAX);
        for report in engines(&program) {
            let coverage = &report.coverage;
            prop_assert!(coverage.complete());
            prop_assert_eq!(coverage.states, Some(oracle.states.len() as u64));
            prop_assert_eq!(coverage.ends, oracle.ends.len() as u64);
            prop_assert_eq!(coverage.interleavings, Some(oracle.schedules));
            prop_assert_eq!(coverage.interleavings_violating, Some(oracle.violating));
            // One violation for each invariant, minimal in steps and then in switches.
            let cheapest = report.violations.iter().map(|violation| {
                let schedule = &violation.schedule;
                (violation.invariant, (schedule.steps.len(), schedule.switches()))
            });
            prop_assert!(cheapest.eq(oracle.cheapest.clone()));
            prop_assert!(report.violations.iter().all(|violation| violation.minimal));
        }
    }
}
