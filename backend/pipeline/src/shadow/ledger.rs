//! Allocation at each commit, for what the commit touched (D1, D2, D3).
//!
//! In: the map before and after a transaction, and the bytes of its blocks. Out: findings, and
//! which blocks changed hands.
//! Must not know: requests, the log's order on the wire.
//!
//! What is remembered from commit to commit is bounded ([`INODES_MAX`], [`SUMS_MAX`]); beyond the
//! bound it is forgotten, and a check that needs it is left out until it is seen again.

mod groups;
mod orphans;

use std::collections::{BTreeMap, HashMap};

use ext4_layout::{Child, Commit, Extent, ExtentNode, Facts, Home, Ino, LayoutMap, Written};

use super::finding::{Finding, Findings, Rule};
use super::fresh::{Data, Fresh};
use super::inode::{Content, RawInode};
use super::log::Effect;
use groups::{Groups, changed_bits};
use orphans::Orphans;

/// Inodes of which size and generation are remembered: about 8 MiB.
const INODES_MAX: usize = 1 << 17;
/// Inodes of which a checksum is remembered, by blocks of their tables: about 6 MiB.
const SUMS_MAX: usize = 1 << 20;
/// Inodes with large attributes count other inodes' blocks.
const INCOMPAT_EA_INODE: u32 = 0x400;

/// What is remembered of an inode.
#[derive(Clone, Copy, Debug)]
struct Known {
    generation: u32,
    /// No name leads to it.
    unlinked: bool,
    /// Blocks within its size, if no written block may lie beyond.
    size_blocks: Option<u64>,
    content: Content,
}

/// A commit and what is around it.
pub(super) struct Case<'a> {
    pub(super) facts: Facts,
    pub(super) old: &'a LayoutMap,
    pub(super) new: &'a LayoutMap,
    pub(super) commit: &'a Commit,
    /// What the log has of it; `None` if that was not followed.
    pub(super) effect: Option<&'a Effect>,
    pub(super) fresh: &'a Fresh,
    /// Data counts only once it was flushed.
    pub(super) needs_flush: bool,
    /// Data must be stored before its block becomes written (not with `data=writeback`).
    pub(super) ordered: bool,
}

/// What a commit comes to: findings, and blocks that changed hands (first, one past the last).
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    pub(super) findings: Findings,
    /// Not in use any more.
    pub(super) freed: Vec<(u64, u64)>,
    /// File data is written there now.
    pub(super) written: Vec<(u64, u64)>,
    /// Written data that became unwritten in place (FALLOC_FL_ZERO_RANGE): what is written there
    /// next may have been written before this commit, when it was not looked at.
    pub(super) doubtful: Vec<(u64, u64)>,
}

/// What is remembered from commit to commit.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    inodes: HashMap<Ino, Known>,
    /// Checksums of the inodes of a table's block, to skip those that did not change.
    tables: HashMap<u64, Box<[u32]>>,
    /// Checksums in `tables`.
    table_sums: usize,
    pub(super) groups: Groups,
    pub(super) orphans: Orphans,
    /// Blocks and counts that could not be checked.
    pub(super) unknown: u64,
    /// Extents, inodes and groups that were.
    pub(super) checked: u64,
}

impl Ledger {
    /// Nothing is known any more but the counts.
    pub(super) fn forget(&mut self) {
        let Ledger { unknown, checked, .. } = *self;
        *self = Ledger { unknown, checked, ..Ledger::default() };
    }

    /// Checks a transaction that took effect.
    pub(super) fn commit(&mut self, case: &Case<'_>) -> Verdict {
        let mut out = Verdict::default();
        let mut bitmaps = BTreeMap::new();
        let blocks = &case.commit.blocks;
        self.orphans.note(case, blocks);
        for (pblk, bytes) in blocks {
            let (home, _) = case.new.block(*pblk, pblk.saturating_add(1));
            match home {
                Ok(Home::BlockBitmap { group }) => {
                    bitmaps.insert(group, &bytes[..]);
                    changed_bits(case, group, bytes, &mut out);
                }
                Ok(Home::InodeBitmap { group }) => self.groups.inode_bitmap(case, group, bytes),
                Ok(Home::InodeTable { first_inode, .. }) => {
                    self.table(case, *pblk, first_inode, bytes, &mut out);
                }
                _ => {}
            }
        }
        // After the tables: sizes and generations are those of this transaction.
        for (pblk, bytes) in blocks {
            match case.new.block(*pblk, pblk.saturating_add(1)).0 {
                Ok(Home::ExtentNode { inode, .. }) => {
                    self.node(case, *pblk, inode, bytes, &mut out);
                }
                Ok(Home::GroupDescriptors { .. }) => {
                    let groups = &mut self.groups;
                    self.checked += groups.descriptors(case, *pblk, bytes, &mut bitmaps, &mut out);
                }
                _ => {}
            }
        }
        // Bitmaps of groups whose descriptors are not in the transaction.
        for group in bitmaps.into_keys() {
            if self.groups.check(case, group, &mut out) {
                self.checked += 1;
            } else {
                self.unknown += 1;
            }
        }
        for contest in case.new.contests().take(16) {
            out.findings.push(Finding {
                inode: Some(contest.other),
                blocks: Some((contest.first, contest.end - 1)),
                ..Finding::of(Rule::TwoOwners, format!("inode {} maps it too", contest.holder))
            });
        }
        out
    }

    fn table(&mut self, case: &Case<'_>, pblk: u64, first: Ino, bytes: &[u8], out: &mut Verdict) {
        if self.table_sums > SUMS_MAX {
            self.tables.clear();
            self.table_sums = 0;
        }
        let sums: Box<[u32]> =
            bytes.chunks_exact(case.facts.inode_bytes).map(crc32c::crc32c).collect();
        self.table_sums += sums.len();
        let old = self.tables.insert(pblk, sums.clone());
        self.table_sums -= old.as_ref().map_or(0, |old| old.len());
        let inodes = bytes.chunks_exact(case.facts.inode_bytes).zip(first..).enumerate();
        for (place, (raw, ino)) in inodes {
            if old.as_ref().and_then(|old| old.get(place)) != sums.get(place) {
                self.inode(case, ino, RawInode(raw), out);
            }
        }
    }

    fn inode(&mut self, case: &Case<'_>, ino: Ino, raw: RawInode<'_>, out: &mut Verdict) {
        if raw.is_blank() {
            self.inodes.remove(&ino);
            return;
        }
        self.checked += 1;
        if !case.new.inode_fits(ino, raw.0) {
            let seen = "the inode has a wrong checksum".to_owned();
            out.findings.push(Finding { inode: Some(ino), ..Finding::of(Rule::Checksum, seen) });
            return;
        }
        if !raw.has_tree() {
            self.inodes.remove(&ino);
            return;
        }
        let block_bytes = case.facts.block_bytes as u64;
        let known = Known {
            generation: raw.generation(),
            unlinked: raw.links() == 0,
            size_blocks: raw.size_blocks(ino, block_bytes).filter(|_| raw.links() > 0),
            content: raw.content(ino, case.facts.journal_inode),
        };
        if self.inodes.len() >= INODES_MAX && !self.inodes.contains_key(&ino) {
            self.inodes.clear();
        }
        self.inodes.insert(ino, known);
        if known.content == Content::Special {
            return;
        }
        let node = match ExtentNode::parse(raw.root()) {
            Ok(node) => node,
            Err(bad) => {
                let seen = format!("its extent node has {bad}");
                out.findings.push(Finding { inode: Some(ino), ..Finding::of(Rule::Tree, seen) });
                return;
            }
        };
        self.entries(case, ino, known, node, out);
        block_count(case, ino, raw, node, out);
    }

    fn node(&mut self, case: &Case<'_>, pblk: u64, ino: Ino, bytes: &[u8], out: &mut Verdict) {
        let Some(known) = self.inodes.get(&ino).copied() else {
            self.unknown += 1;
            return;
        };
        let at = Some((pblk, pblk));
        if !case.new.node_fits(ino, known.generation, bytes) {
            let seen = "the extent node has a wrong checksum".to_owned();
            let finding = Finding::of(Rule::Checksum, seen);
            out.findings.push(Finding { inode: Some(ino), blocks: at, ..finding });
            return;
        }
        match ExtentNode::parse(bytes) {
            Ok(node) => self.entries(case, ino, known, node, out),
            Err(bad) => {
                let finding = Finding::of(Rule::Tree, format!("its extent node has {bad}"));
                out.findings.push(Finding { inode: Some(ino), blocks: at, ..finding });
            }
        }
    }

    fn entries(
        &mut self,
        case: &Case<'_>,
        ino: Ino,
        known: Known,
        node: ExtentNode<'_>,
        out: &mut Verdict,
    ) {
        if let Some(seen) = node.fault(case.facts.first_block, case.facts.blocks) {
            out.findings.push(Finding { inode: Some(ino), ..Finding::of(Rule::Tree, seen) });
            return;
        }
        for Child { pblk: child, .. } in node.children() {
            claimed(case, ino, (child, child + 1), None, out);
            self.has_content(case, ino, child, out);
        }
        let mut last_written = None;
        for extent in node.extents() {
            if extent.state == Written::Written {
                last_written = Some(extent);
            }
            self.extent(case, ino, known, extent, out);
        }
        if let (Some(last), Some(size_blocks)) = (last_written, known.size_blocks)
            && u64::from(last.lblk) + u64::from(last.len) > size_blocks
            && !self.orphans.has(ino)
        {
            let last_lblk = last.lblk + (last.len - 1);
            let over = u64::from(last.lblk).max(size_blocks);
            let seen =
                format!("written up to lblk {last_lblk}, and its size is {size_blocks} blocks");
            out.findings.push(Finding {
                inode: Some(ino),
                lblks: Some((over as u32, last_lblk)),
                blocks: Some((
                    last.pblk + (over - u64::from(last.lblk)),
                    last.pblk + u64::from(last.len - 1),
                )),
                ..Finding::of(Rule::PastSize, seen)
            });
        }
    }

    fn extent(
        &mut self,
        case: &Case<'_>,
        ino: Ino,
        known: Known,
        extent: Extent,
        out: &mut Verdict,
    ) {
        self.checked += 1;
        let end = extent.pblk + u64::from(extent.len);
        let mut at = extent.pblk;
        while at < end {
            let (old, next) = case.old.block(at, end);
            let same = match old {
                Ok(
                    Home::FileData { inode, state: Written::Written, .. }
                    | Home::Directory { inode },
                ) => inode == ino,
                _ => false,
            };
            if extent.state == Written::Unwritten
                && matches!(old, Ok(Home::FileData { state: Written::Written, .. }))
            {
                out.doubtful.push((at, next));
            }
            if !same {
                let lblk = extent.lblk + (at - extent.pblk) as u32;
                claimed(case, ino, (at, next), Some(lblk), out);
                match known.content {
                    Content::Data if extent.state == Written::Written => {
                        out.written.push((at, next));
                        self.stored(case, (ino, known), (at, next), lblk, old, out);
                    }
                    Content::Directory => {
                        (at..next).for_each(|block| self.has_content(case, ino, block, out));
                    }
                    Content::Data | Content::Special => {}
                }
            }
            at = next;
        }
    }

    /// D3: the blocks became written data of the inode; their data was stored before.
    fn stored(
        &mut self,
        case: &Case<'_>,
        (ino, known): (Ino, Known),
        (first, end): (u64, u64),
        lblk: u32,
        old: Result<Home, u32>,
        out: &mut Verdict,
    ) {
        let Some(effect) = case.effect.filter(|_| case.ordered) else {
            self.unknown += end - first;
            return;
        };
        if let Ok(Home::FileData { state: Written::Written, .. }) = old {
            // Blocks that move from file to file (EXT4_IOC_MOVE_EXT) keep their data.
            self.unknown += end - first;
            return;
        }
        if old == Ok(Home::Unknown) {
            // In use before, and the map does not say for whom: it has a bound.
            self.unknown += end - first;
            return;
        }
        if case.facts.cluster_bits > 0 && old != Ok(Home::Free) {
            // A block of a cluster that stays in use is reused without waiting for a commit.
            self.unknown += end - first;
            return;
        }
        let missing = |block: u64| {
            if effect.copies.contains_key(&block) {
                return None;
            }
            match case.fresh.data(block, case.needs_flush) {
                Data::There => None,
                other => Some(other),
            }
        };
        let next_missing = |from| case.fresh.first_missing(from, end, case.needs_flush);
        let mut at = next_missing(first);
        while let Some(block) = at.filter(|block| effect.copies.contains_key(block)) {
            at = next_missing(block + 1);
        }
        let Some((from, how)) = at.and_then(|block| Some((block, missing(block)?))) else {
            return;
        };
        let lblk = |block: u64| lblk + (block - first) as u32;
        let readable = self.readable_lblks(ino, known);
        let unread = |block: u64| u64::from(lblk(block)) >= readable;
        if how == Data::Unknown || unread(from) {
            self.unknown += end - from;
            return;
        }
        let to = (from..end).take_while(|block| missing(*block) == Some(how) && !unread(*block));
        let to = to.last().unwrap_or(from);
        let seen = match how {
            Data::Late => "its data was written after the commit record",
            Data::NotFlushed => "its data was not flushed before the commit record",
            _ => "nothing was written there since the block was free",
        };
        out.findings.push(Finding {
            inode: Some(ino),
            blocks: Some((from, to)),
            lblks: Some((lblk(from), lblk(to))),
            ..Finding::of(Rule::StaleData, seen.to_owned())
        });
    }

    /// Logical blocks of the inode that can be read after a power cut: recovery deletes an orphan
    /// without a name, and cuts any other to its size, before anybody reads it. ext4 counts on that:
    /// truncation and eviction drop pages whose blocks stay mapped until a later transaction, and
    /// with `data=journal` jbd2 drops their copies from the running one (`journal_unmap_buffer`,
    /// fs/jbd2/transaction.c), so that their blocks are committed as written without ever having
    /// been.
    fn readable_lblks(&self, ino: Ino, known: Known) -> u64 {
        match known.size_blocks {
            _ if known.unlinked => 0,
            Some(blocks) if self.orphans.has(ino) => blocks,
            _ => u64::MAX,
        }
    }

    /// D3 for metadata: a block that was not the inode's has a copy in the transaction.
    fn has_content(&mut self, case: &Case<'_>, ino: Ino, pblk: u64, out: &mut Verdict) {
        let Some(effect) = case.effect else {
            self.unknown += 1;
            return;
        };
        let was = case.old.block(pblk, pblk.saturating_add(1)).0;
        let new_block = matches!(was, Ok(Home::Free));
        if new_block && !effect.copies.contains_key(&pblk) {
            let seen = "it was free, and the transaction has no copy of it".to_owned();
            out.findings.push(Finding {
                inode: Some(ino),
                blocks: Some((pblk, pblk)),
                ..Finding::of(Rule::NoContent, seen)
            });
        }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let sums = self.table_sums * 4 + self.tables.len() * 16;
        self.inodes.capacity() * (size_of::<(Ino, Known)>() + 1)
            + self.tables.capacity() * 25
            + sums
            + self.groups.heap_bytes()
            + self.orphans.heap_bytes()
    }
}

/// `i_blocks` of an inode whose tree is in the inode is known exactly; any other is not 0.
fn block_count(
    case: &Case<'_>,
    ino: Ino,
    raw: RawInode<'_>,
    node: ExtentNode<'_>,
    out: &mut Verdict,
) {
    if case.facts.cluster_bits != 0 || case.facts.features[1] & INCOMPAT_EA_INODE != 0 {
        return;
    }
    let counted = raw.block_count(case.facts.block_bytes as u64);
    let mapped = node.extents().map(|extent| u64::from(extent.len)).sum::<u64>()
        + node.children().count() as u64
        + u64::from(raw.has_xattr_block());
    let wrong = if node.depth == 0 { counted != mapped } else { counted < mapped };
    if wrong {
        let seen = format!("i_blocks counts {counted} blocks, and the inode maps {mapped}");
        out.findings.push(Finding { inode: Some(ino), ..Finding::of(Rule::BlockCount, seen) });
    }
}

/// D1: blocks that the inode maps are in use, and nobody else's.
fn claimed(
    case: &Case<'_>,
    ino: Ino,
    (first, end): (u64, u64),
    lblk: Option<u32>,
    out: &mut Verdict,
) {
    let mut at = first;
    while at < end {
        let (home, next) = case.new.block(at, end);
        let rule = match home {
            Ok(Home::Free) => Some((Rule::MappedFree, "the block bitmap has it free")),
            Ok(
                Home::Superblock { .. }
                | Home::GroupDescriptors { .. }
                | Home::ReservedGdt
                | Home::BlockBitmap { .. }
                | Home::InodeBitmap { .. }
                | Home::InodeTable { .. }
                | Home::Mmp,
            )
            | Err(_) => Some((Rule::MapsMetadata, "it holds metadata of the file system")),
            Ok(_) => None,
        };
        if let Some((rule, seen)) = rule {
            let lblk = |block: u64| lblk.map(|lblk| lblk + (block - first) as u32);
            out.findings.push(Finding {
                inode: Some(ino),
                blocks: Some((at, next - 1)),
                lblks: lblk(at).zip(lblk(next - 1)),
                ..Finding::of(rule, seen.to_owned())
            });
        }
        at = next;
    }
}
