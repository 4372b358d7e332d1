// Goal: the audit passes models that keep their promises and catches each way of breaking one.
// Method: one canary for each fault: a sound model with a single lie.

use std::sync::atomic::{AtomicU32, Ordering};

use explorer::{Fault, Footprint, InvariantId, Model, Step, StepBuf, audit};

/// What the canary lies about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lie {
    None,
    /// Results depend on how often the model was asked before.
    Memory,
    /// The choice offered depends on it.
    Offer,
    Fingerprint,
    ListedTwice,
    NoSuchThread,
    /// Two writers of one counter claim to touch different objects.
    Footprint,
    /// A footprint leaves out the counter that enables the step.
    Guard,
    /// So does the future of its thread.
    GuardInFuture,
    /// A thread's future leaves out its second step.
    Future,
    /// The verdict depends on the step that led to the state.
    Verdict,
}

/// Two threads double and increment one counter; a third waits while it is 1 or 3.
struct Canary {
    lie: Lie,
    asked: AtomicU32,
}

type State = (u32, [u8; 3]);

impl Canary {
    fn new(lie: Lie) -> Canary {
        Canary { lie, asked: AtomicU32::new(0) }
    }

    /// True every thirteenth time, if this is the lie.
    fn whim(&self, lie: Lie) -> bool {
        self.lie == lie && self.asked.fetch_add(1, Ordering::Relaxed) % 13 == 12
    }
}

impl Model for Canary {
    type State = State;

    fn name(&self) -> String {
        "canary".to_owned()
    }

    fn identity(&self) -> u64 {
        0
    }

    fn threads(&self) -> usize {
        3
    }

    fn initial(&self) -> State {
        (1, [0; 3])
    }

    fn enabled(&self, state: &State, out: &mut StepBuf) {
        for thread in 0..3_u8 {
            let waits = thread == 2 && matches!(state.0, 1 | 3);
            if state.1[usize::from(thread)] < 2 && !waits {
                out.push(thread, 0);
                if self.lie == Lie::ListedTwice {
                    out.push(thread, 0);
                }
                if self.whim(Lie::Offer) {
                    out.push(thread, 1);
                }
            }
        }
        if self.lie == Lie::NoSuchThread && state.0 == 4 {
            out.push(3, 0);
        }
    }

    fn apply(&self, state: &mut State, step: Step) {
        if usize::from(step.thread) < 3 {
            state.1[usize::from(step.thread)] += 1;
        }
        match step.thread {
            0 => state.0 *= 2,
            1 => state.0 += 1,
            _ => {}
        }
        if self.whim(Lie::Memory) {
            state.0 += 8;
        }
    }

    fn check(&self, state: &State, last: Step) -> Result<(), InvariantId> {
        if self.lie == Lie::Verdict && last.thread == 2 && state.0 == 2 {
            return Err(InvariantId(0));
        }
        Ok(())
    }

    fn state_decides(&self) -> bool {
        true
    }

    fn fingerprint(&self, state: &State) -> u64 {
        let honest = u64::from(state.0) << 32
            | u64::from(u32::from_le_bytes([state.1[0], state.1[1], state.1[2], 0]));
        if self.whim(Lie::Fingerprint) { honest + (1 << 63) } else { honest }
    }

    fn footprint(&self, state: &State, step: Step) -> Footprint {
        let counter = match (self.lie, step.thread) {
            (Lie::Footprint, 0) => 2,
            (Lie::Guard | Lie::GuardInFuture, 2) => 4,
            _ => 1,
        };
        match step.thread {
            0 | 1 => Footprint { reads: 0, writes: counter },
            _ if self.lie == Lie::Future && state.1[2] == 1 => Footprint { reads: 8, writes: 0 },
            _ => Footprint { reads: counter, writes: 0 },
        }
    }

    fn future(&self, state: &State, thread: u8) -> Footprint {
        if state.1[usize::from(thread)] == 2 {
            return Footprint::NOTHING;
        }
        let step = Step { thread, choice: 0 };
        let next = self.footprint(&(state.0, [0; 3]), step);
        let guard = u128::from(self.lie != Lie::GuardInFuture) * 3;
        next.with(Footprint { reads: guard, writes: 0 })
    }

    fn invariant(&self, _: InvariantId) -> String {
        String::new()
    }

    fn explain(&self, _: &[Step], _: &State, _: InvariantId) -> String {
        String::new()
    }

    fn thread_name(&self, _: u8) -> String {
        String::new()
    }

    fn step_label(&self, _: &State, _: Step) -> String {
        String::new()
    }
}

fn fault(lie: Lie) -> Fault {
    audit(&Canary::new(lie), 1, 50).expect_err("the lie must be caught")
}

#[test]
fn an_honest_model_passes() {
    let audited = audit(&Canary::new(Lie::None), 1, 50).unwrap();
    assert_eq!((audited.schedules, audited.steps), (50, 300));
}

#[test]
fn hidden_memory_is_caught() {
    assert!(matches!(fault(Lie::Memory), Fault::NotDeterministic { what: "states", .. }));
    assert!(matches!(fault(Lie::Offer), Fault::NotDeterministic { what: "enabled steps", .. }));
    assert!(matches!(
        fault(Lie::Fingerprint),
        Fault::NotDeterministic { what: "fingerprints", .. }
    ));
}

#[test]
fn bad_lists_of_steps_are_caught() {
    assert!(matches!(fault(Lie::ListedTwice), Fault::BadStep { .. }));
    let Fault::BadStep { step, .. } = fault(Lie::NoSuchThread) else { panic!() };
    assert_eq!(step.thread, 3);
}

#[test]
fn false_independence_is_caught() {
    let Fault::NotIndependent { what, .. } = fault(Lie::Footprint) else { panic!() };
    assert_eq!(what, "the order changes the state");
}

#[test]
fn a_step_that_another_enables_is_not_independent_of_it() {
    let Fault::NotIndependent { what, .. } = fault(Lie::Guard) else { panic!() };
    assert_eq!(what, "the first changes what the thread of the second may do");
}

#[test]
fn a_future_that_is_too_small_is_caught() {
    assert!(matches!(fault(Lie::Future), Fault::FutureTooSmall { thread: 2, .. }));
}

#[test]
fn a_verdict_that_depends_on_the_last_step_is_caught() {
    assert!(matches!(fault(Lie::Verdict), Fault::StateDoesNotDecide { .. }));
}
