//! The delalloc shadow: what the guest's kernel keeps in memory about delayed allocation, followed
//! from outside, event by event.
//!
//! In: [`KernelEvent`]s of [`PROBES`], in the kernel's order. Out: [`DelallocFinding`]s.
//! Must not know: how events travel, devices, plans.
//!
//! The probes sit inside the functions that change the extent status tree, under `i_es_lock` held
//! for writing, so their order is that of the changes whatever the number of processors.
//!
//! Verified:
//! - **A4**: no delayed extent is inserted over a block that has been seen allocated (written or
//!   unwritten) and not been given up since (`ext4_es_remove_extent`, which truncate, punch and
//!   the like call before they free blocks). Sound also when the shadow starts on a file system in
//!   use: a block of which nothing was seen is unknown, and unknown is never a finding.
//! - **C1**: `i_reserved_data_blocks` is 0 when the inode is destroyed.
//!
//! Not verified: physical block numbers (A1), holes (A2), the counter against the tree while the
//! inode lives (A3), the pending tree of bigalloc (A5), the page cache (A7), on-disk extents.
//! After a loss of events everything seen before is unknown.

use std::collections::BTreeMap;

use crate::kernel::KernelEvent;

mod blocks;

use blocks::Blocks;

/// The probes that the shadow needs, as `kprobe_events` of tracefs takes them, with members of
/// structures in braces. Arguments are those of x86-64.
pub const PROBES: &[&str] = &[
    "p:racegate/es_insert __es_insert_extent inode=%di:x64 ino={inode.i_ino}(%di):u64 \
     lblk={extent_status.es_lblk}(%si):u32 len={extent_status.es_len}(%si):u32 \
     pblk={extent_status.es_pblk}(%si):x64",
    "p:racegate/es_give_up ext4_es_remove_extent inode=%di:x64 lblk=%si:u32 len=%dx:u32",
    "p:racegate/destroy ext4_destroy_inode inode=%di:x64 ino={inode.i_ino}(%di):u64 \
     reserved={ext4_inode_info.i_reserved_data_blocks-ext4_inode_info.vfs_inode}(%di):u32",
    "p:racegate/mkwrite ext4_page_mkwrite",
    "r:racegate/mkwrite_end ext4_page_mkwrite",
    "p:racegate/fallocate ext4_fallocate",
    "r:racegate/fallocate_end ext4_fallocate",
];

/// Status bits are the highest five of `es_pblk` (`ES_SHIFT` in fs/ext4/extents_status.h).
const ES_SHIFT: u32 = 59;
const ES_WRITTEN: u64 = 1;
const ES_UNWRITTEN: u64 = 2;
const ES_DELAYED: u64 = 4;

/// Most inodes that are followed; the one that was changed least recently makes room.
const MOST_INODES: usize = 4096;

/// A rule that the kernel broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DelallocRule {
    /// A delayed extent over an allocated block.
    A4,
    /// Reserved blocks outlive the inode.
    C1,
}

impl DelallocRule {
    /// Its name in the catalogue of invariants.
    pub fn name(self) -> &'static str {
        match self {
            DelallocRule::A4 => "A4",
            DelallocRule::C1 => "C1",
        }
    }
}

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
    pub rule: DelallocRule,
    /// Inode number.
    pub ino: u64,
    /// First logical block and their number; `None` for a rule about the whole inode.
    pub blocks: Option<(u32, u32)>,
    /// Blocks that are still reserved, for C1.
    pub reserved: u64,
    /// Whose step broke the rule.
    pub by: Actor,
    /// Whose step it conflicts with.
    pub against: Option<Actor>,
}

impl std::fmt::Display for DelallocFinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: inode {}", self.rule.name(), self.ino)?;
        match (self.rule, self.blocks) {
            (DelallocRule::A4, Some((lblk, len))) => {
                write!(f, ", blocks {lblk}+{len}: a delayed extent went in over allocated blocks")?;
            }
            _ => write!(f, ": {} blocks are reserved and the inode is gone", self.reserved)?,
        }
        write!(f, "; by {}", self.by)?;
        if let Some(against) = &self.against {
            write!(f, ", allocated by {against}")?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.thread, self.tid)?;
        if let Some((operation, _)) = self.operation {
            write!(f, " in {operation}")?;
        }
        write!(f, " at {} us", self.at_us)
    }
}

/// The shadow of one kernel.
#[derive(Debug, Default)]
pub struct DelallocShadow {
    /// By the inode's address: numbers are per file system.
    inodes: BTreeMap<u64, Inode>,
    /// What each thread is in and since when, by its id.
    within: BTreeMap<u32, (&'static str, u64)>,
    events: u64,
    forgotten: u64,
}

#[derive(Debug, Default)]
struct Inode {
    allocated: Blocks<Actor>,
    changed: u64,
}

impl DelallocShadow {
    /// A shadow that knows nothing yet.
    pub fn new() -> DelallocShadow {
        DelallocShadow::default()
    }

    /// How many events were taken in.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// How often everything, or an inode, became unknown.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Events are missing: what was known may not hold any more.
    pub fn lost(&mut self) {
        self.inodes.clear();
        self.within.clear();
        self.forgotten += 1;
    }

    /// Takes in one event.
    pub fn step(&mut self, event: &KernelEvent) -> Option<DelallocFinding> {
        self.events += 1;
        match event.name.as_str() {
            "es_insert" => self.insert(event),
            "es_give_up" => {
                let (inode, lblk, len) =
                    (event.field("inode")?, block(event, "lblk")?, block(event, "len")?);
                self.inode(inode).allocated.remove(lblk, len);
                None
            }
            "destroy" => {
                self.inodes.remove(&event.field("inode")?);
                let (ino, reserved) = (event.field("ino")?, event.field("reserved")?);
                let finding = || DelallocFinding {
                    rule: DelallocRule::C1,
                    ino,
                    blocks: None,
                    reserved,
                    by: self.actor(event),
                    against: None,
                };
                (reserved != 0).then(finding)
            }
            "mkwrite" => self.enter(event, "ext4_page_mkwrite"),
            "fallocate" => self.enter(event, "ext4_fallocate"),
            "mkwrite_end" | "fallocate_end" => {
                self.within.remove(&event.tid);
                None
            }
            _ => None,
        }
    }

    fn insert(&mut self, event: &KernelEvent) -> Option<DelallocFinding> {
        let (lblk, len) = (block(event, "lblk")?, block(event, "len")?);
        let status = event.field("pblk")? >> ES_SHIFT;
        let actor = self.actor(event);
        let inode = self.inode(event.field("inode")?);
        if status & (ES_WRITTEN | ES_UNWRITTEN) != 0 {
            inode.allocated.insert(lblk, len, &actor);
            return None;
        }
        if status & ES_DELAYED == 0 {
            return None;
        }
        let (first, blocks, against) = inode.allocated.first_of(lblk, len)?;
        // Once is enough: what is broken now breaks more of what follows.
        inode.allocated.remove(lblk, len);
        Some(DelallocFinding {
            rule: DelallocRule::A4,
            ino: event.field("ino")?,
            blocks: Some((first, blocks)),
            reserved: 0,
            by: actor,
            against: Some(against),
        })
    }

    fn inode(&mut self, address: u64) -> &mut Inode {
        if self.inodes.len() >= MOST_INODES && !self.inodes.contains_key(&address) {
            let oldest = self.inodes.iter().min_by_key(|(_, inode)| inode.changed);
            if let Some(oldest) = oldest.map(|(address, _)| *address) {
                self.inodes.remove(&oldest);
                self.forgotten += 1;
            }
        }
        let inode = self.inodes.entry(address).or_default();
        inode.changed = self.events;
        inode
    }

    fn enter(&mut self, event: &KernelEvent, operation: &'static str) -> Option<DelallocFinding> {
        // A thread that ends inside leaves its entry behind; ids come round again.
        if self.within.len() >= MOST_INODES {
            self.within.clear();
        }
        self.within.insert(event.tid, (operation, event.at_us));
        None
    }

    fn actor(&self, event: &KernelEvent) -> Actor {
        Actor {
            thread: event.thread.clone(),
            tid: event.tid,
            operation: self.within.get(&event.tid).copied(),
            at_us: event.at_us,
        }
    }
}

fn block(event: &KernelEvent, name: &str) -> Option<u32> {
    u32::try_from(event.field(name)?).ok()
}

#[cfg(test)]
mod tests;
