//! Builds what runs elsewhere, so that the harness can carry it inside itself: the guest's init as
//! a static program, and the library that QEMU is preloaded with.
//!
//! In: the crates `agent` and `store-shim`. Out: `$OUT_DIR/agent`, `$OUT_DIR/libstore_shim.so`.
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
        eprintln!("building the guest's init or QEMU's library failed: {message}");
        exit(1);
    }
}

fn build() -> Result<(), String> {
    let manifest_dir = PathBuf::from(var("CARGO_MANIFEST_DIR")?);
    let workspace = manifest_dir.join("../..");
    let agent = manifest_dir.join("../agent");
    let shim = workspace.join("backend/store-shim");
    for folder in [&agent, &shim] {
        for input in ["src", "Cargo.toml"] {
            println!("cargo::rerun-if-changed={}", folder.join(input).display());
        }
    }
    println!("cargo::rerun-if-changed={}", workspace.join("Cargo.toml").display());
    let agent = Part {
        manifest: agent.join("Cargo.toml"),
        arguments: &["build", "--bin", "agent"],
        flags: "-Ctarget-feature=+crt-static",
        product: "agent",
    };
    // Only here does it export the names of the C library's functions.
    let shim = Part {
        manifest: shim.join("Cargo.toml"),
        arguments: &["rustc", "--lib", "--crate-type", "cdylib", "--features", "preload"],
        flags: "",
        product: "libstore_shim.so",
    };
    agent.build()?;
    shim.build()
}

/// One program or library.
struct Part {
    manifest: PathBuf,
    /// Cargo's, besides those of every part.
    arguments: &'static [&'static str],
    /// The compiler's.
    flags: &'static str,
    /// Name of the file that is wanted.
    product: &'static str,
}

impl Part {
    fn build(&self) -> Result<(), String> {
        let out = PathBuf::from(var("OUT_DIR")?);
        let target_dir = out.join("agent-target");
        // The host's: build scripts of dependencies must run here, and its tests do.
        let triple = var("HOST")?;
        let mut cargo = Command::new(var("CARGO")?);
        cargo
            .args(self.arguments)
            .args(["--release", "--target", &triple, "--config", "profile.release.strip=true"])
            .arg("--manifest-path")
            .arg(&self.manifest)
            .arg("--target-dir")
            .arg(&target_dir);
        for name in OUTER {
            cargo.env_remove(name);
        }
        cargo.env("CARGO_ENCODED_RUSTFLAGS", self.flags);
        let status = cargo.status().map_err(|error| format!("{cargo:?}: {error}"))?;
        if !status.success() {
            return Err(format!("{cargo:?}: {status}"));
        }
        let built = target_dir.join(triple).join("release").join(self.product);
        copy(&built, &out.join(self.product))
    }
}

fn var(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to)
        .map(|_| ())
        .map_err(|error| format!("copying {} to {}: {error}", from.display(), to.display()))
}
