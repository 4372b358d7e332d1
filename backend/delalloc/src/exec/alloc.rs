//! The create half of `ext4_map_blocks`: space, splits, conversions.

use super::{Engine, Fault, Flow, meta};
use crate::geometry::{bit, each, span};
use crate::kernel::Flag;
use crate::program::{Instr, Need};
use crate::state::{Disk, Errno, Map, State, ZERO};

impl Engine {
    /// Whether the instruction would read or change the block bitmap.
    #[inline]
    pub(super) fn needs_bitmap(&self, state: &State, slot: usize) -> bool {
        let t = &state.threads[slot];
        match self.programs[slot].get(usize::from(t.pc) + 1) {
            Some(&next) => self.changes_bitmap(state, slot, next),
            None => false,
        }
    }

    #[inline]
    pub(super) fn changes_bitmap(&self, state: &State, slot: usize, instr: Instr) -> bool {
        let block = state.threads[slot].cur;
        match instr {
            Instr::Allocate(need) => need != Need::Convert && state.disk.mapped & bit(block) == 0,
            Instr::RemoveLeaf { first, end, .. } => state.disk.mapped & span(first, end) != 0,
            _ => false,
        }
    }

    /// Whether the allocation at the cursor takes space that delayed blocks have reserved.
    #[inline]
    fn takes_reserved(&self, state: &State, slot: usize, need: Need) -> bool {
        let t = &state.threads[slot];
        if self.has(Flag::ReserveFromEs) {
            t.map.has(Map::DELAYED)
        } else {
            need == Need::Writeback && state.cache.delay & bit(t.cur) != 0
        }
    }

    /// `ext4_ext_map_blocks` with create.
    pub(super) fn allocate(
        &self,
        state: &mut State,
        slot: usize,
        need: Need,
        fault: Option<Fault>,
    ) -> Flow {
        self.find_extent(state);
        let t = state.threads[slot];
        let (block, mut end) = (t.cur, t.map.end.min(t.end).max(t.cur + 1));
        if need == Need::Convert {
            // Only what was written.
            end = end.min(block + (t.aside >> block).trailing_ones() as u8);
        }
        if state.disk.mapped & bit(block) != 0 {
            return self.change_extent(state, slot, need, end, fault);
        }
        match fault {
            Some(Fault::AllocEnomem) => return meta::fail(state, slot, Errno::Enomem),
            Some(Fault::AllocEio) => return meta::fail(state, slot, Errno::Eio),
            Some(Fault::AllocEnospc) => return meta::fail(state, slot, Errno::Enospc),
            _ => {}
        }
        if need == Need::Convert {
            // Nothing to convert: somebody took the blocks away.
            state.threads[slot].map.end = end;
            return meta::fail(state, slot, Errno::Eio);
        }
        let behind = state.disk.mapped & span(block, end);
        if behind != 0 {
            end = behind.trailing_zeros() as u8;
        }
        let unwritten = match need {
            Need::Writeback => self.geo.dioread_nolock,
            Need::Written => false,
            // Behind the end of the file nobody sees what the blocks held.
            Need::Direct => self.before_io(state, need, block),
            _ => true,
        };
        let reserved = self.takes_reserved(state, slot, need);
        let extents = state.disk.extents();
        let Some((end, new_clusters)) = self.take_space(state, block, end, unwritten, reserved)
        else {
            return meta::fail(state, slot, Errno::Enospc);
        };
        if need == Need::Written {
            state.cache.ordered |= span(block, end);
        }
        if self.before_io(state, need, block) {
            // EXT4_GET_BLOCKS_PRE_IO: not merged with its neighbours before it is written.
            self.grow(state, extents + 1);
        } else {
            self.grow(state, state.disk.extents());
            self.merge_up(state);
        }
        let map = &mut state.threads[slot].map;
        map.lblk = block;
        map.end = end;
        map.pblk = state.disk.pblk[usize::from(block)];
        map.flags = 0;
        for (set, flag) in
            [(unwritten, Map::UNWRITTEN), (reserved, Map::DELAYED), (new_clusters, Map::NEW)]
        {
            map.flags |= if set { flag } else { 0 };
        }
        Flow::Next
    }

    /// Maps `block..` as far as one free run of space reaches. Says where it ends and whether
    /// clusters were allocated (a block may share its neighbour's cluster).
    fn take_space(
        &self,
        state: &mut State,
        block: u8,
        end: u8,
        unwritten: bool,
        reserved: bool,
    ) -> Option<(u8, bool)> {
        let geo = &self.geo;
        let cluster = geo.cluster(block);
        let shared = state.disk.mapped & geo.cluster_set(cluster);
        if shared != 0 {
            let end = end.min((cluster + 1) << geo.cluster_shift);
            let neighbour = shared.trailing_zeros() as u8;
            let base = state.disk.pblk[usize::from(neighbour)]
                - (neighbour - (cluster << geo.cluster_shift));
            for b in block..end {
                let pblk = base + (b - (cluster << geo.cluster_shift));
                state.disk.map(b, pblk, unwritten);
            }
            return Some((end, false));
        }
        let mut at = block;
        let mut last_cluster = None;
        while at < end {
            // A claim of space that nobody has reserved must leave the reserved space alone.
            if !reserved && state.fs.free <= state.fs.dirty {
                break;
            }
            let cluster = geo.cluster(at);
            if at != block && state.disk.mapped & geo.cluster_set(cluster) != 0 {
                break;
            }
            let chosen = match last_cluster {
                None => state.disk.lowest_free(geo, end - at),
                // What follows is part of the same extent, or of the next turn.
                Some(last) => state.disk.free_behind(geo, last),
            };
            let Some(pblk) = chosen else {
                break;
            };
            last_cluster = Some(pblk);
            state.disk.free &= !Disk::cluster_bits(geo, pblk);
            state.fs.free -= 1;
            state.fs.bitmap_in_tx = true;
            if !reserved {
                state.inode.i_blocks += 1;
            }
            let first = cluster << geo.cluster_shift;
            let stop = end.min((cluster + 1) << geo.cluster_shift);
            for b in at..stop {
                state.disk.map(b, pblk + (b - first), unwritten);
            }
            at = stop;
        }
        (at > block).then_some((at, true))
    }

    /// The create half on a block that has an extent already.
    fn change_extent(
        &self,
        state: &mut State,
        slot: usize,
        need: Need,
        end: u8,
        fault: Option<Fault>,
    ) -> Flow {
        let block = state.threads[slot].cur;
        let end = state.disk.extent_end(block, end);
        let set = span(block, end);
        let was_unwritten = state.disk.unwritten & bit(block) != 0;
        if let Some(errno) = fault.and_then(|fault| self.failed_split(state, block, end, fault)) {
            return meta::fail(state, slot, errno);
        }
        let unwritten = match need {
            Need::ToUnwritten => true,
            Need::Convert | Need::Written => false,
            Need::Writeback => was_unwritten && self.geo.dioread_nolock,
            Need::Direct => was_unwritten && self.before_io(state, need, block),
            Need::Lookup | Need::Unwritten => was_unwritten,
        };
        if unwritten != was_unwritten || self.before_io(state, need, block) {
            let limit = self.geo.blocks;
            let head = state.disk.extent_start(block) < block;
            let tail = state.disk.extent_end(block, limit) > end;
            let pieces = state.disk.extents() + u32::from(head) + u32::from(tail);
            self.grow(state, pieces);
        }
        state.disk.set_unwritten(set, unwritten);
        if unwritten != was_unwritten {
            self.merge_up(state);
        }
        if was_unwritten && need == Need::Written {
            state.cache.ordered |= set;
        }
        state.threads[slot].map = Map {
            lblk: block,
            end,
            pblk: state.disk.pblk[usize::from(block)],
            flags: u8::from(unwritten) * Map::UNWRITTEN,
        };
        Flow::Next
    }

    /// `EXT4_GET_BLOCKS_PRE_IO`: what is written is an extent of its own until it has been.
    fn before_io(&self, state: &State, need: Need, block: u8) -> bool {
        match need {
            Need::Writeback => self.geo.dioread_nolock,
            Need::Direct => self.geo.bytes(block) < state.inode.i_size,
            _ => false,
        }
    }

    /// More extents than fit the inode move to a leaf (`ext4_ext_grow_indepth`).
    pub(super) fn grow(&self, state: &mut State, extents: u32) {
        if self.geo.leaf_blocks == 0 && state.disk.leaves == 0 && extents > Disk::ROOT_EXTENTS {
            let known = self.has(Flag::NewLeafVerified);
            state.disk.leaves = if known { Disk::KNOWN_LEAF } else { Disk::NEW_LEAF };
        }
    }

    /// When extents are merged, a leaf that the inode can hold moves there
    /// (`ext4_ext_try_to_merge_up`).
    fn merge_up(&self, state: &mut State) {
        if self.geo.leaf_blocks == 0 && state.disk.extents() <= Disk::ROOT_EXTENTS {
            state.disk.leaves = 0;
        }
    }

    /// A split that fails, and what it leaves behind. `None`: it succeeds after all.
    fn failed_split(&self, state: &mut State, block: u8, end: u8, fault: Fault) -> Option<Errno> {
        let limit = self.geo.blocks;
        let extent_end = state.disk.extent_end(block, limit);
        let tail = span(end, extent_end);
        match fault {
            Fault::SplitEnomem => {
                if !self.has(Flag::SplitRestores) {
                    // The extent was shortened, its other part never inserted.
                    let lost = if tail != 0 { tail } else { span(block, end) };
                    state.disk.unmap(lost);
                }
                Some(Errno::Enomem)
            }
            Fault::SplitEnospc => {
                if !self.has(Flag::SplitPlain) {
                    // The fallback converts instead of splitting, the tail without zeroing it.
                    state.disk.set_unwritten(tail, false);
                    return None;
                }
                Some(Errno::Enospc)
            }
            Fault::SplitSecond => {
                // The first half zeroed the tail and made it written; then the second failed.
                for b in each(tail) {
                    state.disk.set_media(state.disk.pblk[usize::from(b)], ZERO);
                }
                state.disk.set_unwritten(tail, false);
                if self.has(Flag::FailedSplitDropsEs) {
                    let first = state.disk.extent_start(block);
                    state.es.remove(span(first, extent_end));
                    self.new_seq(state);
                }
                Some(Errno::Enospc)
            }
            _ => None,
        }
    }

    /// Which faults an allocation at the cursor can meet.
    pub(super) fn allocation_can_fail(
        &self,
        state: &State,
        slot: usize,
        need: Need,
        fault: Fault,
    ) -> bool {
        let t = &state.threads[slot];
        let block = t.cur;
        if state.disk.mapped & bit(block) == 0 {
            return need != Need::Convert
                && matches!(fault, Fault::AllocEnospc | Fault::AllocEnomem | Fault::AllocEio);
        }
        let splits = match need {
            Need::Writeback | Need::Direct => self.has(Flag::SplitBeforeIo),
            Need::Convert => !self.has(Flag::SplitBeforeIo),
            _ => false,
        };
        if !splits || state.disk.unwritten & bit(block) == 0 {
            return false;
        }
        let end = state.disk.extent_end(block, t.map.end.min(t.end));
        let head = state.disk.extent_start(block) < block;
        let tail = state.disk.extent_end(block, self.geo.blocks) > end;
        match fault {
            Fault::SplitEnomem => head || tail,
            Fault::SplitEnospc => tail,
            Fault::SplitSecond => head && tail,
            _ => false,
        }
    }
}
