//! Groups: free counts and checksums against the bitmaps, and what a bitmap's changed bits mean.
//!
//! In: descriptors and bitmaps of a transaction, the maps before and after. Out: findings.
//! Must not know: inodes' trees beyond who claims a block.

use std::collections::{BTreeMap, HashMap};

use ext4_layout::{Facts, Home};

use super::{Case, Verdict};
use crate::shadow::finding::{Finding, Rule};
use crate::shadow::inode::word;

const GROUP_BLOCK_UNINIT: u16 = 0x2;

/// Counts of a group's descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    flags: u16,
    free_clusters: u32,
    free_inodes: u32,
}

/// The groups whose descriptors were seen: some bytes for each.
#[derive(Clone, Debug, Default)]
pub(in crate::shadow) struct Groups {
    counts: HashMap<u32, Counts>,
    /// Free inodes by the inode bitmap.
    free_inodes: HashMap<u32, u32>,
}

impl Groups {
    /// An inode bitmap of the transaction.
    pub(super) fn inode_bitmap(&mut self, case: &Case<'_>, group: u32, bytes: &[u8]) {
        let inodes = case.facts.inodes_per_group as usize;
        let (whole, rest) = (inodes / 8, inodes % 8);
        let mut used: u32 = bytes.iter().take(whole).map(|byte| byte.count_ones()).sum();
        if let Some(byte) = bytes.get(whole) {
            used += (byte & ((1_u8 << rest) - 1)).count_ones();
        }
        self.free_inodes.insert(group, case.facts.inodes_per_group.saturating_sub(used));
    }

    /// A block of descriptors of the transaction, and the bitmaps that belong to them, which are
    /// taken out of `bitmaps`. Gives how many groups were checked.
    pub(super) fn descriptors(
        &mut self,
        case: &Case<'_>,
        pblk: u64,
        bytes: &[u8],
        bitmaps: &mut BTreeMap<u32, &[u8]>,
        out: &mut Verdict,
    ) -> u64 {
        let mut checked = 0;
        let Some(groups) = case.new.groups_of_descriptors(pblk) else {
            return checked;
        };
        for (raw, group) in bytes.chunks_exact(case.facts.descriptor_bytes).zip(groups) {
            if !case.new.descriptor_fits(group, raw) {
                let seen = format!("the descriptor of group {group} has a wrong checksum or place");
                let blocks = Some((pblk, pblk));
                out.findings.push(Finding { blocks, ..Finding::of(Rule::Checksum, seen) });
                continue;
            }
            let counts = Counts::parse(raw, case.facts.uninit_groups);
            let bitmap = bitmaps.remove(&group);
            if let Some(bitmap) = bitmap
                && counts.has_bitmap()
                && !case.new.bitmap_fits(raw, bitmap)
            {
                let seen = format!("the block bitmap of group {group} has a wrong checksum");
                out.findings.push(Finding::of(Rule::Checksum, seen));
            }
            if self.counts.insert(group, counts) != Some(counts) || bitmap.is_some() {
                checked += u64::from(self.check(case, group, out));
            }
        }
        checked
    }

    /// Compares a group's counts with its bitmaps; false if its descriptor is not known.
    pub(super) fn check(&self, case: &Case<'_>, group: u32, out: &mut Verdict) -> bool {
        let Some(of) = self.counts.get(&group).filter(|of| of.has_bitmap()) else {
            return false;
        };
        let mut compare = |what: &str, counted: u32, shown: Option<u32>| {
            if let Some(shown) = shown.filter(|shown| *shown != counted) {
                let seen =
                    format!("group {group}: {counted} free {what} counted, {shown} in the bitmap");
                out.findings.push(Finding::of(Rule::Counts, seen));
            }
        };
        compare("clusters", of.free_clusters, case.new.free_clusters(group));
        compare("inodes", of.free_inodes, self.free_inodes.get(&group).copied());
        true
    }

    /// Free clusters by all descriptors, if all are known.
    pub(in crate::shadow) fn free_clusters(&self, facts: &Facts) -> Option<u64> {
        let all = (0..facts.groups).map(|group| self.counts.get(&group));
        all.map(|counts| counts.map(|counts| u64::from(counts.free_clusters))).sum()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.counts.capacity() * 20 + self.free_inodes.capacity() * 9
    }
}

impl Counts {
    fn parse(raw: &[u8], uninit_groups: bool) -> Counts {
        let half = |at| word(raw, at) & 0xffff;
        let high = |at| if raw.len() >= 64 { half(at) << 16 } else { 0 };
        Counts {
            flags: if uninit_groups { half(0x12) as u16 } else { 0 },
            free_clusters: high(0x2c) | half(0xc),
            free_inodes: high(0x2e) | half(0xe),
        }
    }

    fn has_bitmap(self) -> bool {
        self.flags & GROUP_BLOCK_UNINIT == 0
    }
}

/// The bits of a bitmap that changed: blocks that are mapped are not freed, and blocks in use have
/// an owner.
pub(super) fn changed_bits(case: &Case<'_>, group: u32, bytes: &[u8], out: &mut Verdict) {
    case.old.bitmap_changes(group, bytes, &mut |first, end, used| {
        if !used {
            out.freed.push((first, end));
        }
        let mut at = first;
        while at < end {
            let (owner, next) = case.new.claimant(at, end);
            if let (Some(ino), false) = (owner, used) {
                let seen = "it was freed in the block bitmap, and the inode maps it".to_owned();
                out.findings.push(Finding {
                    inode: Some(ino),
                    blocks: Some((at, next - 1)),
                    ..Finding::of(Rule::MappedFree, seen)
                });
            }
            let whole = case.facts.cluster_bits == 0 && !case.new.has_gaps();
            if used && owner.is_none() && whole {
                leak(case, at, next, out);
            }
            at = next;
        }
    });
}

fn leak(case: &Case<'_>, first: u64, end: u64, out: &mut Verdict) {
    let mut at = first;
    while at < end {
        let (home, next) = case.new.block(at, end);
        if home == Ok(Home::Unknown) {
            let seen = "it was taken in the block bitmap, and nothing maps it".to_owned();
            out.findings
                .push(Finding { blocks: Some((at, next - 1)), ..Finding::of(Rule::Leak, seen) });
        }
        at = next;
    }
}
