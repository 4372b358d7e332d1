//! Block bitmaps: which clusters of a group are in use.
//!
//! In: bitmap blocks. Out: in use or not, and how far that holds. A group without a bitmap (never
//! written, `BLOCK_UNINIT`) uses nothing beyond its metadata.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::class::Group;
use crate::radix::{Radix, page_bytes};

/// The bitmap of one group; bit n of byte n/8 is cluster n.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Bits {
    #[default]
    Clear,
    /// All in use; also the answer where the bitmap cannot be found.
    Set,
    Raw(Box<[u8]>),
}

/// The bitmaps of all groups.
#[derive(Clone, Debug)]
pub(crate) struct Bitmaps {
    groups: Radix<Bits>,
    bytes_per_group: usize,
    /// [`Bits::Set`], one for all groups: a damaged file system may have a million.
    full: Arc<Bits>,
}

impl Bitmaps {
    /// All clear; `clusters_per_group` is a multiple of 8.
    pub(crate) fn new(groups: u32, clusters_per_group: u32) -> Bitmaps {
        Bitmaps {
            groups: Radix::new(groups.into()),
            bytes_per_group: (clusters_per_group / 8) as usize,
            full: Arc::new(Bits::Set),
        }
    }

    pub(crate) fn clear(&mut self, group: Group) {
        self.groups.remove(group.into());
    }

    pub(crate) fn fill(&mut self, group: Group) {
        self.groups.put(group.into(), &self.full);
    }

    /// Replaces the bytes from `offset` on; what lies beyond the group's clusters is padding.
    /// Returns whether anything changed.
    pub(crate) fn patch(&mut self, group: Group, offset: usize, bytes: &[u8]) -> bool {
        let end = offset.saturating_add(bytes.len()).min(self.bytes_per_group);
        let Some(bytes) = end.checked_sub(offset).and_then(|len| bytes.get(..len)) else {
            return false;
        };
        let same = match self.groups.get(group.into()) {
            None | Some(Bits::Clear) => bytes.iter().all(|byte| *byte == 0),
            Some(Bits::Set) => bytes.iter().all(|byte| *byte == 0xff),
            Some(Bits::Raw(old)) => old.get(offset..end) == Some(bytes),
        };
        if same {
            return false;
        }
        let Some(bits) = self.groups.get_mut(group.into()) else {
            return false;
        };
        let mut raw = match std::mem::take(bits) {
            Bits::Clear => vec![0; self.bytes_per_group].into(),
            Bits::Set => vec![0xff; self.bytes_per_group].into(),
            Bits::Raw(raw) => raw,
        };
        raw[offset..end].copy_from_slice(bytes);
        *bits = if raw.iter().all(|byte| *byte == 0xff) { Bits::Set } else { Bits::Raw(raw) };
        true
    }

    /// Whether the cluster is in use, and one past the last cluster, `limit` at most, for which
    /// that holds as well.
    pub(crate) fn at(&self, group: Group, cluster: u32, limit: u32) -> (bool, u32) {
        match self.groups.get(group.into()) {
            None | Some(Bits::Clear) => (false, limit),
            Some(Bits::Set) => (true, limit),
            Some(Bits::Raw(raw)) => run(raw, cluster, limit),
        }
    }

    /// The runs of clusters whose bits in `new` are others: first, one past the last, in use then.
    pub(crate) fn changes(&self, group: Group, new: &[u8], out: &mut impl FnMut(u32, u32, bool)) {
        let old = match self.groups.get(group.into()) {
            None | Some(Bits::Clear) => Err(0),
            Some(Bits::Set) => Err(0xff),
            Some(Bits::Raw(raw)) => Ok(raw),
        };
        let mut open: Option<(u32, u32, bool)> = None;
        for (at, new) in new.iter().take(self.bytes_per_group).enumerate() {
            let old = old.map_or_else(|byte| byte, |raw| raw.get(at).copied().unwrap_or(0));
            let mut differing = old ^ new;
            while differing != 0 {
                let bit = differing.trailing_zeros();
                differing &= differing - 1;
                let (cluster, used) = (at as u32 * 8 + bit, new >> bit & 1 == 1);
                match &mut open {
                    Some((_, end, now)) if *end == cluster && *now == used => *end += 1,
                    _ => {
                        if let Some((from, to, used)) = open {
                            out(from, to, used);
                        }
                        open = Some((cluster, cluster + 1, used));
                    }
                }
            }
        }
        if let Some((from, to, used)) = open {
            out(from, to, used);
        }
    }

    /// Clusters of the first `clusters` that are not in use.
    pub(crate) fn free(&self, group: Group, clusters: u32) -> u32 {
        let raw = match self.groups.get(group.into()) {
            None | Some(Bits::Clear) => return clusters,
            Some(Bits::Set) => return 0,
            Some(Bits::Raw(raw)) => raw,
        };
        let (whole, rest) = (clusters as usize / 8, clusters % 8);
        let mut used = 0;
        for byte in raw.iter().take(whole) {
            used += byte.count_ones();
        }
        if let Some(byte) = raw.get(whole) {
            used += (byte & ((1_u8 << rest) - 1)).count_ones();
        }
        clusters.saturating_sub(used)
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.groups.heap_bytes(|bits| match bits {
            Bits::Raw(raw) => page_bytes::<Bits>() + raw.len(),
            Bits::Clear => page_bytes::<Bits>(),
            // Most of them are one.
            Bits::Set => 0,
        })
    }
}

fn run(raw: &[u8], start: u32, limit: u32) -> (bool, u32) {
    let bit = |at: u32| raw.get(at as usize / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1);
    let used = bit(start);
    let same = if used { 0xff } else { 0 };
    let mut at = start.saturating_add(1);
    while at < limit {
        if at.is_multiple_of(8) && raw.get(at as usize / 8) == Some(&same) {
            at += 8;
        } else if bit(at) == used {
            at += 1;
        } else {
            break;
        }
    }
    match at.cmp(&limit) {
        Ordering::Greater => (used, limit),
        _ => (used, at.max(start.saturating_add(1))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_agree_with_single_bits(
            raw in prop::collection::vec(prop_oneof![Just(0_u8), Just(0xff), any::<u8>()], 1..40),
            start in any::<prop::sample::Index>(),
            limit in any::<prop::sample::Index>(),
        ) {
            let bits = raw.len() as u32 * 8;
            let start = start.index(bits as usize) as u32;
            let limit = start + 1 + limit.index((bits - start) as usize) as u32;
            let mut maps = Bitmaps::new(1, bits);
            maps.patch(0, 0, &raw);
            let bit = |at: u32| raw[at as usize / 8] >> (at % 8) & 1 == 1;
            let end = (start..limit).find(|at| bit(*at) != bit(start)).unwrap_or(limit);
            prop_assert_eq!(maps.at(0, start, limit), (bit(start), end));
        }
    }

    #[test]
    fn changes_are_runs_of_one_direction() {
        let mut maps = Bitmaps::new(1, 32);
        maps.patch(0, 0, &[0xf0, 0x01, 0, 0]);
        let mut found = Vec::new();
        maps.changes(0, &[0x0f, 0xff, 0, 0x80], &mut |from, to, used| found.push((from, to, used)));
        assert_eq!(found, [(0, 4, true), (4, 8, false), (9, 16, true), (31, 32, true)]);
    }

    #[test]
    fn free_clusters_are_counted_up_to_the_last() {
        let mut maps = Bitmaps::new(1, 32);
        assert_eq!(maps.free(0, 32), 32);
        maps.patch(0, 0, &[0x0f, 0xff, 0x01, 0x80]);
        assert_eq!([maps.free(0, 32), maps.free(0, 20), maps.free(0, 3)], [18, 7, 0]);
        maps.fill(0);
        assert_eq!(maps.free(0, 32), 0);
    }

    #[test]
    fn a_patch_touches_its_bytes_only() {
        let mut maps = Bitmaps::new(2, 32);
        assert!(maps.patch(1, 2, &[0xff, 0xff, 0xff]));
        assert!(!maps.patch(1, 2, &[0xff]));
        assert_eq!(maps.at(1, 0, 32), (false, 16));
        assert_eq!(maps.at(1, 16, 32), (true, 32));
        assert_eq!(maps.at(0, 0, 32), (false, 32));
        maps.fill(0);
        assert!(maps.patch(0, 0, &[0xfe]));
        assert_eq!(maps.at(0, 0, 32), (false, 1));
    }
}
