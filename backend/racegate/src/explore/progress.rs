//! Progress of a search on standard error, once it takes longer than two seconds: one line that
//! changes on a terminal, else a line every ten seconds.

use std::io::{self, IsTerminal as _};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use explorer::Progress;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// A search that ends sooner shows nothing.
const QUIET: Duration = Duration::from_secs(2);

/// Time between two lines where nothing can be written over.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Shows how far a search is.
pub(super) struct Meter {
    started: Instant,
    bar: Option<ProgressBar>,
    terminal: bool,
    next_line: Duration,
}

impl Meter {
    pub(super) fn new() -> Meter {
        let terminal = io::stderr().is_terminal();
        Meter { started: Instant::now(), bar: None, terminal, next_line: BETWEEN_LINES }
    }

    /// Takes the figures of a moment. Never ends the search.
    pub(super) fn update(&mut self, now: Progress) -> ControlFlow<()> {
        let elapsed = self.started.elapsed();
        if !self.terminal {
            if elapsed >= self.next_line {
                eprintln!("{}", message(now, elapsed));
                self.next_line = elapsed + BETWEEN_LINES;
            }
        } else if elapsed >= QUIET {
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
