//! A workload: what the guest does in one trial, as data.
//!
//! The agent knows operations, not plans: plan files hold these types, the host sends them as
//! they are.
//! Must not know: how an operation is carried out, and what counts as a hit.

mod error;
mod op;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use error::WorkloadError;

/// One trial's work: `setup`, then all `threads` at once, then `finish`; `cleanup` in any case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Before the threads start; the first failure ends the trial.
    #[serde(default)]
    pub setup: Vec<Op>,
    /// What runs side by side.
    #[serde(default, rename = "thread")]
    pub threads: Vec<Thread>,
    /// After all threads have ended without a failure.
    #[serde(default)]
    pub finish: Vec<Op>,
    /// Last of all, also after a failure; every operation is tried.
    #[serde(default)]
    pub cleanup: Vec<Op>,
}

/// One operating-system thread of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thread {
    /// Its name, in reports and for `await_parked`.
    pub name: String,
    /// The processor that it runs on, counted round those that the guest has; any if not given.
    /// Where a held page stops a processor, the other threads must run on another.
    #[serde(default)]
    pub cpu: Option<u32>,
    /// What it does, in order; the first failure ends the trial.
    pub ops: Vec<Op>,
}

/// One operation. Files are known by the name that `open` gave them; paths are relative to the
/// mount point; offsets and lengths are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    /// Mount the main disk as ext4.
    Mount {
        /// As after `mount -o`; flags such as `noatime` included. `5.13+OPTION` is an option for
        /// kernels from 5.13 on.
        #[serde(default)]
        options: String,
    },
    /// Unmount it.
    Umount {},
    /// Mount it again with other options (`mount -o remount`).
    Remount {
        /// As for `mount`.
        options: String,
        /// A kernel may refuse: the trial goes on.
        #[serde(default)]
        may_fail: bool,
    },
    /// Mount it unless it is.
    EnsureMounted {
        /// As for `mount`.
        #[serde(default)]
        options: String,
    },
    /// Open a file for reading and writing.
    Open {
        /// Name for the other operations.
        file: String,
        /// Path below the mount point.
        path: String,
        /// Create it if it is missing.
        #[serde(default)]
        create: bool,
        /// O_DIRECT.
        #[serde(default)]
        direct: bool,
        /// O_SYNC.
        #[serde(default)]
        sync: bool,
    },
    /// Close a file and drop its mapping.
    Close {
        /// Which.
        file: String,
    },
    /// Remove a path.
    Unlink {
        /// Path below the mount point.
        path: String,
    },
    /// Create files `PREFIX0`, `PREFIX1`, ... of one byte each; those that exist are left alone.
    Fill {
        /// Path below the mount point, without the number.
        prefix: String,
        /// How many.
        count: u32,
    },
    /// ftruncate.
    Truncate {
        /// Which file.
        file: String,
        /// New length.
        bytes: u64,
    },
    /// fallocate.
    Fallocate {
        /// Which file.
        file: String,
        /// `allocate`, `keep_size`, `punch_hole`, `zero_range`, `zero_range_keep_size`,
        /// `collapse_range` or `insert_range`.
        #[serde(default)]
        mode: FallocateMode,
        /// Start.
        #[serde(default)]
        offset: u64,
        /// Length.
        bytes: u64,
    },
    /// Map a file, shared and writable. Touches no page.
    Map {
        /// Which file.
        file: String,
        /// Length of the mapping, from offset 0 of the file.
        bytes: u64,
    },
    /// Store one byte through the mapping: the processor faults if the page is not writable yet.
    Store {
        /// Which file.
        file: String,
        /// Where.
        #[serde(default)]
        offset: u64,
        /// What.
        value: u8,
    },
    /// pwrite.
    Write {
        /// Which file.
        file: String,
        /// Start.
        #[serde(default)]
        offset: u64,
        /// Length.
        bytes: u64,
        /// The byte that is written over and over.
        #[serde(default)]
        fill: u8,
    },
    /// pread, and compare if `expect` is given.
    Read {
        /// Which file.
        file: String,
        /// Start.
        #[serde(default)]
        offset: u64,
        /// Length.
        bytes: u64,
        /// Every byte must be this one.
        #[serde(default)]
        expect: Option<u8>,
    },
    /// Submit a pwrite and go on (io_uring). One for each file at a time.
    BeginWrite {
        /// Which file.
        file: String,
        /// Start.
        #[serde(default)]
        offset: u64,
        /// Length.
        bytes: u64,
        /// The byte that is written over and over.
        #[serde(default)]
        fill: u8,
    },
    /// Wait for what `begin_write` submitted.
    EndWrite {
        /// Which file.
        file: String,
    },
    /// pread, and into the result how many bytes are not the one they should be. Bytes beyond the
    /// end of the file are not.
    CountWrong {
        /// Which file.
        file: String,
        /// Start.
        #[serde(default)]
        offset: u64,
        /// Length.
        bytes: u64,
        /// What every byte should be.
        expect: u8,
        /// Name of the value in the result.
        name: String,
    },
    /// lseek(SEEK_DATA) into the result: where data begins at or after the offset, or `none`.
    SeekData {
        /// Which file.
        file: String,
        /// From where.
        #[serde(default)]
        offset: u64,
        /// Name of the value in the result.
        name: String,
    },
    /// pwrite of bytes that lie in another file's mapping. A page that is not in memory when the
    /// kernel copies makes it a short write; how much was written is no failure.
    WriteMapped {
        /// Which file is written to.
        file: String,
        /// Start.
        #[serde(default)]
        offset: u64,
        /// Length.
        bytes: u64,
        /// The file in whose mapping the bytes are.
        from: String,
        /// Where in that mapping.
        #[serde(default)]
        from_offset: u64,
        /// Name of the value in the result: how many bytes were written by the first call.
        name: String,
    },
    /// madvise(MADV_DONTNEED) of a part of a mapping: its pages leave the address space, not the
    /// page cache.
    DropMapped {
        /// Whose mapping.
        file: String,
        /// Start.
        #[serde(default)]
        offset: u64,
        /// Length.
        bytes: u64,
    },
    /// fsync.
    Fsync {
        /// Which file.
        file: String,
    },
    /// fsync that may fail, as after a write that the disk failed: the trial goes on.
    TryFsync {
        /// Which file.
        file: String,
        /// Name of a value in the result: 0, or the number of the error.
        #[serde(default)]
        name: Option<String>,
    },
    /// msync(MS_SYNC) of a mapping, from its start.
    Msync {
        /// Which file.
        file: String,
        /// Length.
        bytes: u64,
    },
    /// syncfs of the mount point.
    Syncfs {},
    /// Stop the file system as a power cut would (EXT4_IOC_SHUTDOWN): what is in memory stays there,
    /// and so does what was not committed. After it only `umount` works.
    Shutdown {},
    /// Sleep for a time drawn evenly from a range by the trial's seed.
    Delay {
        /// Shortest, in microseconds.
        min_us: u64,
        /// Longest, in microseconds.
        max_us: u64,
    },
    /// Wait for all threads that have a barrier of this name.
    Barrier {
        /// Which.
        name: String,
    },
    /// Raise a signal for the other threads of the trial.
    Signal {
        /// Which.
        name: String,
    },
    /// Wait for a signal, from another thread or from the host (`held:RULE`).
    Await {
        /// Which.
        signal: String,
        /// Give the trial up after this many milliseconds.
        limit_ms: u64,
    },
    /// Tell the host that this point was reached; rules know it as `agent:NAME`.
    Mark {
        /// Name of the mark.
        name: String,
    },
    /// Wait until a thread sleeps uninterruptibly with all these functions on its kernel stack.
    AwaitParked {
        /// Name of the thread.
        thread: String,
        /// Functions, as `/proc/PID/stack` names them, without offsets.
        within: Vec<String>,
        /// Give the trial up after this many milliseconds.
        limit_ms: u64,
    },
    /// Write blocks of 4096 bytes to a device or file, in an order drawn by the trial's seed, and
    /// fsync after every few of them. Each block holds its number and that of the write, over and
    /// over, as 64-bit little-endian words. After every fsync the host is told `synced:N`: the
    /// first N writes are durable.
    WriteRandomly {
        /// Absolute path; `{disk}` becomes the kernel name of the main disk.
        path: String,
        /// Blocks to choose from, from the start of the file.
        blocks: u64,
        /// How many writes.
        writes: u64,
        /// Writes between two fsync calls.
        fsync_every: u64,
    },
    /// Read pages of 4096 bytes of a device one after the other, past the page cache, and enter
    /// into the result how long each took, in nanoseconds, separated by spaces.
    TimeReads {
        /// Absolute path; `{disk}` becomes the kernel name of the main disk.
        path: String,
        /// Offset of the first page.
        offset: u64,
        /// From one page to the next.
        step: u64,
        /// How many pages.
        count: u32,
        /// Sleep between two of them, in microseconds.
        pause_us: u64,
        /// Name of the value in the result.
        name: String,
    },
    /// fsync a device again and again, and enter into the result how long each took, in
    /// nanoseconds, separated by spaces.
    TimeSyncs {
        /// Absolute path; `{disk}` becomes the kernel name of the main disk.
        path: String,
        /// How often.
        count: u32,
        /// Name of the value in the result.
        name: String,
    },
    /// Count until a signal comes: shows that this processor runs. The result has the count under
    /// the name, and the longest pause between two counts under `NAME_gap_us`.
    CountUntil {
        /// Which signal.
        signal: String,
        /// Name of the values in the result.
        name: String,
        /// Give the trial up after this many milliseconds.
        limit_ms: u64,
    },
    /// Read a small file of the kernel into the result.
    ReadValue {
        /// Absolute path; `{disk}` becomes the kernel name of the main disk.
        path: String,
        /// Name of the value in the result.
        name: String,
    },
    /// Write a setting of the kernel.
    WriteValue {
        /// Absolute path; `{disk}` becomes the kernel name of the main disk.
        path: String,
        /// What to write.
        value: String,
    },
}

/// Mode of a fallocate call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FallocateMode {
    /// 0: allocate, and extend the file if the range ends beyond it.
    #[default]
    Allocate,
    /// FALLOC_FL_KEEP_SIZE.
    KeepSize,
    /// FALLOC_FL_PUNCH_HOLE with FALLOC_FL_KEEP_SIZE.
    PunchHole,
    /// FALLOC_FL_ZERO_RANGE.
    ZeroRange,
    /// FALLOC_FL_ZERO_RANGE with FALLOC_FL_KEEP_SIZE.
    ZeroRangeKeepSize,
    /// FALLOC_FL_COLLAPSE_RANGE.
    CollapseRange,
    /// FALLOC_FL_INSERT_RANGE.
    InsertRange,
}

/// Names that [`super::Step::thread`] uses for the parts outside threads.
const PARTS: [&str; 3] = ["setup", "finish", "cleanup"];

impl Workload {
    /// Checks what types cannot: names that must fit together, and limits.
    ///
    /// # Errors
    /// The first mistake, with its place.
    pub fn check(&self) -> Result<(), WorkloadError> {
        let mut threads = BTreeSet::new();
        for Thread { name, .. } in &self.threads {
            if PARTS.contains(&name.as_str()) || !threads.insert(name.as_str()) {
                return Err(WorkloadError::ThreadName { name: name.clone() });
            }
        }
        let files: BTreeSet<&str> = self
            .parts()
            .flat_map(|(_, ops)| ops)
            .filter_map(|op| match op {
                Op::Open { file, .. } => Some(file.as_str()),
                _ => None,
            })
            .collect();
        for (part, ops) in self.parts() {
            for (index, op) in ops.iter().enumerate() {
                let place = || format!("{part}, operation {} ({})", index + 1, op.label());
                op.check(&place, &threads, &files, !PARTS.contains(&part))?;
            }
        }
        Ok(())
    }

    /// How many threads wait at the barrier of that name.
    pub fn parties(&self, barrier: &str) -> usize {
        let waits = |op: &Op| matches!(op, Op::Barrier { name } if name == barrier);
        self.threads.iter().filter(|thread| thread.ops.iter().any(waits)).count()
    }

    /// Whether some operation reads a value of that name.
    pub fn reads(&self, value: &str) -> bool {
        let reads = |op: &Op| {
            matches!(op, Op::ReadValue { name, .. } | Op::CountUntil { name, .. }
                | Op::SeekData { name, .. } | Op::WriteMapped { name, .. }
                | Op::CountWrong { name, .. }
                | Op::TryFsync { name: Some(name), .. } if name == value)
        };
        self.parts().flat_map(|(_, ops)| ops).any(reads)
    }

    fn parts(&self) -> impl Iterator<Item = (&str, &[Op])> {
        let threads = self.threads.iter().map(|t| (t.name.as_str(), t.ops.as_slice()));
        std::iter::once(("setup", self.setup.as_slice()))
            .chain(threads)
            .chain([("finish", self.finish.as_slice()), ("cleanup", self.cleanup.as_slice())])
    }
}

#[cfg(test)]
mod tests;
