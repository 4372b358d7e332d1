//! Who takes part in a run.
//!
//! In: a job and a length of time. Out: what was done in it.
//! Must not know: who they are.

use std::path::PathBuf;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::job::Job;

/// Longest latency that is told apart, in nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;

/// Backend, limit or other program that can be measured.
pub(super) trait Contender {
    /// As in the report.
    fn name(&self) -> &str;

    /// Does the job for about `window`. `None`: it cannot do such a job.
    fn run(&mut self, job: &Job, window: Duration) -> anyhow::Result<Option<Sample>>;
}

/// Where contenders put their things.
pub(super) struct Place {
    /// For sockets; goes away with everything in it.
    pub(super) folder: PathBuf,
    /// For images on a disk.
    pub(super) disk: PathBuf,
    /// An image that is there already.
    pub(super) image: Option<PathBuf>,
    /// Size of images.
    pub(super) bytes: u64,
    /// Most queues of any job.
    pub(super) queues: u16,
    /// Process of a backend that was started elsewhere.
    pub(super) pid: Option<u32>,
}

/// What was done in one window.
pub(super) struct Sample {
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) elapsed: Duration,
    /// In nanoseconds; empty where nobody measured it.
    pub(super) latencies: Histogram<u64>,
    /// Processor time of the backend, if it is known.
    pub(super) backend_cpu: Option<Duration>,
    /// Processor time of the threads that made the load.
    pub(super) client_cpu: Duration,
    /// Processors kept busy by nobody of this run.
    pub(super) others_cpus: f64,
    /// Processor time that a hypervisor took away meanwhile, of all processors together.
    pub(super) stolen: Duration,
}

impl Sample {
    /// Requests in a second.
    pub(super) fn rate(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }
}

/// An empty histogram of latencies in nanoseconds, to three digits.
pub(super) fn latencies() -> Histogram<u64> {
    // The arguments are constants that the crate accepts: see its documentation.
    Histogram::new_with_bounds(1, LONGEST_NS, 3)
        .unwrap_or_else(|_| unreachable!("bounds of a histogram"))
}
