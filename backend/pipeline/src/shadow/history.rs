//! The last requests, for the story of a finding.
//!
//! In: requests as they arrive and end. Out: those that touch a range. A fixed number is kept.

use std::collections::VecDeque;

use super::finding::Moment;
use crate::request::{Nanos, Op, RequestId};

/// Requests remembered: about 300 KiB.
const KEPT: usize = 4096;
/// Points of a story at most.
const STORY_MAX: usize = 24;

/// Names a remembered request for as long as it is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u64);

#[derive(Clone, Debug)]
struct Past {
    id: RequestId,
    op: Op,
    sector: u64,
    sectors: u64,
    at: Nanos,
    what: &'static str,
    end: Option<(Nanos, bool)>,
}

/// The last requests that the shadow was told of.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    past: VecDeque<Past>,
    first: u64,
}

impl History {
    pub(super) fn arrived(
        &mut self,
        at: Nanos,
        id: RequestId,
        op: Op,
        (sector, sectors): (u64, u64),
        what: &'static str,
    ) -> Place {
        if self.past.len() == KEPT {
            self.past.pop_front();
            self.first += 1;
        }
        self.past.push_back(Past { id, op, sector, sectors, at, what, end: None });
        Place(self.first + self.past.len() as u64 - 1)
    }

    pub(super) fn ended(&mut self, place: Place, at: Nanos, good: bool) {
        let index = place.0.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        if let Some(past) = index.and_then(|index| self.past.get_mut(index)) {
            past.end = Some((at, good));
        }
    }

    /// What happened to the sectors, with the named requests and the flushes in between.
    pub(super) fn story(&self, ranges: &[(u64, u64)], named: &[RequestId]) -> Vec<Moment> {
        let touches = |past: &Past| {
            named.contains(&past.id)
                || ranges.iter().any(|(sector, sectors)| {
                    past.sector < sector.saturating_add(*sectors)
                        && *sector < past.sector.saturating_add(past.sectors)
                })
        };
        let Some(from) = self.past.iter().position(touches) else {
            return Vec::new();
        };
        let chosen = |past: &&Past| touches(past) || past.op == Op::Flush;
        let mut points: Vec<&Past> = self.past.iter().skip(from).filter(chosen).collect();
        if let Some(surplus) = points.len().checked_sub(STORY_MAX) {
            // The beginning and the end of a long story; its middle repeats itself.
            points.drain(STORY_MAX / 2..STORY_MAX / 2 + surplus);
        }
        points.into_iter().map(moment).collect()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.past.capacity() * size_of::<Past>()
    }
}

fn moment(past: &Past) -> Moment {
    let end = match past.end {
        Some((at, true)) => format!("done after {} us", at.since(past.at) / 1000),
        Some((at, false)) => format!("failed after {} us", at.since(past.at) / 1000),
        None => "in flight".to_owned(),
    };
    let name = past.op.name();
    let what = match past.op {
        Op::Flush => format!("flush, {end}"),
        _ => format!("{name} {}+{} ({}), {end}", past.sector, past.sectors, past.what),
    };
    Moment { at: past.at, id: Some(past.id), what }
}
