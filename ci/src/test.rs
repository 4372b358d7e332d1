//! Unit, property and in-process tests.

use anyhow::Result;

use crate::command::cargo;

/// Every test that needs no guest. The oracle tests of `ext4-layout` need e2fsprogs, which
/// `racegate setup` brings.
pub(crate) fn run() -> Result<()> {
    cargo(&["run", "--quiet", "--package", "racegate", "--bin", "racegate", "--", "setup"])?;
    cargo(&["test", "--workspace", "--exclude", "guest-tests"])
}
