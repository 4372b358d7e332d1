// Goal: the classics come out as the literature has them.
// Method: each by its minimal counterexample, or by its exhaustion with stated figures.

use explorer::{InvariantId, Options, Strategy};

use super::program::{ENDS_WITH, Never, Op, Program};
use super::{all, run};

/// Peterson's algorithm. Variables 0 and 1: who is interested; 2: whose turn; 3: how many are in
/// the critical section (1: thread 0, 2: thread 1, and each sets it on entry).
fn peterson(turn_first: bool) -> Program {
    let thread = |own: u8| {
        let other = 1 - own;
        let announce = if turn_first {
            [Op::Set(2, other), Op::Set(own, 1)]
        } else {
            [Op::Set(own, 1), Op::Set(2, other)]
        };
        // 2..6: wait while the other is interested and it is the other's turn.
        let wait = [Op::Load(other), Op::JumpIf(0, 6), Op::Load(2), Op::JumpIf(other, 2)];
        // In the section a variable of the thread's own marker must survive.
        let section = [Op::Set(3, own + 1), Op::AssertNot(3, other + 1), Op::Set(own, 0)];
        announce.into_iter().chain(wait).chain(section).collect()
    };
    Program::new(vec![thread(0), thread(1)])
}

fn strategies() -> [(Options, usize); 4] {
    let reduced = Options { strategy: Strategy::PartialOrder, ..all() };
    [(all(), 1), (all(), 2), (reduced.clone(), 1), (reduced, 2)]
}

#[test]
fn peterson_excludes() {
    for (options, workers) in strategies() {
        let report = run(&peterson(false), &options, workers);
        assert!(report.coverage.complete());
        assert_eq!(report.violations, []);
    }
}

/// With the turn announced before the interest both get in: both announce the turn, the last one
/// enters because the other is not interested yet, then the other enters because the turn is its
/// own.
#[test]
fn peterson_with_swapped_announcements_does_not() {
    for (options, workers) in strategies() {
        let report = run(&peterson(true), &options, workers);
        assert_eq!(report.violations.len(), 1, "{report:?}");
        let violation = &report.violations[0];
        assert!(violation.minimal);
        assert_eq!((violation.schedule.steps.len(), violation.schedule.switches()), (13, 3));
        assert!(violation.schedule.to_string().ends_with(":A-Bx5-Ax6-B"), "{violation:?}");
    }
}

/// Threads 0..n each take fork i, then fork i+1.
fn dining(philosophers: u8, ordered: bool) -> Program {
    let thread = |own: u8| {
        let (mut first, mut second) = (own, (own + 1) % philosophers);
        if ordered && first > second {
            (first, second) = (second, first);
        }
        vec![Op::Lock(first), Op::Lock(second), Op::Unlock(second), Op::Unlock(first)]
    };
    Program::new((0..philosophers).map(thread).collect())
}

#[test]
fn dining_philosophers_deadlock_when_each_holds_one_fork() {
    for philosophers in 2..=5 {
        for (options, workers) in strategies() {
            let report = run(&dining(philosophers, false), &options, workers);
            let [violation] = &report.violations[..] else { panic!("{report:?}") };
            assert_eq!(violation.invariant, InvariantId::DEADLOCK);
            assert_eq!(violation.name, "deadlock");
            assert_eq!(violation.schedule.steps.len(), usize::from(philosophers));
            let report = run(&dining(philosophers, true), &options, workers);
            assert_eq!(report.violations, []);
        }
    }
}

/// Store buffering under sequential consistency: both threads reading 0 is impossible, the other
/// three outcomes are ends.
#[test]
fn store_buffering_has_three_outcomes() {
    let program = Program {
        threads: vec![
            vec![Op::Set(0, 1), Op::Load(1), Op::Inc, Op::Store(2)],
            vec![Op::Set(1, 1), Op::Load(0), Op::Inc, Op::Store(3)],
        ],
        // Variables 2 and 3 hold what was read, plus 1.
        never: vec![Never((2, 1), (3, 1))],
        ends_with: None,
    };
    for (options, workers) in strategies() {
        let report = run(&program, &options, workers);
        assert_eq!(report.violations, []);
        assert_eq!(report.coverage.ends, 3);
    }
}

#[test]
fn an_unlocked_counter_loses_an_update() {
    let add = |body: &[Op]| Program {
        threads: vec![body.to_vec(), body.to_vec()],
        never: vec![],
        ends_with: Some((0, 2)),
    };
    let unlocked = add(&[Op::Load(0), Op::Inc, Op::Store(0)]);
    let locked = add(&[Op::Lock(0), Op::Load(0), Op::Inc, Op::Store(0), Op::Unlock(0)]);
    for (options, workers) in strategies() {
        let report = run(&unlocked, &options, workers);
        let [violation] = &report.violations[..] else { panic!("{report:?}") };
        assert_eq!(violation.invariant, ENDS_WITH);
        assert!(violation.schedule.to_string().ends_with(":Ax2-Bx3-A"), "{violation:?}");
        assert_eq!(run(&locked, &options, workers).violations, []);
    }
    // 20 schedules; the 2 that do not overlap keep both updates.
    let report = run(&unlocked, &all(), 1);
    assert_eq!(report.coverage.interleavings, Some(20));
    assert_eq!(report.coverage.interleavings_violating, Some(18));
}
