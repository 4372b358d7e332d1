//! What each block of the journal's log holds, as far as descriptors and headers tell.
//!
//! In: entries by the block's number in the log. Out: entries that are still live, which is those
//! of transactions not older than the log's tail (`s_sequence`).

use crate::class::Tid;
use crate::radix::{Radix, page_bytes};

const PAGE_ENTRIES: usize = 64;

/// A block of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Entry {
    #[default]
    Idle,
    Descriptor(Tid),
    /// A copy of the block at `pblk`.
    Copy {
        tid: Tid,
        pblk: u64,
    },
    Commit(Tid),
    Revoke(Tid),
}

impl Entry {
    fn tid(self) -> Option<Tid> {
        match self {
            Entry::Idle => None,
            Entry::Descriptor(tid)
            | Entry::Copy { tid, .. }
            | Entry::Commit(tid)
            | Entry::Revoke(tid) => Some(tid),
        }
    }
}

/// Whether `tid` is `than` or comes after it, with wrap-around (`tid_geq` of jbd2).
pub(crate) fn not_older(tid: Tid, than: Tid) -> bool {
    tid.wrapping_sub(than).cast_signed() >= 0
}

#[derive(Clone, Debug)]
struct Page([Entry; PAGE_ENTRIES]);

impl Default for Page {
    fn default() -> Self {
        Page([Entry::Idle; PAGE_ENTRIES])
    }
}

/// The log, by block number in it.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    pages: Radix<Page>,
    /// Blocks of the log, superblock and fast-commit area included.
    blocks: u32,
    /// First block of the fast-commit area; `blocks` when there is none.
    pub(crate) fast_commit: u32,
    pub(crate) tail: Tid,
}

impl Log {
    pub(crate) fn new(blocks: u32, fast_commit: u32, tail: Tid) -> Log {
        let pages = u64::from(blocks).div_ceil(PAGE_ENTRIES as u64);
        Log { pages: Radix::new(pages), blocks, fast_commit, tail }
    }

    /// Blocks of the log.
    pub(crate) fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The entry of a block; that of a transaction before the tail is idle.
    pub(crate) fn get(&self, index: u32) -> Entry {
        let (page, slot) = place(index);
        let entry = self.pages.get(page).map_or(Entry::Idle, |page| page.0[slot]);
        match entry.tid() {
            Some(tid) if not_older(tid, self.tail) => entry,
            _ => Entry::Idle,
        }
    }

    /// Returns whether the entry is another one now.
    pub(crate) fn set(&mut self, index: u32, entry: Entry) -> bool {
        let (page, slot) = place(index);
        let old = self.pages.get(page).map_or(Entry::Idle, |page| page.0[slot]);
        if old == entry || index >= self.blocks {
            return false;
        }
        if let Some(page) = self.pages.get_mut(page) {
            page.0[slot] = entry;
        }
        true
    }

    /// One past the last block, `limit` at most, of the idle ones that start at `index`.
    pub(crate) fn idle_until(&self, index: u32, limit: u32) -> u32 {
        let mut at = index;
        while at < limit {
            let (page, slot) = place(at);
            if self.pages.get(page).is_none() {
                let next = self
                    .pages
                    .next_present(page, place(limit).0 + 1)
                    .map_or(u64::MAX, |page| page.saturating_mul(PAGE_ENTRIES as u64));
                at = u32::try_from(next).unwrap_or(u32::MAX);
                debug_assert!(slot < PAGE_ENTRIES);
            } else if self.get(at) == Entry::Idle {
                at += 1;
            } else {
                break;
            }
        }
        at.clamp(index, limit)
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.pages.heap_bytes(|_| page_bytes::<Page>())
    }
}

fn place(index: u32) -> (u64, usize) {
    (u64::from(index) / PAGE_ENTRIES as u64, index as usize % PAGE_ENTRIES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_before_the_tail_are_idle() {
        let mut log = Log::new(1000, 1000, 5);
        assert!(log.set(10, Entry::Descriptor(4)));
        assert!(log.set(700, Entry::Copy { tid: 6, pblk: 99 }));
        assert!(!log.set(700, Entry::Copy { tid: 6, pblk: 99 }));
        assert_eq!(log.get(10), Entry::Idle);
        assert_eq!(log.idle_until(1, 1000), 700);
        log.tail = 7;
        assert_eq!(log.idle_until(1, 1000), 1000);
        assert!(!log.set(1000, Entry::Commit(9)));
    }

    #[test]
    fn transaction_numbers_wrap() {
        assert!(not_older(2, u32::MAX - 1));
        assert!(!not_older(u32::MAX - 1, 2));
    }
}
