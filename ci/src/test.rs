//! Unit, property and in-process tests.

use anyhow::Result;

use crate::command::{cargo, setup};

/// Every test that needs no guest. The oracle tests of `ext4-layout` need e2fsprogs, which
/// `racegate setup` brings.
pub(crate) fn run() -> Result<()> {
    setup(&[])?;
    cargo(&["test", "--workspace", "--exclude", "guest-tests"])
}
