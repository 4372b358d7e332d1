//! The guests that one kernel's trials run in: booted, or restored where that is possible and faster.
//!
//! In: a [`GuestConfig`]; how many trials there may be. Out: guests; [`Guests`], which is a part of
//! the report.
//! Must not know: trials.

use std::fmt::Display;
use std::time::Instant;

use serde::Serialize;

use super::chain;
use crate::guest::{Guest, GuestConfig, GuestError, Snapshot, SnapshotError};
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
    /// Guests that were restored from a snapshot of a booted one.
    pub restored: u32,
    /// Wall-clock seconds of all restores together.
    pub restore_seconds: f64,
    /// Wall-clock seconds that taking the snapshot took.
    pub snapshot_seconds: f64,
    /// Why no guest was restored any more, though each trial had a guest of its own.
    pub not_restored: Option<String>,
}

impl Guests {
    /// None yet.
    pub(super) fn of(kernel: &str, isolation: Isolation) -> Guests {
        Guests {
            kernel: kernel.to_owned(),
            isolation,
            booted: 0,
            boot_seconds: 0.0,
            restored: 0,
            restore_seconds: 0.0,
            snapshot_seconds: 0.0,
            not_restored: None,
        }
    }

    /// In words.
    pub fn describe(&self) -> String {
        let some = |count: u32, seconds: f64, how: &str| {
            let (guests, each) = if count == 1 { ("guest", "") } else { ("guests", " each") };
            let mean = seconds / f64::from(count.max(1));
            format!("{count} {guests} {how} ({mean:.2} s{each})")
        };
        let mut text = some(self.booted, self.boot_seconds, "booted");
        if self.restored > 0 {
            text = text + ", " + &some(self.restored, self.restore_seconds, "restored");
        }
        if let Some(why) = &self.not_restored {
            text = text + "; not restored: " + why;
        }
        text
    }

    /// Why boots are as good, if restores take as long.
    fn slow(&self) -> Option<String> {
        let boot = self.boot_seconds / f64::from(self.booted.max(1));
        let restore = self.restore_seconds / f64::from(self.restored.max(1));
        let slow = self.restored > 0 && restore >= boot;
        slow.then(|| format!("a restore takes {restore:.2} s, a boot {boot:.2} s"))
    }
}

/// Where the guests of one kernel come from.
#[derive(Debug)]
pub(super) struct Nursery {
    guests: Guests,
    /// Whether guests are to be restored.
    restoring: bool,
    snapshot: Option<Snapshot>,
}

impl Nursery {
    /// For at most `trials` trials.
    pub(super) fn new(kernel: &str, isolation: Isolation, trials: usize) -> Nursery {
        let guests = Guests::of(kernel, isolation);
        // The second guest is the first that a snapshot saves anything for.
        let restoring = isolation == Isolation::Fresh && trials > 1;
        Nursery { guests, restoring, snapshot: None }
    }

    /// The next guest; `booted` if it is not to be a restored one.
    pub(super) fn next(&mut self, config: &GuestConfig, booted: bool) -> Result<Guest, GuestError> {
        if self.restoring && !booted {
            match self.restore(config) {
                Ok(guest) => return Ok(guest),
                Err(SnapshotError::Guest(error)) if error.is_interrupt() => return Err(error),
                Err(error) => self.give_up(chain(&error), &error),
            }
        }
        let started = Instant::now();
        let guest = Guest::boot(config)?;
        self.booted(started);
        Ok(guest)
    }

    /// A guest of the snapshot, which is taken first if there is none.
    fn restore(&mut self, config: &GuestConfig) -> Result<Guest, SnapshotError> {
        let snapshot = match self.snapshot.take() {
            Some(snapshot) => snapshot,
            None => self.take(config)?,
        };
        let started = Instant::now();
        let guest = self.snapshot.insert(snapshot).restore(config.backend.event_log.clone())?;
        self.guests.restored += 1;
        self.guests.restore_seconds += started.elapsed().as_secs_f64();
        if let Some(why) = self.guests.slow() {
            self.give_up(why.clone(), &why);
        }
        Ok(guest)
    }

    fn take(&mut self, config: &GuestConfig) -> Result<Snapshot, SnapshotError> {
        Snapshot::is_possible(config.backend.device)?;
        let started = Instant::now();
        let guest = Snapshot::boot(config)?;
        self.booted(started);
        let started = Instant::now();
        let snapshot = Snapshot::take(guest, config)?;
        self.guests.snapshot_seconds += started.elapsed().as_secs_f64();
        Ok(snapshot)
    }

    fn booted(&mut self, started: Instant) {
        self.guests.booted += 1;
        self.guests.boot_seconds += started.elapsed().as_secs_f64();
    }

    /// Guests are booted from now on; `words` are the reason at length.
    fn give_up(&mut self, why: String, words: &dyn Display) {
        tracing::warn!(kernel = self.guests.kernel, "guests are booted, not restored: {words}");
        self.restoring = false;
        self.snapshot = None;
        self.guests.not_restored = Some(why);
    }

    /// What it came to.
    pub(super) fn close(self) -> Guests {
        self.guests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guests(booted: u32, boot_seconds: f64, restored: u32, restore_seconds: f64) -> Guests {
        let guests = Guests::of("k", Isolation::Fresh);
        Guests { booted, boot_seconds, restored, restore_seconds, ..guests }
    }

    #[test]
    fn restores_are_given_up_when_they_take_as_long_as_boots() {
        assert_eq!(guests(1, 4.0, 0, 0.0).slow(), None);
        assert_eq!(guests(1, 4.0, 3, 1.5).slow(), None);
        let why = guests(2, 4.0, 3, 6.3).slow();
        assert_eq!(why.as_deref(), Some("a restore takes 2.10 s, a boot 2.00 s"));
    }

    #[test]
    fn guests_in_words() {
        assert_eq!(guests(3, 9.0, 0, 0.0).describe(), "3 guests booted (3.00 s each)");
        let mut guests = guests(1, 4.0, 20, 8.0);
        let words = "1 guest booted (4.00 s), 20 guests restored (0.40 s each)";
        assert_eq!(guests.describe(), words);
        guests.not_restored = Some("no".to_owned());
        assert_eq!(guests.describe(), format!("{words}; not restored: no"));
    }

    #[test]
    fn one_trial_is_not_worth_a_snapshot() {
        assert!(!Nursery::new("k", Isolation::Fresh, 1).restoring);
        assert!(Nursery::new("k", Isolation::Fresh, 2).restoring);
        assert!(!Nursery::new("k", Isolation::Shared, 2).restoring);
    }
}
