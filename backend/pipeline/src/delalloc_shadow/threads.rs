//! What each thread of the guest is in, as far as probes say so.
//!
//! In: entries and returns. Out: the operation of a thread and since when.
//! Must not know: rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Actor;
use crate::kernel::KernelEvent;

/// Most threads; beyond that all are forgotten, which makes what they are in unknown.
const MOST_THREADS: usize = 4096;
/// What the kernel writes while it does not know a thread's name.
const NAMELESS: &str = "<...>";
/// Most operations within each other, and most inodes that one of them changes.
const DEEPEST: usize = 8;

/// What is called, and what of it is to be looked at when it returns.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// Name of the probe of its entry.
    pub(super) probe: &'static str,
    /// Since when, in microseconds.
    pub(super) since_us: u64,
    /// The inode that it is about, if the probe says so; else 0.
    pub(super) inode: u64,
    /// What the return needs to know.
    pub(super) values: [u64; 3],
}

/// One thread.
#[derive(Debug, Default)]
pub(super) struct Thread {
    /// Its name, once the kernel has said it.
    name: String,
    calls: Vec<Call>,
    /// Inodes with changes of this thread that nobody has judged.
    pub(super) changed: Vec<u64>,
    /// The last change of extent status, for the case that it fails.
    pub(super) last: Option<(u64, u32, u32)>,
    /// The inode whose pages it has dropped to change their blocks.
    pub(super) changes_blocks_of: Option<u64>,
    /// The inode whose `i_es_seq` it is about to advance.
    pub(super) advances: Option<u64>,
    /// The delayed blocks that its writeback is about to give unwritten space, and the inode.
    pub(super) writes_back: Option<(u64, u32, u32)>,
}

/// All threads.
#[derive(Debug, Default)]
pub(super) struct Threads(BTreeMap<u32, Thread>);

impl Threads {
    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The thread of an event.
    pub(super) fn of(&mut self, tid: u32) -> &mut Thread {
        // A thread that ends inside leaves its entry behind; ids come round again.
        if self.0.len() >= MOST_THREADS && !self.0.contains_key(&tid) {
            self.0.clear();
        }
        self.0.entry(tid).or_default()
    }

    /// Whether the thread is in such a call.
    pub(super) fn is_in(&self, tid: u32, probe: &str) -> bool {
        let of = self.0.get(&tid);
        of.is_some_and(|thread| thread.calls.iter().any(|call| call.probe == probe))
    }

    /// Notes the name of the thread of an event.
    pub(super) fn learn(&mut self, event: &KernelEvent) {
        let thread = self.of(event.tid);
        if event.thread != NAMELESS && thread.name != event.thread {
            thread.name.clone_from(&event.thread);
        }
    }

    /// Gives an actor the name that has become known since.
    pub(super) fn named(&self, actor: &mut Arc<Actor>) {
        if actor.thread == NAMELESS
            && let Some(Thread { name, .. }) = self.0.get(&actor.tid)
            && !name.is_empty()
        {
            Arc::make_mut(actor).thread.clone_from(name);
        }
    }

    /// Who an event is by.
    pub(super) fn actor(&self, event: &KernelEvent) -> Arc<Actor> {
        let calls = self.0.get(&event.tid).map_or(&[][..], |thread| &thread.calls);
        // The outermost says most: a write that maps is a write.
        let outermost = calls.iter().find_map(|call| Some((operation(call.probe)?, call.since_us)));
        Arc::new(Actor {
            thread: event.thread.clone(),
            tid: event.tid,
            operation: outermost,
            at_us: event.at_us,
        })
    }
}

impl Thread {
    /// A call begins.
    pub(super) fn enter(&mut self, call: Call) {
        // One that never returned: its return was missed.
        self.calls.retain(|of| of.probe != call.probe);
        if self.calls.len() < DEEPEST {
            self.calls.push(call);
        }
    }

    /// A call returns.
    pub(super) fn leave(&mut self, probe: &str) -> Option<Call> {
        let at = self.calls.iter().rposition(|call| call.probe == probe)?;
        // Whatever was called within has returned, too.
        self.calls.truncate(at + 1);
        self.calls.pop()
    }

    /// Notes that it has changed an inode.
    pub(super) fn changes(&mut self, inode: u64) {
        if self.changed.len() < DEEPEST && !self.changed.contains(&inode) {
            self.changed.push(inode);
        }
    }
}

/// The kernel's name of what a probe is the entry of; `None` for what explains nothing.
fn operation(probe: &str) -> Option<&'static str> {
    Some(match probe {
        "mkwrite" => "ext4_page_mkwrite",
        "fallocate" => "ext4_fallocate",
        "write" => "ext4_file_write_iter",
        "writepages" => "ext4_writepages",
        "setattr" => "ext4_setattr",
        "truncate" => "ext4_truncate",
        "reclaim" => "es_do_reclaim_extents",
        "clear_es" => "ext4_clear_inode_es",
        "seek_data" => "iomap_seek_data",
        "seek_hole" => "iomap_seek_hole",
        _ => return None,
    })
}
