//! What the kernel trusts without asking the file system again: pages, and mappings with a number.
//!
//! In: events of the page cache and of `i_es_seq`. Out: findings of A7 and A9.
//! Must not know: how extent status looks.
//!
//! Punching, zeroing, collapsing, inserting and cutting off drop pages first and change the blocks
//! then. A page that is read in between shows blocks that are about to go. From Linux 5.15 on the
//! invalidate lock keeps readers out from before the drop until after the change, so whatever is
//! read in between breaks the rule; it is told when the blocks change.

use std::sync::Arc;

use delalloc::Invariant;

use super::rules::PAGE_BYTES;
use super::threads::Call;
use super::{Actor, DelallocFinding, DelallocShadow};
use crate::kernel::KernelEvent;

/// Calls that drop pages and then change their blocks.
const CHANGES_BLOCKS: [&str; 2] = ["fallocate", "setattr"];

/// Pages that a thread has dropped from the page cache, and whose blocks it will change.
#[derive(Debug)]
pub(super) struct Dropped {
    tid: u32,
    /// First and last byte.
    bytes: (u64, u64),
    /// The first read since then: by whom, its first page and how many.
    read: Option<(Arc<Actor>, u64, u64)>,
}

impl DelallocShadow {
    /// `truncate_pagecache` or `truncate_pagecache_range` has returned.
    pub(super) fn dropped(&mut self, tid: u32, call: &Call) {
        let changes_blocks = CHANGES_BLOCKS.iter().any(|of| self.threads.is_in(tid, of));
        let [_, to, from] = call.values;
        // Files of other file systems lose pages, too.
        if changes_blocks && let Some(inode) = self.inodes.get_mut(&call.inode) {
            // Pages that are cut through stay.
            let bytes = (from, if call.probe == "drop" { u64::MAX } else { to });
            inode.dropped = Some(Dropped { tid, bytes, read: None });
            self.threads.of(tid).changes_blocks_of = Some(call.inode);
        }
    }

    /// `ext4_readahead`, `ext4_read_folio`: the pages are in the page cache.
    pub(super) fn reads_pages(&mut self, event: &KernelEvent, address: u64) -> Option<()> {
        let page = event.field("page")?;
        let pages = event.field("pages").unwrap_or(1);
        let open = self.inodes.get(&address)?.dropped.as_ref()?;
        let (first, last) = open.bytes;
        // Only pages that lie in it whole: one that is cut through may be read.
        let from = page.max(first.div_ceil(PAGE_BYTES));
        let to = page.checked_add(pages)?.min(last.saturating_add(1) / PAGE_BYTES);
        if open.tid == event.tid || open.read.is_some() || from >= to {
            return Some(());
        }
        let by = self.threads.actor(event);
        let inode = self.inodes.get_mut(&address)?;
        inode.dropped.as_mut()?.read = Some((by, from, to - from));
        Some(())
    }

    /// A7: a thread is about to change blocks of an inode.
    pub(super) fn removes(&mut self, event: &KernelEvent, address: u64) {
        let inode = self.inodes.get_mut(&address);
        let Some(inode) = inode
            .filter(|inode| inode.dropped.as_ref().is_some_and(|dropped| dropped.tid == event.tid))
        else {
            return;
        };
        let ino = inode.ino;
        let read = inode.dropped.as_mut().and_then(|dropped| dropped.read.take());
        if let Some((reader, page, pages)) = read {
            let by = self.threads.actor(event);
            let seen = format!(
                "pages {page}+{pages} were read after they were dropped and before their blocks \
                 changed"
            );
            let finding = DelallocFinding::new(Invariant::A7, ino, &by, seen);
            self.find(address, finding.against(Some(reader)));
        }
    }

    /// What changes blocks has returned: readers may come again.
    pub(super) fn blocks_changed(&mut self, tid: u32) {
        if let Some(address) = self.threads.of(tid).changes_blocks_of.take()
            && let Some(inode) = self.inodes.get_mut(&address)
        {
            inode.dropped = None;
        }
    }

    /// A function that advances `i_es_seq` begins; with no blocks it does nothing.
    pub(super) fn advances(&mut self, tid: u32, address: u64, len: u32) {
        self.threads.of(tid).advances = (len > 0).then_some(address);
    }

    /// A9: `i_es_seq` under `i_es_lock`, before a change of extent status. One that only caches what
    /// is on disk leaves it as it is.
    pub(super) fn sequence(&mut self, event: &KernelEvent, address: u64) -> Option<()> {
        let now = u32::try_from(event.field("seq")?).ok()?;
        if self.threads.of(event.tid).advances.take() != Some(address) {
            return Some(());
        }
        let before = self.with(address, |inode, _| inode.seq.replace(now))?;
        // It wraps.
        if now.wrapping_sub(before).cast_signed() <= 0 {
            let by = self.threads.actor(event);
            let seen =
                format!("i_es_seq was {before} before the last change and is {now} after it");
            let other = self.inodes.get(&address).and_then(|inode| inode.last_two().0);
            let finding = DelallocFinding::new(Invariant::A9, event.field("ino")?, &by, seen);
            self.find(address, finding.against(super::unless_same(&by, other)));
        }
        Some(())
    }
}
