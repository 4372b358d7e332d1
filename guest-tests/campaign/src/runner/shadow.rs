//! The delalloc shadow of one guest: what its kernel says goes in, findings come out by trial.
//!
//! In: a guest whose kernel is watched, the times of trials. Out: [`Noticed`].
//! Must not know: plans, hits.

use agent::wire::TraceOrder;
use pipeline::delalloc_shadow::{DelallocFinding, DelallocShadow, PROBES};
use pipeline::kernel::{KernelLine, parse_line};
use pipeline::{Event, Nanos};

use super::Noticed;
use crate::guest::{Guest, GuestError};
use crate::link::ClockMap;
use crate::timeline::{self, Parked};

/// Room for events that the agent has not sent yet, per processor.
const BUFFER_KIB: u32 = 4096;

/// When a trial took place, in nanoseconds of the guest's clock.
struct Window {
    arm: String,
    trial: u32,
    ended_ns: u64,
}

/// The shadow of one boot.
pub(super) struct Watch {
    shadow: DelallocShadow,
    batches: u64,
    lost_events: u64,
    windows: Vec<Window>,
}

impl Watch {
    /// Has the guest's kernel watched from now on; also gives what that kernel does not have.
    pub(super) fn start(guest: &mut Guest) -> Result<(Watch, Vec<String>), GuestError> {
        let missing = guest.watch_kernel(TraceOrder {
            id: 0,
            probes: PROBES.iter().map(ToString::to_string).collect(),
            events: Vec::new(),
            buffer_kib: BUFFER_KIB,
        })?;
        let shadow = DelallocShadow::new();
        Ok((Watch { shadow, batches: 0, lost_events: 0, windows: Vec::new() }, missing))
    }

    /// A trial is over.
    pub(super) fn trial(&mut self, arm: &str, trial: u32, ended_ns: u64) {
        self.windows.push(Window { arm: arm.to_owned(), trial, ended_ns });
    }

    /// Takes in what the kernel has said meanwhile; `events` are those of the device.
    pub(super) fn catch_up(
        &mut self,
        kernel: &str,
        guest: &mut Guest,
        events: &[Event],
    ) -> Result<Vec<Noticed>, GuestError> {
        let (watched, clock) = guest.take_watched()?;
        let parked = timeline::parked(events);
        let mut noticed = Vec::new();
        for (arrived, lines) in watched {
            // A batch that is missing may have said that something changed.
            if lines.batch != self.batches {
                self.shadow.lost();
            }
            self.batches = lines.batch + 1;
            for line in &lines.lines {
                match parse_line(line) {
                    KernelLine::Event(event) => {
                        let finding = self.shadow.step(&event);
                        noticed.extend(
                            finding.map(|finding| {
                                self.place(kernel, &finding, arrived, clock, &parked)
                            }),
                        );
                    }
                    KernelLine::Lost(events) => {
                        self.lost_events += events;
                        self.shadow.lost();
                    }
                    KernelLine::Other => {}
                }
            }
        }
        Ok(noticed)
    }

    /// How many events were taken in, and how many the kernel had no room for.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.shadow.events(), self.lost_events)
    }

    fn place(
        &self,
        kernel: &str,
        finding: &DelallocFinding,
        arrived: Nanos,
        clock: ClockMap,
        parked: &[Parked],
    ) -> Noticed {
        let at_ns = finding.by.at_us * 1000;
        // Trials follow each other: it happened in the first one that ended after it.
        let window = self.windows.iter().find(|window| at_ns <= window.ended_ns);
        let window = window.or(self.windows.last());
        let happened_ns = clock.to_device(at_ns);
        let after_ns = arrived.0.cast_signed().saturating_sub(happened_ns);
        // What either side may have waited for since it began.
        let since = [Some(&finding.by), finding.against.as_ref()].into_iter().flatten();
        let begun = since.map(|actor| actor.operation.map_or(actor.at_us, |(_, since)| since));
        let since_ns = clock.to_device(begun.min().unwrap_or_default() * 1000);
        let meanwhile = parked
            .iter()
            .filter(|parked| parked.to_ns >= since_ns && parked.from_ns <= happened_ns)
            .map(|parked| parked.text.clone())
            .collect();
        Noticed {
            kernel: kernel.to_owned(),
            arm: window.map(|window| window.arm.clone()).unwrap_or_default(),
            trial: window.map_or(0, |window| window.trial),
            rule: finding.rule.name(),
            text: finding.to_string(),
            parked: meanwhile,
            noticed_after_us: u64::try_from(after_ns / 1000).unwrap_or_default(),
        }
    }
}
