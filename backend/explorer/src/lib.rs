//! Search over the interleavings of a model.

mod model;
mod report;
mod rng;
mod schedule;

pub use model::{Footprint, InvariantId, Model, Step, StepBuf, THREADS_MAX, identity};
pub use report::{
    Bound, Coverage, OnProgress, Options, OptionsError, Progress, Report, Strategy, Violation,
};
pub use schedule::{Schedule, ScheduleError};
