// Goal: reduction changes the effort, not the answer; nor does the number of workers.
// Method: generated programs, straight and with loops, plain against reduced.

use explorer::{Options, Strategy, audit};
use proptest::prelude::*;

use super::program::{Op, Program, programs};
use super::{all, run};

fn reduced() -> Options {
    Options { strategy: Strategy::PartialOrder, ..all() }
}

fn compare(program: &Program) -> Result<(), TestCaseError> {
    // The reduction relies on footprints: a fault there would make the comparison meaningless.
    prop_assert!(audit(program, 1, 2).is_ok());
    let plain = run(program, &all(), 1);
    let por = run(program, &reduced(), 1);
    prop_assert!(por.coverage.complete());
    prop_assert_eq!(plain.violations.is_empty(), por.violations.is_empty());
    if plain.violations.is_empty() {
        // Ends of the reduced search are ends of the plain one: the same number, the same ends.
        prop_assert_eq!(plain.coverage.ends, por.coverage.ends);
    }
    for violation in &por.violations {
        // Shrinking searches without reduction, so a shared violation is the same one.
        prop_assert!(plain.violations.contains(violation));
    }
    prop_assert!(por.coverage.states <= plain.coverage.states);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn straight_programs_keep_their_ends_and_violations(program in programs(5, false)) {
        compare(&program)?;
    }

    #[test]
    fn programs_with_loops_keep_their_ends_and_violations(program in programs(6, true)) {
        compare(&program)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn the_number_of_workers_changes_nothing(program in programs(6, true)) {
        for options in [all(), reduced()] {
            // A bound that does not bite, so that one worker goes by layers, too.
            let options = Options { steps_max: Some(10_000), ..options };
            let one = run(&program, &options, 1);
            for workers in [2, 4] {
                prop_assert_eq!(&run(&program, &options, workers), &one);
            }
        }
    }

    #[test]
    fn depth_first_and_layers_see_the_same_graph(program in programs(6, true)) {
        for options in [all(), Options::default()] {
            prop_assert_eq!(run(&program, &options, 1), run(&program, &options, 2));
        }
    }
}

/// Two pairs of threads, each pair on a variable of its own: the pairs do not multiply.
#[test]
fn pairs_that_never_meet_are_searched_apart() {
    let user = |var| vec![Op::Load(var), Op::Inc, Op::Store(var), Op::Nop];
    let program = Program::new(vec![user(0), user(0), user(1), user(1)]);
    let plain = run(&program, &all(), 1).coverage;
    let por = run(&program, &reduced(), 1).coverage;
    assert_eq!(plain.ends, por.ends);
    let (plain, por) = (plain.states.unwrap(), por.states.unwrap());
    assert!(por * 5 < plain, "{por} of {plain} states");
}
