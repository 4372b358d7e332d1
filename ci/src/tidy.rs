//! Rules of the tree that no compiler checks.
//!
//! In: the files that git tracks. Out: every breach, with file, line and rule.
//! Each rule has a canary below: a text that must be caught.

mod rules;

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::top;
use rules::Breach;

/// Reads every tracked text file and applies every rule to it.
pub(crate) fn run() -> Result<()> {
    let top = top();
    let listed = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(&top)
        .output()
        .context("cannot list the tracked files: git is needed")?;
    if !listed.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&listed.stderr).trim());
    }
    let hosts = rules::archive_hosts();
    let mut breaches: Vec<Breach> = Vec::new();
    let mut files = 0;
    for path in listed.stdout.split(|byte| *byte == 0).filter(|path| !path.is_empty()) {
        let path = String::from_utf8_lossy(path).into_owned();
        // A file may be deleted and not yet committed, or may not be text.
        let Ok(text) = std::fs::read_to_string(top.join(&path)) else {
            continue;
        };
        files += 1;
        rules::apply(&path, &text, &hosts, &mut breaches);
    }
    for breach in &breaches {
        eprintln!("{breach}");
    }
    if !breaches.is_empty() {
        bail!("{} breaches in {files} files", breaches.len());
    }
    println!("ci: {files} files, no breach");
    Ok(())
}
