//! Progress on anything that may take longer than two seconds.
//!
//! In: a name. Out: a bar on standard error; nothing if that is not a terminal.
//! Must not know: what is being done.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A spinner for `name`; it shows a part of a whole once it is given a length.
pub fn bar(name: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_prefix(name.to_owned());
    // Both templates are constants; the default style serves if one were wrong.
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}: {msg} [{elapsed}]") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
