//! End-to-end tests on real kernels.
//!
//! The test program itself counts what ran and what was skipped, and fails when nothing ran.

use anyhow::Result;

use crate::command::cargo;

/// Runs the guest tests, two virtual machines at a time.
pub(crate) fn run() -> Result<()> {
    cargo(&["test", "--package", "guest-tests", "--", "--test-threads", "2"])
}
