//! Replay: does the pipeline still decide what the log says it decided?
//!
//! In: the lines of an event log. Out: [`Replay`], with every difference.
//! Must not know: files, clocks, devices.
//!
//! The inputs of the log are fed to a fresh core with the rules and the seed of its first line,
//! each at its recorded time. Verified: every event that the core produces, in order, with its
//! time. Not verified: notes of the device layer, and what the guest saw.

use std::collections::VecDeque;

use thiserror::Error;

use crate::core::Core;
use crate::event::{Event, SCHEMA, What};
use crate::request::{Nanos, Request};
use crate::rules::{RuleSet, RulesError};
use crate::step::{Input, Outbox};
use ext4_layout::Span;

/// What a replay found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replay {
    /// Inputs that were fed in.
    pub inputs: u64,
    /// Events that the core made of them and that the log has too.
    pub agreed: u64,
    /// Where log and core part. After the first the rest may follow from it.
    pub differences: Vec<Difference>,
}

/// A place where the log and the core part.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Line of the log, from 1.
    pub line: usize,
    /// What the log has there; `None` if it lacks an event.
    pub recorded: Option<What>,
    /// What the core does there; `None` if it does nothing.
    pub replayed: Option<What>,
}

/// A log that cannot be replayed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// A line that is no event.
    #[error("line {line} is not an event of schema {SCHEMA}")]
    Line {
        /// Line of the log, from 1.
        line: usize,
        /// Why not.
        source: serde_json::Error,
    },
    /// The first line is not a `log` event.
    #[error("line 1 is not a `log` event; give a log from its first line")]
    NoHeader,
    /// Written by another version.
    #[error("the log has schema {found}, this program reads {SCHEMA}")]
    Schema {
        /// Schema of the log.
        found: u32,
    },
    /// The log began in the middle.
    #[error("the log began when requests had already come; record it from the start (--event-log)")]
    NotFromStart,
    /// The rules of the log are no rules.
    #[error("the rules at line {line} of the log cannot be read")]
    Rules {
        /// Line of the log, from 1.
        line: usize,
        /// Why not.
        source: RulesError,
    },
    /// A class without the fields that it must have.
    #[error("the request at line {line} has a class that lacks a field")]
    Class {
        /// Line of the log, from 1.
        line: usize,
    },
}

/// Replays a log, given line by line.
///
/// # Errors
/// A log that cannot be replayed at all; a log that replays differently is not an error.
pub fn replay<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Replay, ReplayError> {
    let mut replay = Replay::default();
    let mut out = Outbox::default();
    // What the core did and the log has not shown yet.
    let mut pending: VecDeque<Event> = VecDeque::new();
    let mut core: Option<Core> = None;
    let mut last = 0;
    for (index, text) in lines.into_iter().enumerate() {
        let line = index + 1;
        last = line;
        let event: Event =
            serde_json::from_str(text).map_err(|source| ReplayError::Line { line, source })?;
        let Some(core) = &mut core else {
            core = Some(begin(event.what, line, &mut out)?);
            continue;
        };
        if event.what.is_note() {
            continue;
        }
        if event.what.is_input() {
            while let Some(missed) = pending.pop_front() {
                replay.differ(line, None, Some(missed.what));
            }
            out.clear();
            feed(core, event.at, &event.what, line, &mut out)?;
            pending.extend(out.events.drain(..));
            replay.inputs += 1;
        }
        match pending.pop_front() {
            Some(replayed) if replayed.what == event.what && replayed.at == event.at => {
                replay.agreed += 1;
            }
            replayed => replay.differ(line, Some(event.what), replayed.map(|event| event.what)),
        }
    }
    // Whatever the core did beyond the last line is missing after it.
    for missed in pending {
        replay.differ(last + 1, None, Some(missed.what));
    }
    if core.is_none() {
        return Err(ReplayError::NoHeader);
    }
    Ok(replay)
}

impl Replay {
    fn differ(&mut self, line: usize, recorded: Option<What>, replayed: Option<What>) {
        self.differences.push(Difference { line, recorded, replayed });
    }
}

/// A core as it was when the log began.
fn begin(header: What, line: usize, out: &mut Outbox) -> Result<Core, ReplayError> {
    let What::Log { schema, seed, from_start, rules } = header else {
        return Err(ReplayError::NoHeader);
    };
    if schema != SCHEMA {
        return Err(ReplayError::Schema { found: schema });
    }
    if !from_start {
        return Err(ReplayError::NotFromStart);
    }
    let rules = RuleSet::from_text(&rules).map_err(|source| ReplayError::Rules { line, source })?;
    let mut core = Core::new(seed);
    core.load(Nanos(0), rules, out);
    core.set_logging(true);
    Ok(core)
}

/// Tells the core what it was told then.
fn feed(
    core: &mut Core,
    at: Nanos,
    what: &What,
    line: usize,
    out: &mut Outbox,
) -> Result<(), ReplayError> {
    let spans: Option<Vec<Span>>;
    let input = match what {
        What::Rules { rules } => {
            let rules =
                RuleSet::from_text(rules).map_err(|source| ReplayError::Rules { line, source })?;
            core.load(at, rules, out);
            return Ok(());
        }
        What::Request { id, queue, head, op, sector, sectors, classes } => {
            spans = classes.iter().map(crate::event::SpanRecord::to_span).collect();
            Input::Arrive(Request {
                id: *id,
                queue: *queue,
                head: *head,
                op: *op,
                sector: *sector,
                sectors: *sectors,
                spans: spans.as_deref().ok_or(ReplayError::Class { line })?,
            })
        }
        What::Complete { id, outcome, submitted } => {
            Input::Complete { id: *id, outcome: *outcome, submitted: *submitted }
        }
        What::AgentMark { name, guest_ns } => Input::AgentMark { name, guest_ns: *guest_ns },
        What::Release { rule } => Input::Release { rule: rule.as_deref() },
        What::Arm { rule, armed } => Input::Arm { rule, armed: *armed },
        What::Tick => Input::Tick,
        What::Disconnect => Input::Disconnect,
        // Not inputs; the caller feeds inputs only.
        What::Log { .. }
        | What::Decision { .. }
        | What::Released { .. }
        | What::Armed { .. }
        | What::ToldAgent { .. }
        | What::Agent { .. }
        | What::Layout { .. }
        | What::Finding(_)
        | What::Bytes { .. }
        | What::FirstStore { .. }
        | What::Protected { .. }
        | What::Lost { .. } => return Ok(()),
    };
    core.step(at, input, out);
    Ok(())
}

#[cfg(test)]
mod tests;
