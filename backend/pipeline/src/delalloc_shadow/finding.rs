//! What the shadow found, before it is put on the device's clock.
//!
//! In: a broken rule and who was about it. Out: a value, and its form for people.
//! Must not know: how rules are checked.

use std::fmt;
use std::sync::Arc;

use delalloc::Invariant;

/// Who did something, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Name of the thread.
    pub thread: String,
    /// Its id.
    pub tid: u32,
    /// What it was doing, as far as a probe says so, and since when.
    pub operation: Option<(&'static str, u64)>,
    /// When, in microseconds of the guest's CLOCK_MONOTONIC.
    pub at_us: u64,
}

/// What the kernel got wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelallocFinding {
    /// The rule.
    pub rule: Invariant,
    /// Inode number; 0 for a rule about the whole file system.
    pub ino: u64,
    /// First logical block and their number; `None` for a rule about the whole inode.
    pub blocks: Option<(u32, u32)>,
    /// What was seen, in few words.
    pub seen: String,
    /// Whose step broke the rule.
    pub by: Arc<Actor>,
    /// Whose step it conflicts with.
    pub against: Option<Arc<Actor>>,
    /// What happened to the inode before, oldest first.
    pub story: Vec<(Arc<Actor>, String)>,
}

impl DelallocFinding {
    /// A finding about a whole inode.
    pub(super) fn new(rule: Invariant, ino: u64, by: &Arc<Actor>, seen: String) -> DelallocFinding {
        DelallocFinding {
            rule,
            ino,
            blocks: None,
            seen,
            by: Arc::clone(by),
            against: None,
            story: Vec::new(),
        }
    }

    /// The same, about some blocks of it.
    pub(super) fn at(self, lblk: u32, len: u32) -> DelallocFinding {
        DelallocFinding { blocks: Some((lblk, len)), ..self }
    }

    /// The same, and with whom it conflicts.
    pub(super) fn against(self, other: Option<Arc<Actor>>) -> DelallocFinding {
        DelallocFinding { against: other, ..self }
    }
}

impl fmt::Display for DelallocFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: inode {}", self.rule.name(), self.ino)?;
        if let Some((lblk, len)) = self.blocks {
            write!(f, ", blocks {lblk}+{len}")?;
        }
        write!(f, ": {}; by {}", self.seen, self.by)?;
        if let Some(against) = &self.against {
            write!(f, ", against {against}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.thread, self.tid)?;
        if let Some((operation, _)) = self.operation {
            write!(f, " in {operation}")?;
        }
        write!(f, " at {} us", self.at_us)
    }
}
