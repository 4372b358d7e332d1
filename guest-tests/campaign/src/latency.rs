//! How exact delays are on this machine: a guest times the first touch of pages of its persistent
//! memory and its flushes, with and without a delay, and counts on one processor while the other
//! waits for a page.
//!
//! In: a [`GuestConfig`] with a device of type pmem. Out: a [`Report`].
//! Must not know: who reads it, what is exact enough.
//!
//! The guest measures, so its own way to a page (a read past its page cache, system call
//! included) is part of every figure. Two rows tell how long that is: pages that no rule is
//! about, and pages whose rule lets them pass. The second is what a delay is added to.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::time::Duration;

use agent::wire::{Op, Thread, Trial, TrialResult, Workload};
use pipeline::RuleSet;
use pipeline::control::{Request, Response};
use thiserror::Error;

use crate::backend::Storage;
use crate::device::Device;
use crate::guest::{Guest, GuestConfig, GuestError};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// Size of the memory. Nothing is ever written to it.
const BYTES: u64 = 512 * MIB;
/// Pages of one row with a rule; rows follow each other from [`FIRST`] on.
const ROW_PAGES: u64 = 2048;
const FIRST: u64 = 16 * MIB;
/// Pages without a rule begin here. Each touch brings in its neighbours (QEMU asks for huge
/// pages), so they are far from each other.
const PLAIN_FIRST: u64 = 128 * MIB;
const PLAIN_STEP: u64 = 4 * MIB;
const PLAIN_COUNT: u32 = 64;
/// Long enough for the neighbours to have come.
const PLAIN_PAUSE: Duration = Duration::from_millis(30);
/// Long enough for threads to be asleep when the next touch comes.
const PAUSE: Duration = Duration::from_millis(1);
/// Delay of each row with a rule, and how many pages are touched.
const DELAYS: [(Duration, u32); 4] = [
    (Duration::ZERO, 300),
    (Duration::from_micros(100), 300),
    (Duration::from_millis(1), 300),
    (Duration::from_millis(10), 100),
];
/// Delay of every flush, and how many there are.
const FLUSH: (Duration, u32) = (Duration::from_millis(5), 100);
/// Pages that are touched while the other processor counts, each delayed by the last of
/// [`DELAYS`]; and how often that is repeated.
const STALLS: u32 = 50;
const ROUNDS: u32 = 3;
const LIMIT: Duration = Duration::from_secs(120);

/// Delays could not be measured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LatencyError {
    /// A disk has no page faults.
    #[error("{0} has no page faults to be timed; take nvdimm, virtio-pmem or vhost-user-pmem")]
    NotPmem(Device),
    /// With one processor nobody can count while it waits.
    #[error("the guest has {0} processor, and two are needed: one waits while the other counts")]
    Processors(u32),
    /// The memory's file could not be made.
    #[error("Could not make an image of {BYTES} bytes in {}", std::env::temp_dir().display())]
    Image(#[source] io::Error),
    /// The guest failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The agent did not do as it was told.
    #[error("the guest could not {what}: {why}")]
    Trial {
        /// What it was told.
        what: String,
        /// What it said.
        why: String,
    },
}

/// What was measured on one device.
#[derive(Clone, Debug)]
pub struct Report {
    /// The device.
    pub device: Device,
    /// One for each kind of request.
    pub rows: Vec<Row>,
    /// What the other processor did meanwhile.
    pub other: Other,
}

/// What was timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The first touch of a page that no rule is about.
    Plain,
    /// The first touch of a page that a rule is about, delayed by so much; zero: it passes.
    Fault(Duration),
    /// A flush, delayed by so much.
    Flush(Duration),
}

/// Latencies of one kind of request, as the guest saw them.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub what: What,
    /// All of them in nanoseconds, in ascending order; at least one.
    pub ns: Vec<u64>,
    /// How much later than asked for the server handed the requests over: the rule's median, in
    /// nanoseconds.
    pub server_late_ns: Option<u64>,
}

/// How far a processor counts while the other one waits for pages.
#[derive(Clone, Copy, Debug)]
pub struct Other {
    /// Turns of its loop in a millisecond while nobody waits.
    pub free_per_ms: f64,
    /// The same while the other processor waits for one page after the other.
    pub stalled_per_ms: f64,
    /// Longest time between two turns meanwhile, in microseconds.
    pub longest_gap_us: u64,
}

impl Row {
    /// A quantile of the latencies in nanoseconds; 0.5 is the median.
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        let index = (self.ns.len() as f64 * quantile) as usize;
        self.ns.get(index).or(self.ns.last()).copied().unwrap_or_default()
    }
}

impl Report {
    /// The row of that kind.
    pub fn row(&self, what: What) -> Option<&Row> {
        self.rows.iter().find(|row| row.what == what)
    }

    /// How much later than asked for the guest had its delayed page: the median, less the delay,
    /// less the median of pages whose rule lets them pass. In nanoseconds; negative if earlier.
    pub fn late_ns(&self, row: &Row) -> Option<i64> {
        let What::Fault(delay) = row.what else { return None };
        let pass = self.row(What::Fault(Duration::ZERO))?.quantile_ns(0.5);
        let expected = pass + u64::try_from(delay.as_nanos()).ok()?;
        (!delay.is_zero()).then(|| row.quantile_ns(0.5).cast_signed() - expected.cast_signed())
    }
}

impl Other {
    /// What is left of its speed; 1 if it does not notice.
    pub fn ratio(&self) -> f64 {
        self.stalled_per_ms / self.free_per_ms
    }
}

/// Boots a guest and measures. The configuration's image is not used.
///
/// # Errors
/// The device is a disk, or the guest fails.
pub fn measure(config: &GuestConfig) -> Result<Report, LatencyError> {
    let device = config.backend.device;
    if !device.is_pmem() {
        return Err(LatencyError::NotPmem(device));
    }
    if config.vcpus < 2 {
        return Err(LatencyError::Processors(config.vcpus));
    }
    let image = tempfile::NamedTempFile::with_prefix("racegate-latency-");
    let image = image.map_err(LatencyError::Image)?;
    File::set_len(image.as_file(), BYTES).map_err(LatencyError::Image)?;
    let mut config = config.clone();
    image.path().clone_into(&mut config.backend.image);
    config.backend.storage = Storage::Overlay;
    let mut guest = Guest::boot(&config)?;
    guest.load(&RuleSet::parse(&rules(), "latency").map_err(|error| LatencyError::Trial {
        what: "be given its rules".to_owned(),
        why: error.to_string(),
    })?)?;
    let report = Meter { guest: &mut guest, trial: 0 }.report(device)?;
    guest.shutdown()?;
    Ok(report)
}

/// Name of the rule of a row.
fn rule_name(delay: Duration) -> String {
    format!("fault-{}us", delay.as_micros())
}

fn row_offset(row: usize) -> u64 {
    FIRST + row as u64 * ROW_PAGES * PAGE
}

/// One rule for each delay, told apart by the page.
fn rules() -> String {
    let mut rules = String::new();
    let mut add = |name: &str, wanted: &str, delay: Duration| {
        let action = match delay {
            Duration::ZERO => "pass = true".to_owned(),
            delay => format!("delay = \"{}us\"", delay.as_micros()),
        };
        // Writing to a String does not fail.
        let _ = write!(
            rules,
            "[[rule]]\nname = \"{name}\"\nmatch = {{ {wanted} }}\naction = {{ {action} }}\n"
        );
    };
    for (row, (delay, _)) in DELAYS.into_iter().enumerate() {
        let (first, end) = (row_offset(row) / SECTOR, row_offset(row + 1) / SECTOR);
        add(&rule_name(delay), &format!("op = \"fault\", sector = \"{first}..{end}\""), delay);
    }
    add("flush", "op = \"flush\"", FLUSH.0);
    rules
}

/// A guest that is asked one thing after the other.
struct Meter<'a> {
    guest: &'a mut Guest,
    trial: u64,
}

/// Name of the value with the latencies.
const TIMES: &str = "times";

impl Meter<'_> {
    fn report(&mut self, device: Device) -> Result<Report, LatencyError> {
        let mut rows =
            vec![self.row(What::Plain, reads(PLAIN_FIRST, PLAIN_STEP, PLAIN_COUNT, PLAIN_PAUSE))?];
        for (row, (delay, count)) in DELAYS.into_iter().enumerate() {
            rows.push(self.row(What::Fault(delay), reads(row_offset(row), PAGE, count, PAUSE))?);
        }
        // On an NVDIMM a guest flushes its processor's caches, and asks nobody.
        if device != Device::Nvdimm {
            let (path, name) = (DISK.to_owned(), TIMES.to_owned());
            let syncs = Op::TimeSyncs { path, count: FLUSH.1, name };
            rows.push(self.row(What::Flush(FLUSH.0), syncs)?);
        }
        let other = self.other()?;
        let Response::Stats(stats) =
            self.guest.control().call(&Request::Stats).map_err(GuestError::from)?
        else {
            return Ok(Report { device, rows, other });
        };
        for row in &mut rows {
            let name = match row.what {
                What::Plain => continue,
                What::Fault(delay) => rule_name(delay),
                What::Flush(_) => "flush".to_owned(),
            };
            let rule = stats.rules.iter().find(|rule| *rule.name == *name);
            row.server_late_ns = rule.and_then(|rule| rule.late.as_ref()).map(|late| late.p50_ns);
        }
        Ok(Report { device, rows, other })
    }

    fn row(&mut self, what: What, op: Op) -> Result<Row, LatencyError> {
        let label = op.label();
        let threads = vec![thread("toucher", 0, vec![op])];
        let result = self.run(Workload { threads, ..Workload::default() })?;
        let ns = result.values.get(TIMES).map(String::as_str).unwrap_or_default();
        let ns: Result<Vec<u64>, _> = ns.split(' ').map(str::parse).collect();
        let mut ns =
            ns.map_err(|error| LatencyError::Trial { what: label, why: error.to_string() })?;
        ns.sort_unstable();
        Ok(Row { what, ns, server_late_ns: None })
    }

    /// Free and stalled in turns: what else the host does falls on both.
    fn other(&mut self) -> Result<Other, LatencyError> {
        let (row, delay) = (DELAYS.len() - 1, DELAYS[DELAYS.len() - 1].0);
        // The row's first pages have been touched.
        let mut next = row_offset(row) + u64::from(DELAYS[row].1) * PAGE;
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let stalled_us = (delay * STALLS).as_micros() as u64;
            let sleep = Op::Delay { min_us: stalled_us, max_us: stalled_us };
            let (free_per_ms, _) = self.count_beside(sleep)?;
            let stall = reads(next, PAGE, STALLS, Duration::ZERO);
            next += u64::from(STALLS) * PAGE;
            let (stalled_per_ms, longest_gap_us) = self.count_beside(stall)?;
            rounds.push(Other { free_per_ms, stalled_per_ms, longest_gap_us });
        }
        rounds.sort_by(|a, b| a.ratio().total_cmp(&b.ratio()));
        Ok(rounds[rounds.len() / 2])
    }

    /// Turns in a millisecond of one processor while the other does something, and the longest
    /// pause in microseconds.
    fn count_beside(&mut self, op: Op) -> Result<(f64, u64), LatencyError> {
        const DONE: &str = "done";
        const TURNS: &str = "turns";
        let go = || Op::Barrier { name: "go".to_owned() };
        let count =
            Op::CountUntil { signal: DONE.to_owned(), name: TURNS.to_owned(), limit_ms: 60_000 };
        let label = count.label();
        let done = Op::Signal { name: DONE.to_owned() };
        let threads = vec![
            thread("toucher", 0, vec![go(), op, done]),
            thread("counter", 1, vec![go(), count]),
        ];
        let result = self.run(Workload { threads, ..Workload::default() })?;
        let value = |name: &str| result.values.get(name).and_then(|text| text.parse::<u64>().ok());
        let step = result.steps.iter().find(|step| step.op == label);
        let missing = || LatencyError::Trial { what: label.clone(), why: "no count".to_owned() };
        let (turns, gap_us) = value(TURNS).zip(value("turns_gap_us")).ok_or_else(missing)?;
        let step = step.ok_or_else(missing)?;
        let ms = (step.end_ns - step.begin_ns) as f64 / 1e6;
        Ok((turns as f64 / ms, gap_us))
    }

    fn run(&mut self, workload: Workload) -> Result<TrialResult, LatencyError> {
        self.trial += 1;
        let trial = Trial { trial: self.trial, seed: self.trial, workload };
        let result = self.guest.run(trial, LIMIT)?.result;
        match result.error {
            None => Ok(result),
            Some(why) => Err(LatencyError::Trial { what: "time its memory".to_owned(), why }),
        }
    }
}

const DISK: &str = "/dev/{disk}";

fn reads(offset: u64, step: u64, count: u32, pause: Duration) -> Op {
    let (path, name) = (DISK.to_owned(), TIMES.to_owned());
    let pause_us = pause.as_micros() as u64;
    Op::TimeReads { path, offset, step, count, pause_us, name }
}

fn thread(name: &str, cpu: u32, ops: Vec<Op>) -> Thread {
    Thread { name: name.to_owned(), cpu: Some(cpu), ops }
}
