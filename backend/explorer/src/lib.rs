//! Search over the interleavings of a model of threads.
//!
//! ```text
//!            Model: initial, enabled, apply, check, fingerprint, footprint
//!              │
//!  Options ─► explore ─► dfs      exhaustive, one worker, interleavings counted
//!              │         layers   exhaustive or reduced (order), many workers, bounds
//!              │         walk     random and PCT, many workers
//!              ▼
//!            shrink ─► Report { violations, coverage } ─► replay ─► Trace, to print
//! ```
//!
//! The model gives states by value; there is no hidden state, so any schedule can be replayed and
//! two searches with the same options give the same answer, on any number of workers. The crate
//! starts no thread, reads no clock and writes nothing: threads come from the caller
//! ([`Workers`]), who also measures time and prints.
//!
//! # Example
//!
//! Two threads add 1 to a counter without a lock: each loads it, then stores what it loaded plus
//! 1.
//!
//! ```
//! use explorer::{InvariantId, Model, OneWorker, Options, Step, StepBuf, explore};
//!
//! #[derive(Clone, PartialEq, Eq, Hash)]
//! struct State {
//!     counter: u8,
//!     /// By thread: steps taken, and the value loaded.
//!     threads: [(u8, u8); 2],
//! }
//!
//! struct LostUpdate;
//!
//! impl Model for LostUpdate {
//!     type State = State;
//!
//!     fn name(&self) -> String {
//!         "lost-update".to_owned()
//!     }
//!     fn identity(&self) -> u64 {
//!         explorer::identity("load, store")
//!     }
//!     fn threads(&self) -> usize {
//!         2
//!     }
//!     fn initial(&self) -> State {
//!         State { counter: 0, threads: [(0, 0); 2] }
//!     }
//!     fn enabled(&self, state: &State, out: &mut StepBuf) {
//!         for thread in 0..2 {
//!             if state.threads[usize::from(thread)].0 < 2 {
//!                 out.push(thread, 0);
//!             }
//!         }
//!     }
//!     fn apply(&self, state: &mut State, step: Step) {
//!         let (taken, loaded) = &mut state.threads[usize::from(step.thread)];
//!         match *taken {
//!             0 => *loaded = state.counter,
//!             _ => state.counter = *loaded + 1,
//!         }
//!         *taken += 1;
//!     }
//!     fn check(&self, _: &State, _: Step) -> Result<(), InvariantId> {
//!         Ok(())
//!     }
//!     fn check_final(&self, state: &State) -> Result<(), InvariantId> {
//!         if state.counter == 2 { Ok(()) } else { Err(InvariantId(0)) }
//!     }
//!     fn invariant(&self, _: InvariantId) -> String {
//!         "all-counted".to_owned()
//!     }
//!     fn explain(&self, _: &[Step], state: &State, _: InvariantId) -> String {
//!         format!("counter is {}, not 2", state.counter)
//!     }
//!     fn thread_name(&self, thread: u8) -> String {
//!         format!("adder {thread}")
//!     }
//!     fn step_label(&self, before: &State, step: Step) -> String {
//!         ["load", "store"][usize::from(before.threads[usize::from(step.thread)].0)].to_owned()
//!     }
//! }
//!
//! let options = Options { stop_at_first: false, ..Options::default() };
//! let report = explore(&LostUpdate, &options, &OneWorker, &mut |_| {
//!     std::ops::ControlFlow::Continue(())
//! })?;
//! // AABB, ABAB, ABBA, BAAB, BABA, BBAA; the four in the middle lose an update.
//! assert_eq!(report.coverage.interleavings, Some(6));
//! assert_eq!(report.coverage.interleavings_violating, Some(4));
//! let violation = &report.violations[0];
//! assert_eq!(violation.detail, "counter is 1, not 2");
//! assert!(violation.schedule.to_string().ends_with(":A-Bx2-A"));
//! # Ok::<(), explorer::OptionsError>(())
//! ```
//!
//! # Limitations
//!
//! - Steps are atomic and sequentially consistent; weak memory has to be modelled as steps.
//! - The visited set keeps 64-bit fingerprints: see [`Coverage::omission_probability`].
//! - Safety only: an invariant of a state, of a step or of an end. No liveness; a cycle is visited
//!   once and makes interleavings uncountable.
//! - A reduction is as good as the footprints: run [`audit`] on every model that declares them.
//! - Random strategies exhaust nothing and say so.

#![forbid(unsafe_code)]

mod audit;
mod dfs;
mod explore;
mod found;
mod layers;
mod model;
mod order;
mod replay;
mod report;
mod rng;
mod schedule;
mod shrink;
mod table;
mod walk;
mod workers;

pub use audit::{Audited, Fault, audit};
pub use explore::explore;
pub use model::{Footprint, InvariantId, Model, Step, StepBuf, THREADS_MAX, identity};
pub use replay::{Outcome, ReplayError, Row, Trace, replay};
pub use report::{
    Bound, Coverage, OnProgress, Options, OptionsError, Progress, Report, Strategy, Violation,
};
pub use schedule::{Schedule, ScheduleError};
pub use workers::{OneWorker, Workers};
