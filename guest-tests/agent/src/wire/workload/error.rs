//! Why a workload cannot be carried out.
//!
//! In: a mistake and its place. Out: one line that says what to change.
//! Must not know: how mistakes are found.

use thiserror::Error;

/// Why a workload cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WorkloadError {
    /// Two threads share a name, or one is called like a part of the workload.
    #[error("thread name \"{name}\" is taken; give each thread a name of its own")]
    ThreadName {
        /// The name.
        name: String,
    },
    /// `await_parked` names no thread of the workload.
    #[error("{place}: there is no thread \"{thread}\" to wait for")]
    UnknownThread {
        /// Where.
        place: String,
        /// The name.
        thread: String,
    },
    /// An operation uses a file that no `open` names.
    #[error("{place}: no `open` names the file \"{file}\"")]
    UnknownFile {
        /// Where.
        place: String,
        /// The name.
        file: String,
    },
    /// A number is outside what the agent accepts.
    #[error("{place}: `{field}` is {value}; at most {most} can be done")]
    TooMuch {
        /// Where.
        place: String,
        /// Field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The most that is accepted.
        most: u64,
    },
    /// A range is empty.
    #[error("{place}: `min_us` {min_us} is above `max_us` {max_us}")]
    Range {
        /// Where.
        place: String,
        /// Lower end.
        min_us: u64,
        /// Upper end.
        max_us: u64,
    },
    /// A thread operation stands outside threads.
    #[error("{place}: only threads can do this")]
    OutsideThread {
        /// Where.
        place: String,
    },
    /// A path leaves the mount point.
    #[error("{place}: path \"{path}\" must be relative and without \"..\"")]
    Path {
        /// Where.
        place: String,
        /// The path.
        path: String,
    },
}
