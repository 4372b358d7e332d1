//! The conversation with the agent, as the host sees it: messages in the backend's event stream,
//! orders through its control socket, and the guest's clock against the device's.
//!
//! In: events. Out: messages with the time at which the device had them; a [`ClockMap`].
//! Must not know: virtual machines, trials.

use agent::wire::{ClockSpan, ToHost};
use pipeline::{Event, Nanos, What};
use serde::{Deserialize, Serialize};

/// The agent's message in an event, if it is one. `Err` carries what could not be understood.
pub fn message_of(event: &Event) -> Option<Result<ToHost, String>> {
    let What::Agent { message } = &event.what else {
        return None;
    };
    let understood = ToHost::deserialize(message);
    Some(understood.map_err(|error| format!("{error}: {message}")))
}

/// From the guest's CLOCK_MONOTONIC to the device's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ClockMap {
    /// Device time minus guest time, in nanoseconds.
    pub offset_ns: i64,
    /// The true offset is at most this far away.
    pub error_ns: u64,
}

impl ClockMap {
    /// The device's time at a time of the guest.
    pub fn to_device(self, guest_ns: u64) -> i64 {
        guest_ns.cast_signed().wrapping_add(self.offset_ns)
    }
}

/// Rounds of [`ToHost::Clock`] on their way to a [`ClockMap`].
///
/// The device stamps a message between the guest's `before` and `after`, so each round bounds the
/// offset by half of its duration; the shortest round bounds it best.
#[derive(Clone, Debug, Default)]
pub struct ClockSync {
    last: Option<(u32, Nanos)>,
    best: Option<ClockMap>,
}

impl ClockSync {
    /// Takes in one round: its number, when the device had it, and the span of the round before.
    pub fn round(&mut self, round: u32, at: Nanos, previous: Option<ClockSpan>) {
        if let (Some((last, arrived)), Some(span)) = (self.last, previous)
            && last.checked_add(1) == Some(round)
            && span.before_ns <= span.after_ns
        {
            let half = (span.after_ns - span.before_ns).div_ceil(2);
            let middle = span.before_ns + half;
            let map = ClockMap {
                offset_ns: arrived.0.cast_signed().wrapping_sub(middle.cast_signed()),
                error_ns: half,
            };
            if self.best.is_none_or(|best| map.error_ns < best.error_ns) {
                self.best = Some(map);
            }
        }
        self.last = Some((round, at));
    }

    /// The best of the rounds so far.
    pub fn map(&self) -> Option<ClockMap> {
        self.best
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_found_and_misunderstandings_told() {
        let event = |message| Event { seq: 1, at: Nanos(5), what: What::Agent { message } };
        let bye = event(serde_json::json!({"kind": "bye"}));
        assert_eq!(message_of(&bye), Some(Ok(ToHost::Bye)));
        let strange = event(serde_json::json!({"kind": "sing"}));
        assert!(message_of(&strange).unwrap().unwrap_err().contains("sing"));
        assert_eq!(message_of(&Event { seq: 1, at: Nanos(5), what: What::Tick }), None);
    }

    proptest! {
        /// Whatever the delays, the true offset lies within the stated error.
        #[test]
        fn the_bound_holds(
            offset in -1_000_000_000_000i64..1_000_000_000_000,
            start in 2_000_000_000_000u64..3_000_000_000_000,
            rounds in prop::collection::vec((0u64..5_000_000, 0u64..5_000_000), 2..20),
        ) {
            let mut sync = ClockSync::default();
            let (mut now, mut previous) = (start, None);
            for (n, (there, back)) in rounds.into_iter().enumerate() {
                let arrived = (now + there).checked_add_signed(offset).unwrap();
                sync.round(n as u32, Nanos(arrived), previous);
                previous = Some(ClockSpan { before_ns: now, after_ns: now + there + back });
                now += there + back;
            }
            let map = sync.map().unwrap();
            prop_assert!(map.offset_ns.abs_diff(offset) <= map.error_ns);
        }
    }
}
