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
use std::sync::Arc;
use std::thread;

use agent::wire::{ToHost, TraceLines, TraceOrder, TraceStarted};
use anyhow::Context;

use crate::link::Link;
use btf::Btf;

const TRACEFS: &str = "/sys/kernel/tracing";
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// Group of our own probes.
const GROUP: &str = "racegate";
/// Bytes of lines in one message: well below a frame, quoted.
const BATCH_BYTES: usize = 24 << 10;

/// Begins to watch. Called once in the life of a guest.
pub(crate) fn start(link: &Arc<Link>, order: &TraceOrder) -> anyhow::Result<()> {
    let root = Path::new(TRACEFS);
    put(root, "tracing_on", "0")?;
    put(root, "buffer_size_kb", &order.buffer_kib.to_string())?;
    // CLOCK_MONOTONIC, as every other time of the agent.
    put(root, "trace_clock", "mono")?;
    let mut missing = Vec::new();
    if !order.probes.is_empty() {
        let btf = fs::read(BTF).context(BTF)?;
        let btf = Btf::parse(&btf).context(BTF)?;
        for probe in &order.probes {
            let added = offsets::fill_in(probe, &btf)
                .and_then(|line| append(&root.join("kprobe_events"), &line).map_err(Into::into));
            if let Err(error) = added {
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
    let pipe = File::open(root.join("trace_pipe")).context("opening trace_pipe")?;
    let to_host = Arc::clone(link);
    thread::Builder::new()
        .name("trace".into())
        .spawn(move || stream(pipe, &to_host))
        .context("starting the thread that reads trace_pipe")?;
    put(root, "tracing_on", "1")?;
    link.send(&ToHost::TraceStarted(TraceStarted { id: order.id, missing }))?;
    Ok(())
}

/// Sends whole lines as they come, until the pipe or the link ends.
fn stream(mut pipe: File, link: &Link) {
    let mut chunk = vec![0; BATCH_BYTES];
    let mut held = Vec::new();
    for batch in 0.. {
        let length = match pipe.read(&mut chunk) {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        held.extend_from_slice(&chunk[..length]);
        let whole = held.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let text = String::from_utf8_lossy(&held[..whole]);
        let lines = text.lines().map(str::to_owned).collect();
        if link.send(&ToHost::Trace(TraceLines { batch, lines })).is_err() {
            return;
        }
        held.drain(..whole);
    }
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
