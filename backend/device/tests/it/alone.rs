//! Tests of what belongs to the whole process: descriptors, threads, memory.
//!
//! In: the name of a test, and its body. Out: the body's verdict, from a process where no other
//! test runs. Must not know: what the body counts.

use std::env;
use std::process::Command;

/// Set in the process that runs the body.
const ALONE: &str = "RACEGATE_TEST_ALONE";

/// Runs `body` in a process of its own, as the one test `name` (as libtest names it).
///
/// # Panics
/// If the body does, there; what it printed is printed.
pub(crate) fn alone(name: &str, body: impl FnOnce()) {
    if env::var(ALONE).is_ok_and(|of| of == name) {
        return body();
    }
    let output = Command::new(env::current_exe().expect("this test's path"))
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, name)
        .output()
        .expect("this test, once more");
    let printed = String::from_utf8_lossy(&output.stdout);
    print!("{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}, alone: {}", output.status);
    // A name that no test has would pass.
    assert!(printed.contains("1 passed"), "{name} is no test's name");
}
