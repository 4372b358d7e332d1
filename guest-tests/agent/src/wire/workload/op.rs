//! One operation: in few words, and whether it can be right.
//!
//! In: an operation, the names that its workload knows. Out: its label, or its mistake.
//! Must not know: how an operation is carried out.

use std::collections::BTreeSet;

use super::{Op, WorkloadError};

/// Longest wait that an operation may ask for, in milliseconds.
const LONGEST_WAIT_MS: u64 = 60_000;
/// Longest buffer that `write` and `read` may ask for, in bytes.
const LONGEST_BUFFER: u64 = 16 << 20;
/// Most blocks that `write_randomly` may choose from.
const MOST_BLOCKS: u64 = 1 << 32;
/// Most writes of one `write_randomly`.
const MOST_WRITES: u64 = 10_000_000;
/// Most latencies of one `time_reads` or `time_syncs`: what fits a frame.
const MOST_TIMES: u64 = 4096;
impl Op {
    /// The operation in few words, for reports: `fallocate raced 0+4096`.
    pub fn label(&self) -> String {
        match self {
            Op::Mount { options } => format!("mount {options}"),
            Op::Umount {} => "umount".into(),
            Op::Remount { options, .. } => format!("remount {options}"),
            Op::EnsureMounted { options } => format!("ensure_mounted {options}"),
            Op::Open { path, .. } => format!("open {path}"),
            Op::Close { file } => format!("close {file}"),
            Op::Unlink { path } => format!("unlink {path}"),
            Op::Fill { prefix, count } => format!("fill {prefix}0..{count}"),
            Op::Truncate { file, bytes } => format!("truncate {file} {bytes}"),
            Op::Fallocate { file, offset, bytes, .. } => {
                format!("fallocate {file} {offset}+{bytes}")
            }
            Op::Map { file, bytes } => format!("map {file} 0+{bytes}"),
            Op::Store { file, offset, .. } => format!("store {file} {offset}"),
            Op::Write { file, offset, bytes, .. } => format!("write {file} {offset}+{bytes}"),
            Op::BeginWrite { file, offset, bytes, .. } => {
                format!("begin_write {file} {offset}+{bytes}")
            }
            Op::EndWrite { file } => format!("end_write {file}"),
            Op::Read { file, offset, bytes, .. } => format!("read {file} {offset}+{bytes}"),
            Op::CountWrong { file, offset, bytes, .. } => {
                format!("count_wrong {file} {offset}+{bytes}")
            }
            Op::SeekData { file, offset, .. } => format!("seek_data {file} {offset}"),
            Op::WriteMapped { file, offset, bytes, .. } => {
                format!("write_mapped {file} {offset}+{bytes}")
            }
            Op::DropMapped { file, offset, bytes } => {
                format!("drop_mapped {file} {offset}+{bytes}")
            }
            Op::Fsync { file } => format!("fsync {file}"),
            Op::TryFsync { file, .. } => format!("try_fsync {file}"),
            Op::Msync { file, bytes } => format!("msync {file} 0+{bytes}"),
            Op::Syncfs {} => "syncfs".into(),
            Op::Shutdown {} => "shutdown".into(),
            Op::Delay { min_us, max_us } => format!("delay {min_us}..{max_us} us"),
            Op::Barrier { name } => format!("barrier {name}"),
            Op::Signal { name } => format!("signal {name}"),
            Op::Await { signal, .. } => format!("await {signal}"),
            Op::Mark { name } => format!("mark {name}"),
            Op::AwaitParked { thread, .. } => format!("await_parked {thread}"),
            Op::WriteRandomly { path, writes, .. } => format!("write_randomly {path} {writes}"),
            Op::TimeReads { path, offset, count, .. } => {
                format!("time_reads {path} {offset} {count}")
            }
            Op::TimeSyncs { path, count, .. } => format!("time_syncs {path} {count}"),
            Op::CountUntil { signal, .. } => format!("count_until {signal}"),
            Op::ReadValue { name, .. } => format!("read_value {name}"),
            Op::WriteValue { path, value } => format!("write_value {path} {value}"),
        }
    }

    pub(super) fn check(
        &self,
        place: &dyn Fn() -> String,
        threads: &BTreeSet<&str>,
        files: &BTreeSet<&str>,
        in_thread: bool,
    ) -> Result<(), WorkloadError> {
        let known = |file: &String| {
            if files.contains(file.as_str()) {
                return Ok(());
            }
            Err(WorkloadError::UnknownFile { place: place(), file: file.clone() })
        };
        let inside = |path: &String| {
            let stays = !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | ".."));
            if stays {
                return Ok(());
            }
            Err(WorkloadError::Path { place: place(), path: path.clone() })
        };
        let at_most = |field, value, most| {
            if value <= most {
                return Ok(());
            }
            Err(WorkloadError::TooMuch { place: place(), field, value, most })
        };
        match self {
            Op::Open { path, .. } | Op::Unlink { path } => inside(path),
            Op::Fill { prefix, count } => {
                inside(prefix)?;
                at_most("count", u64::from(*count), 4096)
            }
            Op::Write { file, bytes, .. }
            | Op::BeginWrite { file, bytes, .. }
            | Op::Read { file, bytes, .. }
            | Op::CountWrong { file, bytes, .. } => {
                known(file)?;
                at_most("bytes", *bytes, LONGEST_BUFFER)
            }
            Op::Close { file }
            | Op::EndWrite { file }
            | Op::Truncate { file, .. }
            | Op::Fallocate { file, .. }
            | Op::Map { file, .. }
            | Op::Store { file, .. }
            | Op::Msync { file, .. }
            | Op::SeekData { file, .. }
            | Op::DropMapped { file, .. }
            | Op::TryFsync { file, .. }
            | Op::Fsync { file } => known(file),
            Op::WriteMapped { file, from, .. } => known(file).and_then(|()| known(from)),
            Op::Delay { min_us, max_us } => {
                if min_us > max_us {
                    let (min_us, max_us) = (*min_us, *max_us);
                    return Err(WorkloadError::Range { place: place(), min_us, max_us });
                }
                at_most("max_us", *max_us, LONGEST_WAIT_MS * 1000)
            }
            Op::Barrier { .. } if !in_thread => {
                Err(WorkloadError::OutsideThread { place: place() })
            }
            Op::Await { limit_ms, .. } | Op::CountUntil { limit_ms, .. } => {
                at_most("limit_ms", *limit_ms, LONGEST_WAIT_MS)
            }
            Op::WriteRandomly { blocks, writes, .. } => {
                at_most("blocks", *blocks, MOST_BLOCKS)?;
                at_most("writes", *writes, MOST_WRITES)
            }
            Op::TimeReads { count, pause_us, .. } => {
                at_most("pause_us", *pause_us, LONGEST_WAIT_MS * 1000)?;
                at_most("count", u64::from(*count), MOST_TIMES)
            }
            Op::TimeSyncs { count, .. } => at_most("count", u64::from(*count), MOST_TIMES),
            Op::AwaitParked { thread, limit_ms, .. } => {
                if !in_thread {
                    return Err(WorkloadError::OutsideThread { place: place() });
                }
                if !threads.contains(thread.as_str()) {
                    let thread = thread.clone();
                    return Err(WorkloadError::UnknownThread { place: place(), thread });
                }
                at_most("limit_ms", *limit_ms, LONGEST_WAIT_MS)
            }
            Op::Mount { .. }
            | Op::Umount {}
            | Op::Remount { .. }
            | Op::EnsureMounted { .. }
            | Op::Syncfs {}
            | Op::Shutdown {}
            | Op::Barrier { .. }
            | Op::Signal { .. }
            | Op::Mark { .. }
            | Op::ReadValue { .. }
            | Op::WriteValue { .. } => Ok(()),
        }
    }
}
