//! Progress of a search on standard error, once it takes longer than two seconds.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use explorer::Progress;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// A search that ends sooner shows nothing.
const QUIET: Duration = Duration::from_secs(2);

/// Shows how far a search is. Nothing appears if standard error is no terminal.
pub(super) struct Meter {
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Meter {
    pub(super) fn new() -> Meter {
        Meter { started: Instant::now(), bar: None }
    }

    /// Takes the figures of a moment. Never ends the search.
    pub(super) fn update(&mut self, now: Progress) -> ControlFlow<()> {
        let elapsed = self.started.elapsed();
        if elapsed >= QUIET {
            let bar = self.bar.get_or_insert_with(spinner);
            bar.set_message(message(now, elapsed));
            bar.tick();
        }
        ControlFlow::Continue(())
    }

    /// Takes the line away again.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    // A template that does not parse leaves the default, which shows the same message.
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar
}

fn message(now: Progress, elapsed: Duration) -> String {
    let what = if now.shrinking { "shrinking, " } else { "" };
    let rate = now.transitions as f64 / elapsed.as_secs_f64() / 1e6;
    format!(
        "{what}{} states, {} transitions ({rate:.1} M/s), step {}, {} waiting",
        HumanCount(now.states),
        HumanCount(now.transitions),
        now.depth,
        HumanCount(now.waiting),
    )
}
