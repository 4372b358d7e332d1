//! The orders that a disk can bring about: a model that leaves out all others.
//!
//! In: a model of ext4. Out: the same model with fewer steps enabled.
//! Must not know: how a search goes about it, plans.
//!
//! A disk decides when a request completes; what starts an operation is the workload. Nobody else
//! is asked. So a thread that is in an operation goes on until it waits for the disk or for a lock,
//! or the operation is over; while a thread can go on, no operation starts and no request
//! completes. What is left out: a thread that is interrupted where it waits for nothing, memory
//! that runs out, the shrinker. A violation that this model has can be steered on a real kernel; if
//! it has none, no disk can bring one about in this scenario.
//!
//! Where two threads can go on at once, both orders are tried: there the kernel chooses.

use delalloc::{DelallocModel, State};
use explorer::{InvariantId, Model, Step, StepBuf};

/// No thread.
const NOBODY: u8 = u8::MAX;

/// A model, steered.
pub(super) struct Steered<'a>(pub(super) &'a DelallocModel);

/// A state with what is going on.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Moment {
    /// The state.
    pub(super) state: State,
    /// The thread that goes on, if it can.
    running: u8,
    /// Threads that are in an operation, by bit.
    pub(super) begun: u32,
}

impl Steered<'_> {
    fn users(&self) -> usize {
        self.0.scenario().thread.len()
    }

    /// Whether a disk and a workload can make this happen: no memory or space that runs out.
    fn is_ours(&self, step: Step) -> bool {
        let thread = usize::from(step.thread);
        let engine = self.0.engine();
        if thread == engine.shrinker() {
            false
        } else {
            thread == engine.device() || step.choice == 0
        }
    }

    /// Whether a thread is on its way and stops for nobody.
    fn is_on_its_way(&self, moment: &Moment, step: Step) -> bool {
        let thread = usize::from(step.thread);
        let begun = thread < self.users() && moment.begun & (1 << thread) != 0;
        begun || thread == self.0.engine().worker()
    }
}

impl Model for Steered<'_> {
    type State = Moment;

    fn name(&self) -> String {
        self.0.name()
    }

    fn identity(&self) -> u64 {
        self.0.identity()
    }

    fn threads(&self) -> usize {
        self.0.threads()
    }

    fn initial(&self) -> Moment {
        Moment { state: self.0.initial(), running: NOBODY, begun: 0 }
    }

    fn enabled(&self, moment: &Moment, out: &mut StepBuf) {
        let mut all = StepBuf::default();
        self.0.enabled(&moment.state, &mut all);
        let all = all.as_slice().iter().filter(|step| self.is_ours(**step));
        let some = |pick: &dyn Fn(&Step) -> bool, out: &mut StepBuf| {
            let mut any = false;
            for step in all.clone().filter(|step| pick(step)) {
                out.push(step.thread, step.choice);
                any = true;
            }
            any
        };
        let _ = some(&|step| step.thread == moment.running, out)
            || some(&|step| self.is_on_its_way(moment, *step), out)
            || some(&|_| true, out);
    }

    fn apply(&self, moment: &mut Moment, step: Step) {
        let thread = usize::from(step.thread);
        let engine = self.0.engine();
        if thread >= self.users() {
            self.0.apply(&mut moment.state, step);
            return;
        }
        let before = engine.operation(&moment.state, thread);
        self.0.apply(&mut moment.state, step);
        let goes_on = engine.operation(&moment.state, thread) == before;
        (moment.begun, moment.running) = if goes_on {
            (moment.begun | 1 << thread, step.thread)
        } else {
            (moment.begun & !(1 << thread), NOBODY)
        };
    }

    fn check(&self, moment: &Moment, last: Step) -> Result<(), InvariantId> {
        self.0.check(&moment.state, last)
    }

    fn state_decides(&self) -> bool {
        self.0.state_decides()
    }

    fn finished(&self, moment: &Moment) -> bool {
        // What is left out here is enabled there: an end of this model need not be one of that.
        let mut all = StepBuf::default();
        self.0.enabled(&moment.state, &mut all);
        !all.as_slice().is_empty() || self.0.finished(&moment.state)
    }

    fn check_final(&self, moment: &Moment) -> Result<(), InvariantId> {
        if self.0.finished(&moment.state) { self.0.check_final(&moment.state) } else { Ok(()) }
    }

    fn invariant(&self, id: InvariantId) -> String {
        self.0.invariant(id)
    }

    fn explain(&self, history: &[Step], moment: &Moment, id: InvariantId) -> String {
        self.0.explain(history, &moment.state, id)
    }

    fn thread_name(&self, thread: u8) -> String {
        self.0.thread_name(thread)
    }

    fn step_label(&self, before: &Moment, step: Step) -> String {
        self.0.step_label(&before.state, step)
    }

    fn held(&self, moment: &Moment, thread: u8) -> String {
        self.0.held(&moment.state, thread)
    }

    fn changed(&self, before: &Moment, after: &Moment) -> String {
        self.0.changed(&before.state, &after.state)
    }
}
