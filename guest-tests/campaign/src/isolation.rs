//! Which trials share a guest.
//!
//! In: a name. Out: an [`Isolation`].
//! Must not know: how a guest comes up.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How far trials are kept apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// All trials of a kernel in one guest, as long as it lives: the fastest.
    #[default]
    Shared,
    /// A guest of its own for each trial, with the disk in its first state: for a kernel that warns
    /// once, a workload that spoils its guest, and whatever depends on what a kernel has cached.
    Fresh,
}

impl Isolation {
    /// Both of them.
    pub const ALL: [Isolation; 2] = [Isolation::Shared, Isolation::Fresh];

    /// Its name in plans, on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Isolation::Shared => "shared",
            Isolation::Fresh => "fresh",
        }
    }

    /// The isolation of that name.
    pub fn parse(name: &str) -> Option<Isolation> {
        Isolation::ALL.into_iter().find(|isolation| isolation.name() == name)
    }

    /// Whether it is the one that plans have without saying so.
    pub fn is_shared(&self) -> bool {
        *self == Isolation::Shared
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Isolation;

    #[test]
    fn names_read_back() {
        for isolation in Isolation::ALL {
            assert_eq!(Isolation::parse(isolation.name()), Some(isolation));
            // As the database and the reports have it.
            let text = serde_json::to_value(isolation).unwrap();
            assert_eq!(text, isolation.name());
        }
        assert_eq!(Isolation::parse("lonely"), None);
    }
}
