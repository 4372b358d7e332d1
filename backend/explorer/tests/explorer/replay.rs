// Goal: what a search prints leads to the same violation again, and nothing else is followed.
// Method: the round trip search -> text -> schedule -> replay on generated programs.

use explorer::{Options, Outcome, ReplayError, Schedule, ScheduleError, Step, replay};
use proptest::prelude::*;

use super::program::{Op, Program, programs};
use super::{all, run};

proptest! {
    #[test]
    fn a_printed_schedule_breaks_the_same_invariant(
        program in programs(5, true),
        shrink_states in prop_oneof![Just(0_u64), Just(1), Just(1 << 20)],
    ) {
        for workers in [1, 2] {
            let report = run(&program, &Options { shrink_states, ..all() }, workers);
            for violation in report.violations {
                let text = violation.schedule.to_string();
                let schedule: Schedule = text.parse().unwrap();
                prop_assert_eq!(&schedule, &violation.schedule);
                let trace = replay(&program, &schedule).unwrap();
                prop_assert_eq!(trace.rows.len(), schedule.steps.len());
                prop_assert_eq!(trace.outcome, Outcome::Violation {
                    invariant: violation.invariant,
                    name: violation.name,
                    detail: violation.detail,
                });
            }
        }
    }
}

fn locked() -> Program {
    Program::new(vec![vec![Op::Lock(0), Op::AssertNot(0, 0), Op::Nop], vec![Op::Lock(0)]])
}

fn follow(steps: &str) -> Result<explorer::Trace, ReplayError> {
    let empty = Schedule::new(&locked(), vec![]).to_string();
    replay(&locked(), &format!("{empty}{steps}").parse().unwrap())
}

#[test]
fn a_schedule_that_stops_early_is_open() {
    assert_eq!(follow("A").unwrap().outcome, Outcome::Open);
    assert_eq!(follow("").unwrap().outcome, Outcome::Open);
}

#[test]
fn steps_that_cannot_be_taken_are_refused() {
    let thread_a = Step { thread: 0, choice: 0 };
    let refusal = follow("A-B").unwrap_err();
    let step = Step { thread: 1, choice: 0 };
    assert_eq!(refusal, ReplayError::NotEnabled { index: 2, step, enabled: vec![thread_a] });
    assert_eq!(refusal.to_string(), "step 2 (B) is not enabled; enabled are: A");
    assert!(matches!(follow("A.1"), Err(ReplayError::NotEnabled { index: 1, .. })));
    assert!(matches!(follow("Z"), Err(ReplayError::NotEnabled { index: 1, .. })));
    let refusal = follow("Ax3").unwrap_err();
    assert_eq!(refusal, ReplayError::AfterViolation { index: 3, name: "I0".to_owned() });
}

#[test]
fn a_schedule_for_another_model_is_refused() {
    let schedule = Schedule::new(&locked(), vec![]);
    let refusal = replay(&Program::new(vec![]), &schedule).unwrap_err();
    assert!(matches!(refusal, ReplayError::Schedule(ScheduleError::OtherIdentity { .. })));
    let renamed = Schedule { model: "other".to_owned(), ..schedule };
    let refusal = replay(&locked(), &renamed).unwrap_err();
    assert!(matches!(refusal, ReplayError::Schedule(ScheduleError::OtherModel { .. })));
    assert_eq!(refusal.to_string(), "schedule is for model `other`, not for `program`");
}
