// Goal: a printed schedule reads back as itself, and nothing else is taken for a schedule.
// Method: the round-trip law on generated schedules; each refusal by a text of its own.

use proptest::prelude::*;

use super::*;

fn step() -> impl Strategy<Value = Step> {
    (0..THREADS_MAX as u8, prop_oneof![3 => Just(0_u8), 1 => any::<u8>()])
        .prop_map(|(thread, choice)| Step { thread, choice })
}

proptest! {
    #[test]
    fn prints_and_reads_back(
        identity in any::<u64>(),
        runs in prop::collection::vec((step(), 1_usize..5), 0..40),
    ) {
        let steps = runs.iter().flat_map(|&(step, n)| std::iter::repeat_n(step, n)).collect();
        let schedule = Schedule { model: "m@v+X".to_owned(), identity, steps };
        let text = schedule.to_string();
        prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b":@+.-".contains(&b)));
        prop_assert_eq!(text.parse(), Ok(schedule));
    }

    #[test]
    fn never_panics(text in "(rgs1:m:0123456789abcdef:)?\\PC*") {
        let _ = text.parse::<Schedule>();
    }
}

fn refusal(text: &str) -> ScheduleError {
    text.parse::<Schedule>().expect_err("must be refused")
}

#[test]
fn prints_runs_and_choices() {
    let text = "rgs1:m:0123456789abcdef:Ax3-B-A.2-Bx4";
    let schedule: Schedule = text.parse().unwrap();
    assert_eq!(schedule.steps.len(), 9);
    assert_eq!(schedule.switches(), 3);
    assert_eq!(schedule.to_string(), text);
}

#[test]
fn refuses_what_it_cannot_mean() {
    assert!(matches!(refusal("hello"), ScheduleError::NotASchedule { .. }));
    assert!(matches!(refusal("rgs1:m"), ScheduleError::NotASchedule { .. }));
    assert!(matches!(refusal("rgs2:m:0:A"), ScheduleError::Version { found } if found == "rgs2"));
    assert!(matches!(refusal("rgs1:m:12:A"), ScheduleError::Identity { .. }));
    assert!(matches!(refusal("rgs1:m:+123456789abcdef:A"), ScheduleError::Identity { .. }));
    for bad in ["a", "A-", "A.", "Ax", "Ax0", "A.256", "A+", "A.+1", "Ax-1", "[", "\u{e9}"] {
        let text = format!("rgs1:m:0123456789abcdef:B-{bad}");
        assert!(matches!(refusal(&text), ScheduleError::Step { .. }), "{bad}");
    }
    let long = format!("rgs1:m:0123456789abcdef:Ax{}-Bx2", STEPS_MAX - 1);
    assert_eq!(refusal(&long), ScheduleError::TooLong);
}
