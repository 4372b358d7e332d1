//! The engine's shadows: when they are fed, and what becomes of their findings.
//!
//! In: requests under the engine's lock, events of one step. Out: findings as events and in the
//! daemon's log.
//! Must not know: what the shadows look for.

use ext4_layout::{Layout, LayoutMap};
use pipeline::event::LayoutChange;
use pipeline::shadow::{Arriving, Finding};
use pipeline::{Nanos, Outbox, Outcome, RequestId, What};

use super::state::State;
use super::{ArrivingRequest, Engine};

impl Engine {
    /// Starts the shadow without a log: it needs the layout.
    pub(super) fn begin_shadow(&self) {
        let mut guard = self.state();
        let now = guard.now(self.clock);
        let state = &mut *guard;
        self.open_layout(state, now, LayoutChange::Opened);
        self.carry_out(guard, None);
    }

    /// Whether the event log gets the bytes that the shadow sees.
    pub(super) fn records(&self, state: &State) -> bool {
        state.shadow.is_some() && self.sinks.has_log()
    }
}

/// A request arrived, and the map knows what it brings.
pub(super) fn arrive(
    state: &mut State,
    now: Nanos,
    request: &ArrivingRequest,
    bytes: Option<&[u8]>,
) {
    let (Some(shadow), Some(map)) = (&mut state.shadow, &state.map) else {
        return;
    };
    let ArrivingRequest { id, op, sector, sectors, .. } = *request;
    shadow.arrive(now, &Arriving { id, op, sector, sectors, bytes }, map);
    tell(state, now);
}

/// A request ended, and the map has what it did; `old` is the map before.
pub(super) fn complete(
    state: &mut State,
    now: Nanos,
    id: RequestId,
    outcome: Outcome,
    old: Option<&LayoutMap>,
) {
    let (Some(shadow), Some(map), Some(old)) = (&mut state.shadow, &state.map, old) else {
        return;
    };
    let commits = state.layout.as_mut().map(Layout::take_commits).unwrap_or_default();
    shadow.complete(now, id, outcome, (old, map), &commits);
    tell(state, now);
}

/// Shows the events of a step to the delalloc shadow: what it finds comes right behind them.
pub(super) fn follow(state: &mut State, outbox: &mut Outbox) {
    state.follower.observe(&outbox.events);
    if !state.follower.has_findings() {
        return;
    }
    let at = outbox.events.last().map_or(Nanos(0), |event| event.at);
    for finding in state.follower.take_findings() {
        warn(&finding);
        state.core.note(at, What::Finding(finding), outbox);
    }
}

fn tell(state: &mut State, now: Nanos) {
    let Some(shadow) = state.shadow.as_mut().filter(|shadow| shadow.has_findings()) else {
        return;
    };
    for finding in shadow.take_findings() {
        warn(&finding);
        state.core.note(now, What::Finding(finding), &mut state.outbox);
    }
}

fn warn(finding: &Finding) {
    tracing::warn!("finding {finding}");
}
