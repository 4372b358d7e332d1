//! How the guests of one kernel came up, and how long that took.
//!
//! In: boots, with their times. Out: [`Guests`], which is part of the report.
//! Must not know: trials.

use std::time::Duration;

use serde::Serialize;

use crate::isolation::Isolation;

/// The guests that one kernel's trials took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Guests {
    /// The kernel.
    pub kernel: String,
    /// Which trials shared one.
    pub isolation: Isolation,
    /// Guests that were booted.
    pub booted: u32,
    /// Wall-clock seconds of all boots together.
    pub boot_seconds: f64,
}

impl Guests {
    /// None yet.
    pub(super) fn of(kernel: &str, isolation: Isolation) -> Guests {
        Guests { kernel: kernel.to_owned(), isolation, booted: 0, boot_seconds: 0.0 }
    }

    /// One was booted.
    pub(super) fn booted(&mut self, took: Duration) {
        self.booted += 1;
        self.boot_seconds += took.as_secs_f64();
    }

    /// In words.
    pub fn describe(&self) -> String {
        let each = |seconds: f64, of: u32| seconds / f64::from(of.max(1));
        format!("{} guests booted, {:.2} s each", self.booted, each(self.boot_seconds, self.booted))
    }
}
