//! Plans of the operator's own: starting one, checking one.
//!
//! In: names and files. Out: a file, or what a plan does in words.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use campaign::isolation::Isolation;
use campaign::plan::{self, Hit, Plan};

/// Writes `NAME.toml` into the current folder, as a copy of the built-in plan `from`.
pub(super) fn new(name: &str, from: &str) -> anyhow::Result<ExitCode> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if name.is_empty() || !name.chars().all(plain) {
        bail!("\"{name}\" is no name for a plan; use letters, digits and dashes");
    }
    let unknown = || format!("no built-in plan is named \"{from}\"; see racegate campaign list");
    let text = plan::text(from).with_context(unknown)?;
    let text = text.replacen(&format!("name = \"{from}\""), &format!("name = \"{name}\""), 1);
    let path = format!("{name}.toml");
    Plan::parse(&text, &path)?;
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    let mut file = file.with_context(|| format!("Could not make {path}"))?;
    file.write_all(text.as_bytes()).with_context(|| format!("Could not write {path}"))?;
    println!("{path}: a copy of {from}; check it with: racegate campaign check {path}");
    Ok(ExitCode::SUCCESS)
}

/// Checks every plan, so that one run shows the mistakes of all of them.
pub(super) fn check(plans: &[String]) -> anyhow::Result<ExitCode> {
    let mut status = ExitCode::SUCCESS;
    let mut text = String::new();
    for name in plans {
        match Plan::find(name) {
            Ok(plan) => describe(&mut text, &plan),
            Err(error) => {
                eprintln!("{:#}", anyhow::Error::new(error));
                status = ExitCode::from(2);
            }
        }
    }
    std::io::stdout().write_all(text.as_bytes()).context("Cannot write to standard output")?;
    Ok(status)
}

fn describe(text: &mut String, plan: &Plan) {
    // Writing to a String does not fail.
    let _ = writeln!(text, "{}: {}", plan.name, plan.summary);
    let mkfs = plan.filesystem.mkfs.join(" ");
    let mib = plan.filesystem.bytes >> 20;
    let _ = writeln!(text, "  file system: {mib} MiB, mkfs.ext4 {mkfs}");
    for thread in &plan.workload.threads {
        let _ = writeln!(text, "  thread {}: {} operations", thread.name, thread.ops.len());
    }
    for arm in &plan.arms {
        if arm.rules.is_empty() {
            let _ = writeln!(text, "  arm {}: the device does nothing", arm.name);
        }
        for (name, meaning) in arm.rules.names().zip(arm.rules.meanings()) {
            let _ = writeln!(text, "  arm {}, rule {name}: {meaning}", arm.name);
        }
    }
    if plan.guest.isolation == Isolation::Fresh {
        let _ =
            writeln!(text, "  guest: a new one for each trial, with the disk in its first state");
    }
    let Hit { kernel_log, counter_rises, shadow } = &plan.hit;
    if !kernel_log.is_empty() {
        let parts = kernel_log.join("\" and \"");
        let _ = writeln!(text, "  hit: the kernel says \"{parts}\"");
    }
    if let Some(counter) = counter_rises {
        let _ = writeln!(text, "  hit: {} is more than {}", counter.after, counter.before);
    }
    if !shadow.is_empty() {
        let _ = writeln!(text, "  hit: a shadow finds {}", shadow.join(" or "));
    }
    let percent = 100.0 * plan.rate_if_affected;
    let _ = writeln!(text, "  an affected kernel is hit in at least {percent:.0} % of the trials");
}
