//! The shadows of one guest: which rules they check, and their findings by trial.
//!
//! In: a guest, findings of its disk's backend. Out: [`Noticed`].
//! Must not know: plans, hits.

use agent::wire::{Op, TraceOrder, Workload};
use pipeline::Nanos;
use pipeline::control::{Request, Response};
use pipeline::delalloc_shadow::{self, FollowerStats, PROBES};
use pipeline::shadow::Finding;

use super::Noticed;
use crate::guest::{Guest, GuestError};
use crate::timeline;

/// Room for events that the agent has not sent yet, per processor.
const BUFFER_KIB: u32 = 4096;

/// Has the guest's kernel watched from now on; gives what that kernel does not have.
pub(super) fn start(guest: &mut Guest, workload: &Workload) -> Result<Vec<String>, GuestError> {
    // Before Linux 5.15 a stack ends at the first function whose return is probed. A workload that
    // looks for functions on the stack of a thread that waits must find those above the lock's.
    let looks = |op: &Op| matches!(op, Op::AwaitParked { .. });
    let looks = workload.threads.iter().any(|thread| thread.ops.iter().any(looks));
    let of_timeline: &[&str] = if looks { &[] } else { &timeline::PROBES };
    // They come last: without one of them the shadow sees as much as before.
    let probes = PROBES.iter().chain(of_timeline);
    let missing = guest.watch_kernel(TraceOrder {
        id: 0,
        probes: probes.map(ToString::to_string).collect(),
        events: Vec::new(),
        buffer_kib: BUFFER_KIB,
    })?;
    let needed = |probe: &String| !probe.contains(" rwsem_down_") && delalloc_shadow::needed(probe);
    Ok(missing.into_iter().filter(needed).collect())
}

/// How much the delalloc shadow has seen of the guest's kernel, and what it checks.
pub(super) fn stats(guest: &mut Guest) -> Result<FollowerStats, GuestError> {
    match guest.control().call(&Request::Stats)? {
        Response::Stats(stats) => Ok(stats.kernel.unwrap_or_default()),
        _ => Ok(FollowerStats::default()),
    }
}

/// A finding as a part of a trial; `told` is when the backend had it.
pub(super) fn noticed(
    kernel: &str,
    arm: &str,
    trial: u32,
    told: Nanos,
    finding: &Finding,
) -> Noticed {
    // The last moment of a finding's story is what broke the rule.
    let happened = finding.timeline.last().map_or(told, |moment| moment.at);
    let parked = finding.timeline.iter().filter(|moment| moment.id.is_some());
    Noticed {
        kernel: kernel.to_owned(),
        arm: arm.to_owned(),
        trial,
        rule: finding.rule.clone(),
        text: finding.to_string(),
        parked: parked.map(|moment| moment.what.clone()).collect(),
        noticed_after_us: told.since(happened) / 1000,
    }
}
