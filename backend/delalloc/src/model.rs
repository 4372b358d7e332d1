//! The model that the explorer searches: a scenario on a kernel, with or without a mutant.
//!
//! In: names. Out: [`DelallocModel`].
//! Must not know: strategies.

use explorer::{InvariantId, Model, Step, StepBuf};

use crate::exec::Engine;
use crate::invariant::{Finding, Invariant};
use crate::kernel::{Flag, Kernel, UnknownKernel};
use crate::label;
use crate::mutant::{Mutant, UnknownMutant};
use crate::scenario::{Scenario, ScenarioError, UnknownScenario};
use crate::state::State;

/// Every kernel version known.
pub fn variants() -> [Kernel; 5] {
    Kernel::all()
}

/// What to explore, by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Selection<'a> {
    /// Built-in scenario; a mutant's own if left out.
    pub scenario: Option<&'a str>,
    /// Kernel; a mutant's base if left out, else the newest.
    pub variant: Option<&'a str>,
    /// Mutant.
    pub mutant: Option<&'a str>,
}

/// A selection that names nothing, or something that does not exist.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BuildError {
    /// No such kernel.
    #[error(transparent)]
    Kernel(#[from] UnknownKernel),
    /// No such mutant.
    #[error(transparent)]
    Mutant(#[from] UnknownMutant),
    /// No such scenario.
    #[error(transparent)]
    Scenario(#[from] UnknownScenario),
    /// A scenario of the user's that cannot be used.
    #[error(transparent)]
    Invalid(#[from] ScenarioError),
    /// Neither a scenario nor a mutant was named.
    #[error("nothing to explore: name a scenario or a mutant")]
    Nothing,
}

/// A scenario on a kernel, ready to be searched.
#[derive(Clone, Debug)]
pub struct DelallocModel {
    scenario: Scenario,
    mutant: Option<&'static str>,
    engine: Engine,
    initial: State,
}

impl DelallocModel {
    /// Resolves a selection.
    pub fn select(selection: Selection<'_>) -> Result<DelallocModel, BuildError> {
        let mutant = selection.mutant.map(Mutant::find).transpose()?;
        let variant = selection
            .variant
            .or(mutant.map(|mutant| mutant.base))
            .unwrap_or(Kernel::NAMES[Kernel::NAMES.len() - 1]);
        let scenario = selection
            .scenario
            .or(mutant.map(|mutant| mutant.scenario))
            .ok_or(BuildError::Nothing)?;
        Ok(DelallocModel::new(Scenario::find(scenario)?, Kernel::find(variant)?, mutant))
    }

    /// A scenario on a kernel, with a mutant's fixes taken out.
    pub fn new(scenario: Scenario, kernel: Kernel, mutant: Option<&Mutant>) -> DelallocModel {
        let without = mutant.map(Mutant::flags).unwrap_or_default();
        let mut model = DelallocModel::with_flags(scenario, kernel.without(&without));
        model.mutant = mutant.and_then(|m| Mutant::find(m.id).ok()).map(|m| m.id);
        model
    }

    /// A scenario on any set of flags.
    pub fn with_flags(scenario: Scenario, kernel: Kernel) -> DelallocModel {
        let threads = &scenario.thread;
        let engine = Engine::new(
            kernel,
            scenario.geometry(),
            threads.len(),
            &scenario.faults,
            |thread, asm| {
                for (number, op) in threads[thread].ops.iter().enumerate() {
                    op.emit(asm, number as u8);
                }
                // Registers are cleared once more: what the last operation left tells nothing.
                asm.emit(crate::program::Instr::Begin(u8::MAX));
            },
        );
        let mut initial = scenario.initial(!kernel.has(Flag::ExclusiveTypes));
        engine.settle_all(&mut initial);
        DelallocModel { scenario, mutant: None, engine, initial }
    }

    /// The scenario.
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// The machine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    fn id(finding: Finding) -> InvariantId {
        InvariantId(finding.0 as u16)
    }

    /// The broken rule and block of a state, at its end if it is one.
    pub fn finding(&self, state: &State) -> Option<Finding> {
        let broken = self.engine.check(state).err();
        broken.or_else(|| {
            let finished = self.finished(state);
            finished.then(|| self.engine.check_final(state).err()).flatten()
        })
    }
}

impl Model for DelallocModel {
    type State = State;

    fn name(&self) -> String {
        let mutant = self.mutant.map(|id| format!("+{id}")).unwrap_or_default();
        format!("{}@{}{mutant}", self.scenario.name, self.engine.kernel)
    }

    fn identity(&self) -> u64 {
        // The programs and the initial state are all that a schedule's meaning depends on.
        let engine = &self.engine;
        let meaning = (&engine.programs, engine.geo, engine.kernel, self.initial);
        explorer::identity(&format!("{meaning:?}"))
    }

    fn threads(&self) -> usize {
        self.engine.actors()
    }

    fn initial(&self) -> State {
        self.initial
    }

    #[inline]
    fn enabled(&self, state: &State, out: &mut StepBuf) {
        self.engine.enabled(state, |thread, choice| out.push(thread, choice));
    }

    #[inline]
    fn apply(&self, state: &mut State, step: Step) {
        self.engine.apply(state, step.thread, step.choice);
    }

    #[inline]
    fn check(&self, state: &State, _last: Step) -> Result<(), InvariantId> {
        self.engine.check(state).map_err(DelallocModel::id)
    }

    /// A step that breaks a rule notes that in the state.
    #[inline]
    fn state_decides(&self) -> bool {
        true
    }

    fn finished(&self, state: &State) -> bool {
        self.engine.users_done(state)
    }

    fn check_final(&self, state: &State) -> Result<(), InvariantId> {
        self.engine.check_final(state).map_err(DelallocModel::id)
    }

    #[inline]
    fn fingerprint(&self, state: &State) -> u64 {
        state.fingerprint()
    }

    fn footprint(&self, state: &State, step: Step) -> explorer::Footprint {
        self.engine.footprint(state, step.thread, step.choice)
    }

    fn future(&self, state: &State, thread: u8) -> explorer::Footprint {
        self.engine.future(state, thread)
    }

    fn invariant(&self, id: InvariantId) -> String {
        match Invariant::nth(id.0) {
            Some(invariant) => invariant.name().to_owned(),
            None if id == InvariantId::DEADLOCK => "deadlock".to_owned(),
            None => format!("#{}", id.0),
        }
    }

    fn explain(&self, history: &[Step], state: &State, id: InvariantId) -> String {
        label::explain(self, history, state, id)
    }

    fn thread_name(&self, thread: u8) -> String {
        let slot = usize::from(thread);
        if slot == self.engine.worker() {
            "kworker".to_owned()
        } else if slot == self.engine.device() {
            "device".to_owned()
        } else if slot == self.engine.shrinker() {
            "shrinker".to_owned()
        } else {
            let ops = self.scenario.thread[slot].ops.iter();
            ops.map(crate::ops::Op::label).collect::<Vec<_>>().join("; ")
        }
    }

    fn step_label(&self, before: &State, step: Step) -> String {
        label::step(&self.engine, before, step.thread, step.choice)
    }

    fn held(&self, state: &State, thread: u8) -> String {
        label::held(&self.engine, state, thread)
    }

    fn changed(&self, before: &State, after: &State) -> String {
        label::changed(&self.engine, before, after)
    }
}
