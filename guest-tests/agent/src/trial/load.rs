//! Load: many writes to a device, reads and flushes of it that are timed, and a processor that
//! counts.
//!
//! In: what to write, what to wait for. Out: how far it came.
//! Must not know: who wants to know.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use agent::random_writes::{BLOCK_BYTES, RandomWrites};
use rustix::fs::OFlags;

use crate::clock;
use crate::link::Aligned;
use crate::meeting::{Meeting, Missed};

/// Carries out `writes` on the file at `path`; `durable` hears how many are after each fsync.
pub(super) fn write(
    path: &str,
    writes: RandomWrites,
    fsync_every: u64,
    durable: impl Fn(u64) -> io::Result<()>,
) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let mut last = 0;
    for write in writes {
        file.write_all_at(&write.content(), write.block * BLOCK_BYTES as u64)?;
        last = write.number;
        if last.is_multiple_of(fsync_every.max(1)) {
            file.sync_all()?;
            durable(last)?;
        }
    }
    file.sync_all()?;
    durable(last)
}

/// Reads pages past the page cache, with a pause before each, and says how long each took.
pub(super) fn time_reads(
    path: &str,
    offsets: impl Iterator<Item = u64>,
    pause: Duration,
) -> io::Result<String> {
    let direct = OFlags::DIRECT.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(direct).open(path)?;
    let mut buffer = Aligned::new();
    let page = buffer.bytes(BLOCK_BYTES);
    let mut times = String::new();
    for offset in offsets {
        clock::sleep(pause);
        time(&mut times, || file.read_exact_at(page, offset))?;
    }
    Ok(times)
}

/// Flushes a device, and says how long each flush took.
pub(super) fn time_syncs(path: &str, count: u32) -> io::Result<String> {
    let file = File::open(path)?;
    let mut times = String::new();
    for _ in 0..count {
        time(&mut times, || file.sync_all())?;
    }
    Ok(times)
}

/// Adds how long a call took, in nanoseconds.
fn time(times: &mut String, call: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let began_ns = clock::now_ns();
    call()?;
    let separator = if times.is_empty() { "" } else { " " };
    // Writing to a String does not fail.
    let _ = write!(times, "{separator}{}", clock::now_ns() - began_ns);
    Ok(())
}

/// How far a counting processor came.
pub(super) struct Count {
    /// Turns of the loop.
    pub(super) turns: u64,
    /// Longest time between two turns, in microseconds.
    pub(super) longest_gap_us: u64,
}

/// Counts until the signal is raised.
pub(super) fn count_until(
    meeting: &Meeting,
    signal: &str,
    limit: Duration,
) -> Result<Count, Missed> {
    let began_ns = clock::now_ns();
    let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
    let (mut turns, mut longest_gap_ns, mut last_ns) = (0, 0, began_ns);
    while !meeting.is_raised(signal) {
        if meeting.given_up() {
            return Err(Missed::GivenUp);
        }
        let now_ns = clock::now_ns();
        if now_ns - began_ns > limit_ns {
            return Err(Missed::TimedOut);
        }
        longest_gap_ns = longest_gap_ns.max(now_ns - last_ns);
        last_ns = now_ns;
        turns += 1;
    }
    Ok(Count { turns, longest_gap_us: longest_gap_ns / 1000 })
}
