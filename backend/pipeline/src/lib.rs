//! Events, rules, gates and decisions: the part of racegate that is a pure function of what
//! happened.
//!
//! In: [`Input`]s, in one order. Out: [`Action`]s and events.
//! Must not know: virtqueues, guest memory, files, threads, clocks.

#![forbid(unsafe_code)]

mod request;
mod step;

pub use request::{Nanos, Op, Outcome, Request, RequestId};
pub use step::{Action, Input};
