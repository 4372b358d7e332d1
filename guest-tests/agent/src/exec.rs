//! Running a program to its end, its output passed on as it comes.
//!
//! In: path and arguments. Out: `Output` messages, then `Exited`.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;

use agent::wire::{Stream, ToHost};
use anyhow::Context;

use crate::clock;
use crate::link::Link;

/// Output per message. Text may grow sixfold when JSON escapes it, and a frame holds 64 KiB.
const CHUNK_BYTES: usize = 8192;

/// Runs the program and waits for it.
pub(crate) fn run(link: &Link, id: u64, program: &str, args: &[String]) -> anyhow::Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        if let Some(stdout) = stdout {
            scope.spawn(|| pass_on(link, id, Stream::Stdout, stdout));
        }
        if let Some(stderr) = stderr {
            scope.spawn(|| pass_on(link, id, Stream::Stderr, stderr));
        }
    });
    let status = child.wait().with_context(|| format!("waiting for {program}"))?;
    let status = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(-1);
    link.send(&ToHost::Exited { id, status, guest_ns: clock::now_ns() })?;
    Ok(())
}

fn pass_on(link: &Link, id: u64, stream: Stream, mut from: impl Read) {
    let mut chunk = [0; CHUNK_BYTES];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        let text = String::from_utf8_lossy(&chunk[..length]).into_owned();
        if link.send(&ToHost::Output { id, stream, text }).is_err() {
            return;
        }
    }
}
