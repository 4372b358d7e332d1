//! The link: frames on a disk, and the messages in them.
//!
//! The link disk is [`LINK_SECTORS`] sectors long and stores nothing. The guest writes one
//! [`ToHost`] frame at [`TO_HOST_SECTOR`] and reads one [`ToGuest`] frame of up to [`MAX_FRAME`]
//! bytes at [`TO_GUEST_SECTOR`]; such a read is answered when the host has something to say, or
//! with an empty frame after [`POLL_LIMIT_MS`] at the latest.
//!
//! In: bytes from the other side, untrusted. Out: messages, or the reason why they are none.
//! Must not know: disks, threads, clocks.

mod frame;
mod lists;
mod message;
mod trace;
mod workload;

pub use frame::{Frame, FrameError, HEADER_BYTES, MAX_FRAME, MAX_PAYLOAD, VERSION};
pub use frame::{decode, decode_message, encode, encode_empty, encode_message};
pub use lists::{Call, List, ListResult, Lists, MOST_BLOCKS, Run, Seen};
pub use message::{ClockSpan, KernelLine, Step, Stream, ToGuest, ToHost, Trial, TrialResult};
pub use trace::{TraceLines, TraceOrder, TraceStarted};
pub use workload::{FallocateMode, Op, Thread, Workload, WorkloadError};

/// Length of the link disk in 512-byte sectors.
pub const LINK_SECTORS: u64 = 4096;

/// First sector of a write from the guest.
pub const TO_HOST_SECTOR: u64 = 0;

/// First sector of a poll by the guest.
pub const TO_GUEST_SECTOR: u64 = 2048;

/// A poll is answered within this many milliseconds, be it with an empty frame. Far below
/// `hung_task_timeout_secs` of the guest (120 s by default).
pub const POLL_LIMIT_MS: u64 = 2000;
