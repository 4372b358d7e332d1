//! Formatting and lints, warnings as errors.

use anyhow::Result;

use crate::command::{cargo, cargo_with_env};

/// Runs rustfmt, clippy on every target, and rustdoc.
pub(crate) fn run() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    cargo_with_env(&["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings")])
}
