//! The contract between a model and the search.
//!
//! A model is a set of threads, each a little program of atomic steps over one shared state. It
//! says what it starts from, which steps may come next, what a step does, and whether the result
//! is allowed. It owns no clock, no randomness and no memory besides its state: the same state and
//! the same step always give the same result (`audit` proves that on samples).
//!
//! In: nothing. Out: [`Model`] and the small values that cross it.
//! Must not know: how the search visits states, what the steps mean.

use std::fmt;
use std::hash::{BuildHasher, Hash};

/// Largest number of threads in a model: schedules print a thread as one letter, and sets of
/// threads are 32-bit masks.
pub const THREADS_MAX: usize = 26;

/// One atomic step: which thread moves, and which of its alternatives it takes.
///
/// `choice` is 0 for a step without alternatives. A model uses other values where the outside
/// decides (an allocation fails, a device completes one of several requests, which block is given
/// out).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Step {
    /// Index of the thread, from 0, below [`Model::threads`].
    pub thread: u8,
    /// Which alternative of that thread.
    pub choice: u8,
}

/// The steps enabled in a state, in the order in which the model lists them.
///
/// One buffer serves a whole search, so that listing steps allocates nothing. The order has to be
/// a function of the state alone; steps of one thread should be adjacent.
#[derive(Default, Debug)]
pub struct StepBuf {
    steps: Vec<Step>,
}

impl StepBuf {
    /// Lists one enabled step.
    #[inline]
    pub fn push(&mut self, thread: u8, choice: u8) {
        self.steps.push(Step { thread, choice });
    }

    /// The steps listed so far.
    #[inline]
    pub fn as_slice(&self) -> &[Step] {
        &self.steps
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.steps.len()
    }

    #[inline]
    pub(crate) fn truncate(&mut self, len: usize) {
        self.steps.truncate(len);
    }
}

/// Number of an invariant within its model.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InvariantId(pub u16);

impl InvariantId {
    /// No thread can move and the model does not call the state finished. Reported by the search.
    pub const DEADLOCK: InvariantId = InvariantId(u16::MAX);
}

/// What a step reads and writes, as sets of small object numbers (bit n is object n).
///
/// Two steps of different threads are *dependent* if one writes what the other reads or writes.
/// For partial-order reduction to be sound a footprint has to cover:
/// - everything that the step reads or writes;
/// - everything that decides whether the step is enabled and which alternatives its thread has
///   besides it (the state of the lock that it takes, for instance);
/// - each invariant whose verdict the step can change, or that is evaluated on it: an invariant is
///   an object, and such a step writes it. Two steps that both move the value of one invariant are
///   thereby kept in both orders.
///
/// [`crate::audit`] checks the first two on sampled states.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Footprint {
    /// Objects read.
    pub reads: u128,
    /// Objects written.
    pub writes: u128,
}

impl Footprint {
    /// Touches nothing: what a finished thread will do.
    pub const NOTHING: Footprint = Footprint { reads: 0, writes: 0 };
    /// Touches everything: always correct, and allows no reduction.
    pub const EVERYTHING: Footprint = Footprint { reads: u128::MAX, writes: u128::MAX };

    /// Whether two footprints conflict.
    #[inline]
    pub fn conflicts(self, other: Footprint) -> bool {
        self.writes & (other.reads | other.writes) != 0 || other.writes & self.reads != 0
    }

    /// The union of two footprints.
    #[inline]
    #[must_use]
    pub fn with(self, other: Footprint) -> Footprint {
        Footprint { reads: self.reads | other.reads, writes: self.writes | other.writes }
    }

    /// Whether `other` touches nothing beyond this footprint (a write covers a read).
    #[inline]
    pub fn covers(self, other: Footprint) -> bool {
        other.writes & !self.writes == 0 && other.reads & !(self.reads | self.writes) == 0
    }
}

/// A small concurrent system that can be searched.
///
/// The four methods on the hot path are `enabled`, `apply`, `check` and `fingerprint`: they should
/// neither allocate nor format. Everything that makes text is called for a counterexample only.
pub trait Model: Sync {
    /// The whole state. Best a few plain words: it is cloned once a transition.
    type State: Clone + Eq + Hash + Send + Sync;

    /// Name of the model and of what is modelled, e.g. `mkwrite-fallocate@linux-5.10.223+M01`.
    /// Printed in schedules: no blanks, no colon.
    fn name(&self) -> String;

    /// Identity of the model's content: changes whenever the same schedule could mean something
    /// else (other operations, another initial state, another step structure). A schedule made for
    /// another identity is refused. [`crate::identity`] hashes a text for this.
    fn identity(&self) -> u64;

    /// Number of threads, at most [`THREADS_MAX`].
    fn threads(&self) -> usize;

    /// The state before the first step.
    fn initial(&self) -> Self::State;

    /// Lists the steps that can be taken in `state`.
    fn enabled(&self, state: &Self::State, out: &mut StepBuf);

    /// Takes a step that `enabled` listed for this state.
    fn apply(&self, state: &mut Self::State, step: Step);

    /// Evaluates the invariants on the state reached by `last`. A violation ends that branch: the
    /// search does not go on from a state that broke the rules.
    fn check(&self, state: &Self::State, last: Step) -> Result<(), InvariantId>;

    /// Whether the verdict of [`Model::check`] is the same whatever step led to the state. A search
    /// then judges a state at its first visit only.
    #[inline]
    fn state_decides(&self) -> bool {
        false
    }

    /// Whether a state without enabled steps is a proper end. If not it is a deadlock. The default
    /// accepts every such state.
    fn finished(&self, _state: &Self::State) -> bool {
        true
    }

    /// Evaluates what holds only at a proper end.
    fn check_final(&self, _state: &Self::State) -> Result<(), InvariantId> {
        Ok(())
    }

    /// 64 bits that stand for the state in the visited set. Equal states must give equal values;
    /// different states should give independent random-looking ones. A model that keeps a running
    /// hash in its state returns it here.
    #[inline]
    fn fingerprint(&self, state: &Self::State) -> u64 {
        foldhash::quality::FixedState::with_seed(0x7261_6365_6761_7465).hash_one(state)
    }

    /// What taking `step` in `state` reads and writes; see [`Footprint`] for what it has to cover.
    #[inline]
    fn footprint(&self, _state: &Self::State, _step: Step) -> Footprint {
        Footprint::EVERYTHING
    }

    /// Everything that `thread` may still read or write from `state` to its end, its next step
    /// included: a union over all its paths, coarse is fine. [`Footprint::NOTHING`] for a thread
    /// that is done. Lets the search run a thread alone while no other will ever meet it.
    #[inline]
    fn future(&self, _state: &Self::State, _thread: u8) -> Footprint {
        Footprint::EVERYTHING
    }

    /// Name of an invariant as the catalogue has it, e.g. `A3`.
    fn invariant(&self, id: InvariantId) -> String;

    /// Says in words what is wrong in `state`, reached by `history` from the initial state: which
    /// object, which values, which two steps conflict.
    fn explain(&self, history: &[Step], state: &Self::State, id: InvariantId) -> String;

    /// Name of a thread, e.g. `page_mkwrite(0)`: the head of its column.
    fn thread_name(&self, thread: u8) -> String;

    /// What `step` is in `before`, e.g. `down_write(i_data_sem)`.
    fn step_label(&self, before: &Self::State, step: Step) -> String;

    /// What `thread` holds in `state`, e.g. `i_rwsem W, handle`. Empty if nothing.
    fn held(&self, _state: &Self::State, _thread: u8) -> String {
        String::new()
    }

    /// What the step between the two states changed, e.g. `es[0]: H -> D`. Empty if nothing.
    fn changed(&self, _before: &Self::State, _after: &Self::State) -> String {
        String::new()
    }
}

/// A hash for [`Model::identity`]: stable across builds and machines (FNV-1a, 64 bits, with a
/// final mix), because schedules are kept in files.
pub fn identity(text: &str) -> u64 {
    let fnv = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    crate::rng::mix(fnv)
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", char::from(b'A' + self.thread % THREADS_MAX as u8))?;
        if self.choice != 0 {
            write!(f, ".{}", self.choice)?;
        }
        Ok(())
    }
}
