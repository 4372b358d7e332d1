//! Runs one command of a task, shown before it starts.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The top of the source tree, from where this crate was built.
pub(crate) fn top() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map_or_else(|| manifest.to_path_buf(), Path::to_path_buf)
}

/// Runs `cargo` with these arguments at the top of the tree.
pub(crate) fn cargo(args: &[&str]) -> Result<()> {
    cargo_with_env(args, &[])
}

/// Runs `racegate setup`, which installs what is missing or says what to type.
pub(crate) fn setup(args: &[&str]) -> Result<()> {
    let run = ["run", "--quiet", "--package", "racegate", "--bin", "racegate", "--", "setup"];
    cargo(&[&run, args].concat())
}

/// Runs `cargo` with these arguments and variables at the top of the tree.
pub(crate) fn cargo_with_env(args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    println!("ci: cargo {}", args.join(" "));
    let mut command = Command::new(cargo);
    command.args(args).current_dir(top());
    for (name, value) in env {
        command.env(name, value);
    }
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo {} ended with {status}", args.join(" "));
    }
    Ok(())
}
