//! The delalloc shadow: what the guest's kernel keeps in memory about delayed allocation, followed
//! from outside, event by event.
//!
//! In: [`KernelEvent`]s of [`PROBES`], in the kernel's order. Out: [`DelallocFinding`]s.
//! Must not know: how events travel, devices, plans.
//!
//! The probes sit inside the functions that change the extent status tree, under `i_es_lock` held
//! for writing, so their order is that of the changes whatever the number of processors, and the
//! same on every kernel: the tracepoints of ext4 fire before the change or after it by version.
//! Names and statements of the rules are those of the model in `delalloc`, and what a kernel of a
//! series may do is asked of its flags.
//!
//! Verified, each only where everything that it needs was seen; the rest is unknown, and unknown is
//! no finding:
//! - **A1**: a W or U entry keeps its physical blocks until it is given up, and is gone when they
//!   are freed.
//! - **A2**: no H entry goes in over a delayed block, nor over one that has space.
//! - **A3**: `i_reserved_data_blocks` is the number of delayed clusters without space (bigalloc: less
//!   those that are pending) whenever a section under `i_data_sem` is known to be over.
//! - **A4**: no delayed extent goes in over a block that has space, and none is left behind the end
//!   of the file by a truncation.
//! - **A5**: what becomes pending holds a delayed block (bigalloc), until delayed blocks of it go away:
//!   from then on pending clusters are unknown until nothing is delayed.
//! - **A6**: `i_disksize` is at most `i_size` when a buffered write begins.
//! - **A7**: no page that `fallocate` or a truncation has dropped is read back before the blocks
//!   are changed.
//! - **A8**: an entry has a legal set of types for the series of the kernel; the counters of entries
//!   agree about whether any must be kept.
//! - **A9**: `i_es_seq` advances with every change of extent status but caching and reclaiming (Linux
//!   7.x has it).
//! - **A10**: neither the shrinker nor `EXT4_IOC_CLEAR_ES_CACHE` takes a delayed entry.
//! - **A11**: no more is released or used up than is reserved.
//! - **B1**: nothing is reserved after `syncfs` with nobody at work.
//! - **B3**: delayed blocks that writeback gave unwritten space are written after `syncfs` with nobody
//!   at work, unless writing failed.
//! - **B4**: a file whose writeback never failed has `i_disksize` equal to `i_size` in the end.
//! - **C1**: when an inode is destroyed, nothing is reserved, pending, or in extent status.
//! - **C2**: when an inode is destroyed, no I/O is in flight.
//! - **C3**: an unlinked inode with blocks has `i_blocks` above 0, or they would not be freed.
//! - **G4**: SEEK_DATA and SEEK_HOLE take no delayed block for a hole.
//!
//! Not verified: whether a W entry should be a U entry, and entries that nobody has inserted since
//! the shadow began (A1); dirty buffers of delayed blocks (A4); that a delayed cluster with space is
//! pending (A5); pages that were never read but found (A7); that whoever keeps a mapping asks for
//! `i_es_seq` (A9); writeback into blocks that were unwritten before, and tags of pages (B3); orphans
//! (B4). Free clusters (B2) and `i_blocks` (B5) are the on-disk shadow's. What a kernel does in its last
//! moments, some 20 ms, is not judged when nobody says any more that nothing was lost before it.
//!
//! Two events within one microsecond on two processors may be told in the wrong order: their times
//! are printed in microseconds. After a loss of events, or one that comes out of order, everything seen
//! before is unknown.
//!
//! Memory: at most [`MOST_INODES`] inodes and [`MOST_RANGES`] ranges, some 30 MiB; beyond that the
//! inode that was changed least recently is forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;

use delalloc::{Flag, Invariant, Kernel};

use crate::kernel::KernelEvent;

mod cache;
mod doubt;
mod finding;
mod follower;
mod inode;
mod probes;
mod ranges;
mod reorder;
mod rules;
mod threads;

pub use finding::{Actor, DelallocFinding};
pub use follower::{Follower, FollowerStats};
pub use probes::{PROBES, QUIET, RULES, needed};

use inode::{Change, Inode};
use threads::{Call, Threads};

/// Most inodes that are followed.
pub const MOST_INODES: usize = 4096;
/// Most ranges of extent status and of blocks on disk, of all inodes.
pub const MOST_RANGES: usize = 1 << 17;

/// The shadow of one kernel.
#[derive(Debug, Default)]
pub struct DelallocShadow {
    /// By the inode's address: numbers are per file system.
    inodes: BTreeMap<u64, Inode>,
    threads: Threads,
    /// `None`: not known; rules that depend on it are not checked.
    kernel: Option<Kernel>,
    unchecked: Vec<Invariant>,
    ranges: usize,
    events: u64,
    forgotten: u64,
    /// B1 was told of.
    leaked: bool,
    found: Vec<DelallocFinding>,
}

impl DelallocShadow {
    /// A shadow that knows nothing yet. `release` is that of `uname -r`.
    pub fn new(release: &str) -> DelallocShadow {
        DelallocShadow { kernel: Kernel::of_release(release), ..DelallocShadow::default() }
    }

    /// Probes that this kernel does not have, as the agent names them: what needs them is not
    /// checked.
    pub fn without<'a>(&mut self, missing: impl Iterator<Item = &'a str>) {
        self.unchecked = probes::out_of_reach(missing);
        if self.kernel.is_none() {
            self.unchecked.push(Invariant::A8);
        }
    }

    /// The rules that are checked.
    pub fn rules(&self) -> impl Iterator<Item = Invariant> + '_ {
        RULES.iter().map(|(rule, _)| *rule).filter(|rule| !self.unchecked.contains(rule))
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
        self.threads.clear();
        self.ranges = 0;
        self.forgotten += 1;
    }

    /// Takes in one event; what it shows to be wrong, the first of each rule and inode only.
    pub fn step(&mut self, event: &KernelEvent) -> Vec<DelallocFinding> {
        self.events += 1;
        self.threads.learn(event);
        // An event without its fields is not one of ours, and says nothing.
        let _ = self.dispatch(event);
        std::mem::take(&mut self.found)
    }

    fn dispatch(&mut self, event: &KernelEvent) -> Option<()> {
        let tid = event.tid;
        let inode = event.field("inode").filter(|inode| *inode != 0);
        match event.name.as_str() {
            "es_insert" => self.es_insert(event, inode?),
            "es_remove" => self.es_remove(event, inode?),
            "es_insert_end" | "es_remove_end" => self.es_failed(tid),
            "es_put" => self.es_put(event, inode?),
            "es_give_up" => {
                let (lblk, len) = (block(event, "lblk")?, block(event, "len")?);
                self.advances(tid, inode?, len);
                self.removes(event, inode?);
                let by = self.threads.actor(event);
                self.with(inode?, |inode, _| {
                    inode.disk.remove(lblk, len);
                    inode.converting.remove(lblk, len);
                    inode.tell(&by, Change::Remove(lblk, len));
                });
                Some(())
            }
            "es_seq" => self.sequence(event, inode?),
            "es_delay" => {
                self.advances(tid, inode?, block(event, "len")?);
                Some(())
            }
            "es_free" => self.es_free(event, inode?),
            "update_reserve" | "release" => self.reservation(event, inode?),
            "rereserve" => {
                let lblk = block(event, "lblk")?;
                self.with(inode?, |inode, _| {
                    inode.reserved = inode.reserved.map(|reserved| reserved.saturating_add(1));
                    inode.set_pending(lblk, false);
                });
                Some(())
            }
            "pend_insert" | "pend_remove" => {
                let (lblk, on) = (block(event, "lblk")?, event.name == "pend_insert");
                self.threads.of(tid).last = Some((inode?, lblk, 0));
                self.with(inode?, |inode, _| inode.set_pending(lblk, on));
                Some(())
            }
            "pend_insert_end" => {
                let (inode, ..) = self.threads.of(tid).last.take()?;
                self.with(inode, |inode, _| inode.pending = None);
                Some(())
            }
            "free" => self.freed(event, inode?),
            "alloc" => {
                let inode = inode?;
                self.forget(inode);
                self.inodes.insert(inode, Inode::fresh(self.events));
                self.make_room(inode);
                Some(())
            }
            "evict" => self.evict(event, inode?),
            "destroy" => self.destroy(event, inode?),
            "destroy_io" => self.destroy_io(event, inode?),
            "destroy_size" => self.destroy_size(event, inode?),
            "write_begin" => self.write_begin(event, inode?),
            "wb_error" => {
                if let Some(inode) = self.inodes.get_mut(&inode?) {
                    inode.failed = true;
                }
                Some(())
            }
            "readahead" | "read_page" => self.reads_pages(event, inode?),
            "put_super" => {
                self.leaked = false;
                Some(())
            }
            "tracing_mark_write" => self.mark(event),
            _ => self.call(event, inode.unwrap_or(0)),
        }
    }

    /// Entries and returns of functions.
    fn call(&mut self, event: &KernelEvent, inode: u64) -> Option<()> {
        const CALLS: [&str; 12] = [
            "mkwrite",
            "fallocate",
            "write",
            "writepages",
            "setattr",
            "truncate",
            "drop",
            "drop_range",
            "reclaim",
            "clear_es",
            "seek_data",
            "seek_hole",
        ];
        let name = event.name.as_str();
        if let Some(probe) = CALLS.into_iter().find(|probe| *probe == name) {
            let value = |name| event.field(name).unwrap_or(0);
            let second = if probe == "drop_range" { "to" } else { "bits" };
            let mut values = [value("size"), value(second), value("from")];
            if let "seek_data" | "seek_hole" = probe {
                self.before_seek(inode, &mut values);
            }
            let call = Call { probe, since_us: event.at_us, inode, values };
            self.threads.of(event.tid).enter(call);
            if probe == "truncate" {
                let by = self.threads.actor(event);
                self.with(inode, |inode, _| inode.tell(&by, Change::Truncate(values[0])));
            }
            return Some(());
        }
        let entry = name.strip_suffix("_end")?;
        // Every one of these returns after i_data_sem was given up.
        if !matches!(
            entry,
            "reclaim" | "clear_es" | "seek_data" | "seek_hole" | "drop" | "drop_range"
        ) {
            self.sections_over(event.tid);
        }
        let call = self.threads.of(event.tid).leave(entry)?;
        let returned = event.field("ret");
        match entry {
            "truncate" if returned == Some(0) => self.truncated(event, &call),
            "writepages" if returned.is_some_and(|ret| ret.cast_signed() < 0) => {
                self.with(call.inode, |inode, _| inode.failed = true);
            }
            "seek_data" | "seek_hole" => self.sought(event, &call, returned?),
            "drop" | "drop_range" => self.dropped(event.tid, &call),
            "fallocate" | "setattr" => self.blocks_changed(event.tid),
            _ => {}
        }
        Some(())
    }

    /// Changes what is known of an inode, which is made if it is new.
    fn with<T>(&mut self, address: u64, change: impl FnOnce(&mut Inode, &Context) -> T) -> T {
        let context =
            Context { exclusive: self.kernel.is_some_and(|of| of.has(Flag::ExclusiveTypes)) };
        let inode = self.inodes.entry(address).or_default();
        let before = inode.ranges();
        inode.changed = self.events;
        let result = change(inode, &context);
        self.ranges = self.ranges + inode.ranges() - before;
        self.make_room(address);
        result
    }

    /// Forgets inodes until all bounds hold; `current` comes last.
    fn make_room(&mut self, current: u64) {
        while self.inodes.len() > MOST_INODES || self.ranges > MOST_RANGES {
            let others = self.inodes.iter().filter(|(address, _)| **address != current);
            let oldest = others.min_by_key(|(_, inode)| inode.changed).map(|(address, _)| *address);
            self.forget(oldest.unwrap_or(current));
            self.forgotten += 1;
        }
    }

    fn forget(&mut self, address: u64) -> Option<Inode> {
        let inode = self.inodes.remove(&address)?;
        self.ranges = self.ranges.saturating_sub(inode.ranges());
        Some(inode)
    }

    /// Tells of a broken rule, once per inode.
    fn find(&mut self, address: u64, finding: DelallocFinding) {
        if self.unchecked.contains(&finding.rule) {
            return;
        }
        if let Some(inode) = self.inodes.get_mut(&address) {
            if inode.told.contains(&finding.rule) {
                return;
            }
            inode.told.push(finding.rule);
            let story = inode.story().map(|step| (Arc::clone(&step.by), step.what.to_string()));
            self.found.push(DelallocFinding { story: story.collect(), ..finding });
        } else {
            self.found.push(finding);
        }
        if let Some(finding) = self.found.last_mut() {
            let others = finding.story.iter_mut().map(|(actor, _)| actor);
            let threads = &self.threads;
            let all = others.chain([&mut finding.by]).chain(finding.against.as_mut());
            all.for_each(|actor| threads.named(actor));
        }
    }
}

/// What a change needs to know besides the inode.
struct Context {
    /// [`Flag::ExclusiveTypes`].
    exclusive: bool,
}

fn block(event: &KernelEvent, name: &str) -> Option<u32> {
    u32::try_from(event.field(name)?).ok()
}

/// An actor and, if it is another's, what that one does.
fn unless_same(by: &Arc<Actor>, other: Option<Arc<Actor>>) -> Option<Arc<Actor>> {
    other.filter(|other| other.tid != by.tid)
}

#[cfg(test)]
mod tests;
