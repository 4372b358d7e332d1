//! Builds the fuzzer in a folder of its own.
//!
//! In: whether with AddressSanitizer. Out: the program.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{cargo_with_env, setup, top};

/// What libFuzzer needs to see, as cargo-fuzz has it: an 8-bit counter for each edge, and what is
/// compared with what.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0 -Ccodegen-units=1 -Cdebug-assertions \
    -Coverflow-checks -Cforce-frame-pointers";

/// Builds it, with optimisation and every check that a debug build has.
pub(super) fn fuzzer(sanitizer: bool) -> Result<PathBuf> {
    if Command::new("c++").arg("--version").output().is_err() {
        setup(&["--fuzz"])?;
    }
    let host = host()?;
    // Flags for a named target are not for build scripts and macros.
    let (flags, folder, bootstrap) = if sanitizer {
        (
            format!("{COVERAGE} -Zsanitizer=address"),
            "target/fuzz/asan",
            Some(("RUSTC_BOOTSTRAP", "1")),
        )
    } else {
        (COVERAGE.to_owned(), "target/fuzz/build", None)
    };
    let mut env = vec![("RUSTFLAGS", flags.as_str())];
    env.extend(bootstrap);
    cargo_with_env(
        &[
            "build",
            "--quiet",
            "--release",
            "--package",
            "fuzz",
            "--features",
            "libfuzzer",
            "--bin",
            "fuzz-libfuzzer",
            "--target",
            &host,
            "--target-dir",
            folder,
        ],
        &env,
    )?;
    Ok(top().join(folder).join(host).join("release/fuzz-libfuzzer"))
}

fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}
