//! Events, rules, gates and decisions: the part of racegate that is a pure function of what
//! happened.
//!
//! In: [`Input`]s, in one order. Out: [`Action`]s and events.
//! Must not know: virtqueues, guest memory, files, threads, clocks.
//!
//! ```text
//! request ─► Filter (lock-free) ─► Core::step ─► Outbox { actions, events }
//!                 no rule wants it: straight to storage
//! ```

#![forbid(unsafe_code)]

mod core;
mod delay;
mod draw;
mod errno;
mod filter;
mod nearest;
mod ranges;
mod replay;
mod request;
mod rules;
mod step;

pub mod control;
pub mod delalloc_shadow;
pub mod event;
pub mod kernel;
pub mod prometheus;
pub mod shadow;
pub mod traffic;

pub use core::{Core, Latency, RuleStats, Stats, UnknownRule};
pub use errno::{Errno, outcome_of};
pub use event::{Event, What};
pub use filter::{Filter, Want};
pub use replay::{Difference, Replay, ReplayError, replay};
pub use request::{Nanos, Op, Outcome, Request, RequestId};
pub use rules::{DEFAULT_HOLD_NS, LIMIT_NS, RULES_MAX, RuleSet, RulesError, RulesProblem};
pub use step::{Action, Input, Outbox};
