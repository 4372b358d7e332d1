//! Which inode owns which blocks: disjoint runs in pages of 4096 blocks.
//!
//! In: claims and releases, each with its [`Source`], the block (or inode) whose bytes said so.
//! Out: the owner of a block. A claim takes over what it overlaps; a release gives up only what
//! still goes back to its own source, and gives it back to a claim that it had taken over. So the
//! order in which two blocks that hand ranges over to each other become known does not matter.

use std::sync::Arc;

use crate::audit::Contest;
use crate::class::{Ino, Written};
use crate::radix::{Radix, page_bytes};

const PAGE_BITS: u32 = 12;
const PAGE_BLOCKS: u64 = 1 << PAGE_BITS;

/// Claims taken over that are remembered at most. A sound file system has them only while the
/// blocks of one change are being written; beyond the limit a damaged one loses some labels.
const TAKEN_OVER_MAX: usize = 1024;

/// Whose bytes made a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source(u64);

impl Source {
    /// `i_file_acl` of some inodes.
    pub(crate) const XATTR: Source = Source(u64::MAX);
    const INODE: u64 = 1 << 63;

    pub(crate) fn inode(ino: Ino) -> Source {
        Source(Source::INODE | u64::from(ino))
    }

    /// A block of a tree; block numbers are below 2^48.
    pub(crate) fn node(pblk: u64) -> Source {
        Source(pblk)
    }

    /// The block, for a source that is one.
    pub(crate) fn as_node(self) -> Option<u64> {
        (self.0 & Source::INODE == 0).then_some(self.0)
    }
}

/// What the blocks of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Data(Written),
    Directory,
    Xattr,
    ExtentNode {
        depth: u16,
    },
    Indirect,
    OrphanFile,
    /// `lblk` is the block's number in the log.
    Log,
}

/// The owner of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) role: Role,
    pub(crate) ino: Ino,
    /// Logical block of the block asked for.
    pub(crate) lblk: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u16,
    /// One past the last; up to 4096.
    end: u16,
    owner: Owner,
    source: Source,
}

impl Run {
    fn cut(self, first: u16, end: u16) -> Run {
        let lblk = self.owner.lblk.wrapping_add(u32::from(first - self.first));
        Run { first, end, owner: Owner { lblk, ..self.owner }, ..self }
    }
}

/// A claim, or a part of one, that a later one took over.
#[derive(Clone, Copy, Debug)]
struct TakenOver {
    pblk: u64,
    end: u64,
    owner: Owner,
    source: Source,
}

impl TakenOver {
    fn cut(self, pblk: u64, end: u64) -> Option<TakenOver> {
        let (pblk, end) = (pblk.max(self.pblk), end.min(self.end));
        let lblk = self.owner.lblk.wrapping_add(pblk.wrapping_sub(self.pblk) as u32);
        (pblk < end).then_some(TakenOver { pblk, end, owner: Owner { lblk, ..self.owner }, ..self })
    }
}

/// All runs of a file system.
#[derive(Clone, Debug)]
pub(crate) struct Runs {
    pages: Radix<Vec<Run>>,
    taken_over: Arc<Vec<TakenOver>>,
}

impl Runs {
    pub(crate) fn new(blocks: u64) -> Runs {
        Runs { pages: Radix::new(blocks.div_ceil(PAGE_BLOCKS)), taken_over: Arc::default() }
    }

    /// Makes `owner` the owner of `len` blocks from `pblk` on; `owner.lblk` is the first block's.
    pub(crate) fn claim(&mut self, pblk: u64, len: u64, owner: Owner, source: Source) {
        let mut lost = Vec::new();
        each_page(pblk, len, |index, first, end, skipped| {
            if let Some(page) = self.pages.get_mut(index) {
                let start = index << PAGE_BITS;
                let others = carve(page, first, end, None).filter(|run| run.source != source);
                lost.extend(others.map(|run| TakenOver {
                    pblk: start + u64::from(run.first),
                    end: start + u64::from(run.end),
                    owner: run.owner,
                    source: run.source,
                }));
                let at = page.partition_point(|run| run.first < first);
                let lblk = owner.lblk.wrapping_add(skipped as u32);
                page.insert(at, Run { first, end, owner: Owner { lblk, ..owner }, source });
            }
        });
        if !lost.is_empty() && self.taken_over.len() + lost.len() <= TAKEN_OVER_MAX {
            Arc::make_mut(&mut self.taken_over).append(&mut lost);
        }
    }

    /// Gives up what `source` still owns of `len` blocks from `pblk` on.
    pub(crate) fn release(&mut self, pblk: u64, len: u64, source: Source) {
        let waiting = self.take_overlapping(pblk, pblk.saturating_add(len));
        each_page(pblk, len, |index, first, end, _| {
            let held = |page: &Vec<Run>| {
                let from = page.partition_point(|run| run.end <= first);
                let mut runs = page[from..].iter().take_while(|run| run.first < end);
                runs.any(|run| run.source == source)
            };
            if !self.pages.get(index).is_some_and(held) {
                return;
            }
            let Some(page) = self.pages.get_mut(index) else {
                return;
            };
            drop(carve(page, first, end, Some(source)));
            if page.is_empty() {
                self.pages.remove(index);
            }
        });
        // The claim taken over last comes first.
        let mut waiting_still = Vec::new();
        for claim in waiting.into_iter().rev().filter(|claim| claim.source != source) {
            self.give_back(claim, &mut waiting_still);
        }
        if !waiting_still.is_empty() {
            Arc::make_mut(&mut self.taken_over).extend(waiting_still.into_iter().rev());
        }
    }

    /// Removes and returns the claims taken over in `from..to`; what sticks out stays.
    fn take_overlapping(&mut self, from: u64, to: u64) -> Vec<TakenOver> {
        if !self.taken_over.iter().any(|claim| claim.pblk < to && from < claim.end) {
            return Vec::new();
        }
        let claims = Arc::make_mut(&mut self.taken_over);
        let all = std::mem::take(claims);
        let outside = all.iter().flat_map(|claim| [claim.cut(0, from), claim.cut(to, u64::MAX)]);
        *claims = outside.flatten().take(2 * TAKEN_OVER_MAX).collect();
        all.iter().filter_map(|claim| claim.cut(from, to)).collect()
    }

    /// Makes a claim that was taken over again where nothing owns the blocks now.
    fn give_back(&mut self, claim: TakenOver, waiting_still: &mut Vec<TakenOver>) {
        let mut at = claim.pblk;
        while at < claim.end {
            let (owner, end) = self.at(at, claim.end);
            match claim.cut(at, end) {
                Some(part) if owner.is_none() => {
                    self.claim(part.pblk, part.end - part.pblk, part.owner, part.source);
                }
                part => waiting_still.extend(part),
            }
            at = end;
        }
    }

    /// The owner of a block, if it has one, and one past the last block, `limit` at most, that
    /// the same run (or the same gap) covers.
    pub(crate) fn at(&self, pblk: u64, limit: u64) -> (Option<Owner>, u64) {
        let index = pblk >> PAGE_BITS;
        let start = index << PAGE_BITS;
        let Some(page) = self.pages.get(index) else {
            let next = self.pages.next_present(index, limit.div_ceil(PAGE_BLOCKS));
            let next = next.map_or(limit, |index| index << PAGE_BITS);
            return (None, next.min(limit));
        };
        let at = (pblk - start) as u16;
        let found = page.partition_point(|run| run.end <= at);
        match page.get(found) {
            Some(run) if run.first <= at => {
                let lblk = run.owner.lblk.wrapping_add(u32::from(at - run.first));
                (Some(Owner { lblk, ..run.owner }), limit.min(start + u64::from(run.end)))
            }
            Some(run) => (None, limit.min(start + u64::from(run.first))),
            None => (None, limit.min(start + PAGE_BLOCKS)),
        }
    }

    /// Claims that a later one took over and that still stand.
    pub(crate) fn contests(&self) -> impl Iterator<Item = Contest> {
        self.taken_over.iter().filter(|claim| claim.owner.is_exclusive()).filter_map(|claim| {
            let (holder, end) = self.at(claim.pblk, claim.end);
            let holder = holder.filter(Owner::is_exclusive)?;
            Some(Contest { first: claim.pblk, end, holder: holder.ino, other: claim.owner.ino })
        })
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.pages.heap_bytes(|page| page_bytes::<Vec<Run>>() + page.capacity() * size_of::<Run>())
    }
}

/// Calls `visit(page, first, end, blocks before it)` for the part of the range in each page.
fn each_page(pblk: u64, len: u64, mut visit: impl FnMut(u64, u16, u16, u64)) {
    let end = pblk.saturating_add(len);
    let mut at = pblk;
    while at < end {
        let index = at >> PAGE_BITS;
        let start = index << PAGE_BITS;
        let stop = end.min(start + PAGE_BLOCKS);
        visit(index, (at - start) as u16, (stop - start) as u16, at - pblk);
        at = stop;
    }
}

/// Removes `first..end` from the runs of a page, or from those of one source; returns what was
/// removed.
fn carve(
    page: &mut Vec<Run>,
    first: u16,
    end: u16,
    only: Option<Source>,
) -> impl Iterator<Item = Run> + use<> {
    let from = page.partition_point(|run| run.end <= first);
    let to = from + page[from..].partition_point(|run| run.first < end);
    let mut rest = Vec::new();
    let mut removed = Vec::new();
    for run in &page[from..to] {
        if only.is_some_and(|source| run.source != source) {
            rest.push(*run);
            continue;
        }
        if run.first < first {
            rest.push(run.cut(run.first, first));
        }
        removed.push(run.cut(run.first.max(first), run.end.min(end)));
        if end < run.end {
            rest.push(run.cut(end, run.end));
        }
    }
    page.splice(from..to, rest);
    removed.into_iter()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCKS: u64 = 3 * PAGE_BLOCKS;

    fn owner(ino: Ino, lblk: u32) -> Owner {
        Owner { role: Role::Data(Written::Written), ino, lblk }
    }

    proptest! {
        /// The runs answer as one stack of claims per block does.
        #[test]
        fn runs_agree_with_a_stack_of_claims_per_block(
            steps in prop::collection::vec((any::<bool>(), 0..BLOCKS, 1..5000_u64, 1..4_u32), 1..40)
        ) {
            let mut runs = Runs::new(BLOCKS);
            let mut dumb: Vec<Vec<(Owner, Source)>> = vec![Vec::new(); BLOCKS as usize];
            for (claim, pblk, len, ino) in steps {
                let len = len.min(BLOCKS - pblk);
                let source = Source::inode(ino);
                // As trees do: a source gives up a block before it claims it again.
                runs.release(pblk, len, source);
                if claim {
                    runs.claim(pblk, len, owner(ino, 100), source);
                }
                for (stack, at) in dumb[pblk as usize..(pblk + len) as usize].iter_mut().zip(0..) {
                    stack.retain(|(_, held)| *held != source);
                    if claim {
                        stack.push((owner(ino, 100 + at), source));
                    }
                }
            }
            let mut at = 0;
            while at < BLOCKS {
                let (found, end) = runs.at(at, BLOCKS);
                prop_assert!(end > at);
                for (block, step) in (at..end).zip(0_u32..) {
                    let expected = found.map(|owner| Owner { lblk: owner.lblk + step, ..owner });
                    let top = dumb[block as usize].last().map(|(owner, _)| *owner);
                    prop_assert_eq!(top, expected);
                }
                at = end;
            }
        }
    }
}
