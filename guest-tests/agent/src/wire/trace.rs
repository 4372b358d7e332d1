//! Watching the guest's kernel: probes that the host asks for, and the lines they write.
//!
//! Must not know: what a probe is for.

use serde::{Deserialize, Serialize};

/// What to watch, from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceOrder {
    /// Chosen by the host; [`TraceStarted`] repeats it.
    pub id: u64,
    /// Probes as `kprobe_events` of tracefs takes them (kernel:
    /// `Documentation/trace/kprobetrace.rst`), in the group `racegate`. `{STRUCT.MEMBER}` becomes
    /// the offset of the member in bytes, with its sign, from the kernel's own type information;
    /// `{STRUCT.MEMBER-STRUCT.MEMBER}` the difference of two. ` if EXPRESSION` at the end is a filter
    /// (kernel: `Documentation/trace/events.rst`). Of several texts with ` || ` in between the first
    /// that the kernel takes is added: functions and members have other names in other versions.
    pub probes: Vec<String>,
    /// Tracepoints, as `GROUP/NAME`.
    pub events: Vec<String>,
    /// Size of the kernel's buffer per processor, in KiB.
    pub buffer_kib: u32,
}

/// The kernel is being watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceStarted {
    /// That of the order.
    pub id: u64,
    /// Probes and events that this kernel does not have, with the reason.
    pub missing: Vec<String>,
}

/// Lines of `trace_pipe`, in the kernel's order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceLines {
    /// Counts batches from 0; a gap means that one was lost on the way.
    pub batch: u64,
    /// The lines; the kernel writes `CPU:1 [LOST 12 EVENTS]` where its buffer overflowed. None: the
    /// kernel's buffers were empty.
    pub lines: Vec<String>,
    /// When they were sent, CLOCK_MONOTONIC of the guest in nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_ns: Option<u64>,
}
