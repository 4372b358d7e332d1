//! Lines on the console, for the host's eyes when the link is not up or not enough.
//!
//! In: text. Out: one prefixed line each.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;

use agent::CONSOLE_PREFIX;

static CONSOLE: OnceLock<File> = OnceLock::new();

/// Opens `/dev/console`; before that, and if it fails, lines go to the descriptor that the
/// kernel gave init as standard error.
pub(crate) fn open() {
    if let Ok(file) = OpenOptions::new().write(true).open("/dev/console") {
        CONSOLE.get_or_init(|| file);
    }
}

/// Writes one line. A console that cannot be written to is nobody's concern any more.
pub(crate) fn say(text: &str) {
    let line = format!("{CONSOLE_PREFIX}{}\n", text.replace('\n', " | "));
    let _ = match CONSOLE.get() {
        Some(mut console) => console.write_all(line.as_bytes()),
        None => std::io::stderr().write_all(line.as_bytes()),
    };
}
