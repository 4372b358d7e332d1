//! Builds the guest's init as a static program, so that the harness can carry it inside itself.
//!
//! In: the agent crate next to this one. Out: `$OUT_DIR/agent`.
//! Cargo cannot yet build a dependency for another set of flags (artifact dependencies are
//! unstable), so cargo is called again, with a target folder of its own: the outer call holds
//! the lock of the usual one.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// What the outer cargo sets for this build and must not leak into the other one: flags for the
/// compiler, and wrappers such as clippy's.
const OUTER: [&str; 6] = [
    "RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_PRIMARY_PACKAGE",
    "LLVM_PROFILE_FILE",
];

fn main() {
    if let Err(message) = build() {
        eprintln!("building the guest's init failed: {message}");
        exit(1);
    }
}

fn build() -> Result<(), String> {
    let manifest_dir = PathBuf::from(var("CARGO_MANIFEST_DIR")?);
    let workspace = manifest_dir.join("../..");
    let agent = manifest_dir.join("../agent");
    for input in [agent.join("src"), agent.join("Cargo.toml"), workspace.join("Cargo.toml")] {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    let out = PathBuf::from(var("OUT_DIR")?);
    let target_dir = out.join("agent-target");
    // The host's: build scripts of the agent's dependencies must run here, and its tests do.
    let triple = var("HOST")?;
    let mut cargo = Command::new(var("CARGO")?);
    cargo
        .args(["build", "--release", "--package", "agent", "--bin", "agent"])
        .args(["--target", &triple, "--config", "profile.release.strip=true"])
        .arg("--manifest-path")
        .arg(agent.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir);
    for name in OUTER {
        cargo.env_remove(name);
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    let status = cargo.status().map_err(|error| format!("{cargo:?}: {error}"))?;
    if !status.success() {
        return Err(format!("{cargo:?}: {status}"));
    }
    let built = target_dir.join(triple).join("release/agent");
    copy(&built, &out.join("agent"))
}

fn var(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to)
        .map(|_| ())
        .map_err(|error| format!("copying {} to {}: {error}", from.display(), to.display()))
}
