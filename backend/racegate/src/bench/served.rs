//! A backend behind a socket.
//!
//! In: a command that starts it, or the socket of one that runs. Out: samples.
//! Must not know: which backend it is.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use campaign::interrupt;
use campaign::process::Running;
use device::client::{Client, ClientError, ClientOptions, ClientQueue};
use hdrhistogram::Histogram;
use tempfile::TempPath;

use super::contender::{Contender, Place, Sample, latencies};
use super::job::Job;
use super::load::{self, Done};
use super::processors::Processors;

/// How long a backend may take to open its socket.
const START: Duration = Duration::from_secs(30);

/// How long it is watched between two looks at its socket.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Fewest slots: so that jobs of most depths share a connection, and the ring is no larger than
/// what backends offer by themselves.
const SLOTS: u16 = 64;

/// A backend, maybe started by us.
pub(super) struct Served {
    name: String,
    socket: PathBuf,
    bytes: u64,
    connected: Option<(Shape, Vec<ClientQueue>)>,
    filled: bool,
    seed: u64,
    pid: Option<u32>,
    running: Option<Running>,
    /// Goes away after the process.
    _image: Option<TempPath>,
}

/// What a connection was set up for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    queues: u16,
    /// Requests in flight per queue at most.
    slots: u16,
    slot_bytes: u64,
}

impl Served {
    /// One that somebody else has started.
    pub(super) fn attached(name: &str, socket: &Path, place: &Place) -> Served {
        Served {
            name: name.to_owned(),
            socket: socket.to_owned(),
            bytes: place.bytes,
            connected: None,
            filled: true,
            seed: 1,
            pid: place.pid,
            running: None,
            _image: None,
        }
    }

    /// Starts one, and waits for its socket. An image that is ours is filled first.
    pub(super) fn start(
        name: &str,
        mut command: Command,
        socket: &Path,
        place: &Place,
        image: Option<TempPath>,
    ) -> anyhow::Result<Served> {
        command.stdout(Stdio::null());
        let running = Running::start(command)?;
        let deadline = Instant::now() + START;
        while !fs::metadata(socket).is_ok_and(|found| found.file_type().is_socket()) {
            // Looks for the socket again now and then.
            if let Ok(status) = running.wait(LOOK_AGAIN) {
                bail!("the backend ended before it opened its socket ({status})");
            }
            if interrupt::requested() {
                bail!("interrupted");
            }
            if Instant::now() > deadline {
                bail!("the backend did not open {} within {START:?}", socket.display());
            }
        }
        let filled = place.image.is_some() || image.is_none();
        Ok(Served {
            pid: Some(running.pid()),
            running: Some(running),
            filled,
            _image: image,
            ..Served::attached(name, socket, place)
        })
    }

    /// Where it listens.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process, if that is known.
    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Connects for jobs of that shape, unless that is so already.
    fn connect(&mut self, shape: Shape) -> anyhow::Result<()> {
        if self.connected.as_ref().is_some_and(|(has, _)| *has == shape) {
            return Ok(());
        }
        // A backend may serve one front-end at a time.
        self.connected = None;
        let slots = shape.slots;
        let options =
            ClientOptions { queues: shape.queues, slots, slot_bytes: shape.slot_bytes as usize };
        let deadline = Instant::now() + START;
        let client = loop {
            match Client::connect(&self.socket, options) {
                Ok(client) => break client,
                Err(error @ ClientError::Rings { .. }) => {
                    return Err(error).context(
                        "start the backend with longer rings (racegate-blk: --queue-size N), or \
                         measure with a lower --depth",
                    );
                }
                // It listens a moment after the socket appears, or has the last front-end still.
                Err(_)
                    if Instant::now() < deadline
                        && !interrupt::requested()
                        && self.running.as_ref().is_some_and(|it| it.wait(LOOK_AGAIN).is_err()) => {
                }
                Err(error) => return Err(error.into()),
            }
        };
        self.bytes = self.bytes.min(client.capacity());
        self.connected = Some((shape, client.into_queues()));
        Ok(())
    }
}

/// Smallest slot: so that jobs of most sizes share a connection.
const SLOT_BYTES: u64 = 128 << 10;

impl Contender for Served {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&mut self, job: &Job, window: Duration) -> anyhow::Result<Option<Sample>> {
        self.connect(Shape {
            queues: job.queues,
            slots: job.depth.max(SLOTS),
            slot_bytes: job.block_size.max(SLOT_BYTES),
        })?;
        let running = &self.running;
        let alive = || running.as_ref().is_none_or(|running| running.status().is_none());
        let Some((_, queues)) = &mut self.connected else { bail!("there is no connection") };
        if !self.filled {
            load::fill(&mut queues[0], self.bytes, alive).context("while the disk was filled")?;
            self.filled = true;
        }
        self.seed += 1;
        // What the last one left in caches and polling windows is not this one's.
        load::run(queues, job, self.bytes, self.seed, window / 5, alive)?;
        self.seed += 1;
        let (before, all_before) = (self.pid.and_then(cpu_of_process), Processors::now());
        let (done, elapsed) = load::run(queues, job, self.bytes, self.seed, window, alive)?;
        let (after, all) = (self.pid.and_then(cpu_of_process), Processors::since(all_before));
        let backend_cpu = after.zip(before).map(|(after, before)| after.saturating_sub(before));
        let client_cpu: Duration = done.iter().map(|done| done.cpu).sum();
        let ours = client_cpu + backend_cpu.unwrap_or_default();
        // The system counts ticks, and those of short bursts of work not all.
        let others = all.busy.saturating_sub(ours);
        Ok(Some(Sample {
            requests: done.iter().map(|done| done.requests).sum(),
            failed: done.iter().map(|done| done.failed).sum(),
            elapsed,
            latencies: merged(&done),
            backend_cpu,
            client_cpu,
            others_cpus: others.as_secs_f64() / elapsed.as_secs_f64(),
            stolen: all.stolen,
        }))
    }
}

fn merged(done: &[Done]) -> Histogram<u64> {
    let mut all = latencies();
    for done in done {
        // All have the same bounds.
        let _ = all.add(&done.latencies);
    }
    all
}

/// Processor time of all threads of a process, to the nanosecond (schedstat of proc(5)).
pub(super) fn cpu_of_process(pid: u32) -> Option<Duration> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let path = task.ok()?.path().join("schedstat");
        // A thread may end meanwhile.
        if let Ok(text) = fs::read_to_string(path) {
            total += text.split(' ').next()?.parse::<u64>().ok()?;
        }
    }
    Some(Duration::from_nanos(total))
}
