//! Watching the running kernel: probes go in, lines of `trace_pipe` go to the host.
//!
//! In: a [`TraceOrder`]. Out: [`ToHost::TraceStarted`], then [`ToHost::Trace`] from a thread of
//! its own until the guest ends.
//! Must not know: what the probes are for.

mod btf;
mod offsets;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use agent::wire::{ToHost, TraceLines, TraceOrder, TraceStarted};
use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::setpriority_process;

use crate::clock;
use crate::link::Link;
use btf::Btf;

const TRACEFS: &str = "/sys/kernel/tracing";
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// Group of our own probes.
const GROUP: &str = "racegate";
/// Bytes of lines in one message: well below a frame, quoted.
const BATCH_BYTES: usize = 24 << 10;
/// Buffers that stay empty for so long are said to be empty.
const IDLE: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
/// How long a mark may be under way from the kernel's buffer to the host.
const PASS_LIMIT: Duration = Duration::from_secs(5);
/// A kernel that always has something to say is not waited for longer than this after a mark.
const BUSY_NS: u64 = 200_000_000;
/// Nice value of the thread that reads: what the kernel has no room for is lost, so a guest that
/// works without end must leave it the time to read.
const NICE: i32 = -20;
/// The mark that [`Tracer::flush`] waits for.
const FLUSH: &str = "racegate_flush=";

/// What watches the kernel.
pub(crate) struct Tracer {
    marker: Mutex<File>,
    /// The last mark that has passed, and how many were set.
    passed: Mutex<(u64, u64)>,
    passes: Condvar,
}

impl Tracer {
    /// Begins to watch. Called once in the life of a guest.
    pub(crate) fn start(link: &Arc<Link>, order: &TraceOrder) -> anyhow::Result<Arc<Tracer>> {
        let root = Path::new(TRACEFS);
        put(root, "tracing_on", "0")?;
        put(root, "buffer_size_kb", &order.buffer_kib.to_string())?;
        // CLOCK_MONOTONIC, as every other time of the agent.
        put(root, "trace_clock", "mono")?;
        // Readers are to be woken by the first event, not by a buffer that is half full.
        let _ = put(root, "buffer_percent", "0");
        let missing = add_all(root, order)?;
        let pipe = File::open(root.join("trace_pipe")).context("opening trace_pipe")?;
        let marker = OpenOptions::new().write(true).open(root.join("trace_marker"));
        let tracer = Arc::new(Tracer {
            marker: Mutex::new(marker.context("opening trace_marker")?),
            passed: Mutex::new((0, 0)),
            passes: Condvar::new(),
        });
        let (own, to_host) = (Arc::clone(&tracer), Arc::clone(link));
        thread::Builder::new()
            .name("trace".into())
            .spawn(move || own.stream(pipe, &to_host))
            .context("starting the thread that reads trace_pipe")?;
        put(root, "tracing_on", "1")?;
        link.send(&ToHost::TraceStarted(TraceStarted { id: order.id, missing }))?;
        Ok(tracer)
    }

    /// Puts a line of our own among the kernel's.
    pub(crate) fn mark(&self, text: &str) {
        let mut marker = self.marker.lock().unwrap_or_else(PoisonError::into_inner);
        // Without it the host knows less, and nothing that is wrong.
        let _ = marker.write_all(text.as_bytes());
    }

    /// Waits until the host has all that the kernel wrote before.
    pub(crate) fn flush(&self) {
        let mut passed = self.passed();
        passed.1 += 1;
        let number = passed.1;
        drop(passed);
        self.mark(&format!("{FLUSH}{number}"));
        let passed = self.passed();
        let late = |passed: &mut (u64, u64)| passed.0 < number;
        let _ = self.passes.wait_timeout_while(passed, PASS_LIMIT, late);
    }

    fn passed(&self) -> MutexGuard<'_, (u64, u64)> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends whole lines as they come, until the pipe or the link ends.
    fn stream(&self, mut pipe: File, link: &Link) {
        // Without it more is lost, and what is lost is told.
        let _ = setpriority_process(None, NICE);
        let mut chunk = vec![0; BATCH_BYTES];
        let mut held = Vec::new();
        let mut batch = 0;
        // The last mark that was read and has not passed, and when it was read.
        let mut marked: Option<(u64, u64)> = None;
        let mut send = |lines| {
            let sent_ns = Some(clock::now_ns());
            let sent = link.send(&ToHost::Trace(TraceLines { batch, lines, sent_ns }));
            batch += 1;
            sent.is_ok()
        };
        loop {
            let length = match pipe.read(&mut chunk) {
                Ok(0) => return,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            held.extend_from_slice(&chunk[..length]);
            let whole = held.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            let text = String::from_utf8_lossy(&held[..whole]);
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            held.drain(..whole);
            let mark = lines.iter().rev().find_map(|line| line.split_once(FLUSH)?.1.parse().ok());
            if !lines.is_empty() && !send(lines) {
                return;
            }
            if let Some(mark) = mark {
                marked = Some((mark, clock::now_ns()));
            }
            let idle = matches!(poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&IDLE)), Ok(0));
            let late = marked.is_some_and(|(_, at_ns)| clock::now_ns() - at_ns > BUSY_NS);
            // An empty batch says that the buffers were empty: nothing was lost before it.
            if idle && !send(Vec::new()) {
                return;
            }
            if (idle || late)
                && let Some((mark, _)) = marked.take()
            {
                self.passed().0 = mark;
                self.passes.notify_all();
            }
        }
    }
}

/// Adds all probes and events; gives those that this kernel does not have.
fn add_all(root: &Path, order: &TraceOrder) -> anyhow::Result<Vec<String>> {
    let mut missing = Vec::new();
    if !order.probes.is_empty() {
        let btf = fs::read(BTF).context(BTF)?;
        let btf = Btf::parse(&btf).context(BTF)?;
        for probe in &order.probes {
            if let Err(error) = add_one_of(root, probe, &btf) {
                missing.push(format!("{probe}: {error:#}"));
            }
        }
        // With none of them there is no such folder, and `missing` says why.
        let _ = put(root, &format!("events/{GROUP}/enable"), "1");
    }
    for event in &order.events {
        if let Err(error) = put(root, &format!("events/{event}/enable"), "1") {
            missing.push(format!("{error:#}"));
        }
    }
    Ok(missing)
}

/// Adds the first of a probe's texts that this kernel takes; the error is that of the last.
fn add_one_of(root: &Path, probe: &str, btf: &Btf<'_>) -> anyhow::Result<()> {
    let mut added = Ok(());
    for text in probe.split(" || ") {
        added = add(root, text, btf);
        if added.is_ok() {
            break;
        }
    }
    added
}

/// Adds one probe with its filter.
fn add(root: &Path, probe: &str, btf: &Btf<'_>) -> anyhow::Result<()> {
    let (text, filter) = match probe.split_once(" if ") {
        Some((text, filter)) => (text, Some(filter)),
        None => (probe, None),
    };
    append(&root.join("kprobe_events"), &offsets::fill_in(text, btf)?)?;
    let Some(filter) = filter else {
        return Ok(());
    };
    let name = text.split_whitespace().next().and_then(|word| word.split_once('/'));
    let (_, name) = name.context("a filter needs a probe with a name")?;
    put(root, &format!("events/{GROUP}/{name}/filter"), filter)
}

/// Writes a setting of tracefs.
fn put(root: &Path, name: &str, value: &str) -> anyhow::Result<()> {
    let path: PathBuf = root.join(name);
    let mut file = OpenOptions::new().write(true).open(&path).with_context(|| name.to_owned())?;
    file.write_all(value.as_bytes()).with_context(|| format!("writing {value} to {name}"))
}

/// Adds a line to a setting that holds several.
fn append(path: &Path, line: &str) -> io::Result<()> {
    OpenOptions::new().append(true).open(path)?.write_all(format!("{line}\n").as_bytes())
}
