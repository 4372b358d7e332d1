//! Removal and moving of blocks.

use super::{Engine, Fault, Flow, meta};
use crate::geometry::{bit, each, span};
use crate::invariant::Invariant;
use crate::kernel::Flag;
use crate::state::{Disk, Errno, STALE, State, ZERO};

/// Whether removing `first..end` cuts a delayed entry in two.
pub(super) fn splits_delayed(state: &State, first: u8, end: u8) -> bool {
    first > 0
        && end < 16
        && state.es.delayed_only() & bit(first) != 0
        && state.es.entry_start(first) < first
        && state.es.entry_end(first, 16) > end
}

impl Engine {
    pub(super) fn insert_hole(&self, state: &mut State, first: u8, end: u8) -> Flow {
        let set = span(first, end);
        let delayed = state.es.delayed_only() & set;
        if delayed != 0 {
            state.break_rule(Invariant::A2, delayed.trailing_zeros() as u8);
        }
        state.es.insert_hole(set);
        if self.has(Flag::InsertNewSeq) {
            self.new_seq(state);
        }
        Flow::Next
    }

    pub(super) fn es_remove_step(
        &self,
        state: &mut State,
        slot: usize,
        first: u8,
        end: u8,
        fault: Option<Fault>,
    ) -> Flow {
        if fault == Some(Fault::EsEnomem) {
            return meta::fail(state, slot, Errno::Enomem);
        }
        self.es_remove(state, span(first, end));
        if !self.has(Flag::PathRefreshed) {
            state.threads[slot].aside = state.disk.mapped;
        }
        Flow::Next
    }

    /// `ext4_es_remove_extent`: releases the reservation of the delayed blocks that go.
    pub(super) fn es_remove(&self, state: &mut State, set: u16) {
        let released = self.count_reserved(state, set);
        let before = state.es.delayed_only();
        state.es.remove(set);
        self.new_seq(state);
        if self.geo.cluster_shift != 0 {
            // A cluster that has lost its last delayed block has nothing pending.
            let lost = self.geo.clusters_of(before & set);
            let left = self.geo.clusters_of(state.es.delayed_only());
            state.es.pending &= !(lost & !left);
        }
        if state.fs.delalloc {
            // ext4_da_release_space
            self.claim(state, released, false);
        }
    }

    /// Clusters whose reservation goes with the delayed blocks of `set` (`get_rsvd`).
    fn count_reserved(&self, state: &State, set: u16) -> i8 {
        let geo = &self.geo;
        let delayed = state.es.delayed_only();
        let removed = delayed & set;
        if removed == 0 {
            return 0;
        }
        let last = 15 - set.leading_zeros() as u8;
        let cut = removed & bit(last) != 0 && delayed & !set & bit((last + 1).min(15)) != 0;
        if cut && !self.has(Flag::FrontTrimCounted) {
            return 0;
        }
        let mut counted = removed;
        if cut && !self.has(Flag::CountFromEntry) {
            // As many blocks, but from the start of the range.
            let blocks = removed.count_ones() as u8;
            let first = set.trailing_zeros() as u8;
            counted = span(first, first + blocks);
        }
        let clusters = geo.clusters_of(counted) & !geo.clusters_of(delayed & !set);
        (clusters & !state.es.pending).count_ones() as i8
    }

    /// Takes blocks out of the extent tree and frees the clusters that nothing maps any more. If
    /// the handle cannot be extended the thread goes to `restart`.
    pub(super) fn remove_leaf(
        &self,
        state: &mut State,
        slot: usize,
        first: u8,
        end: u8,
        restart: Option<u16>,
    ) -> Flow {
        if !self.has(Flag::PathRefreshed) {
            // A path from before the lock was dropped: the old leaf comes back, without what was
            // inserted meanwhile.
            let leaf = self.geo.leaf_set(self.geo.leaf(first));
            let newer = state.disk.mapped & leaf & !state.threads[slot].aside;
            state.disk.unmap(newer);
        }
        let set = span(first, end) & state.disk.mapped;
        let cut = end < self.geo.blocks
            && set & bit(end - 1) != 0
            && state.disk.extent_end(end - 1, self.geo.blocks) > end;
        if cut {
            self.grow(state, state.disk.extents() + 1);
        }
        self.free_blocks(state, set);
        self.forget_leaf(state);
        match restart {
            Some(to) => Flow::Goto(to),
            None => Flow::Next,
        }
    }

    /// Without extents there is no leaf.
    fn forget_leaf(&self, state: &mut State) {
        if self.geo.leaf_blocks == 0 && state.disk.mapped == 0 {
            state.disk.leaves = 0;
        }
    }

    fn free_blocks(&self, state: &mut State, set: u16) {
        let geo = &self.geo;
        let before = state.disk.owned(geo);
        let clusters = geo.clusters_of(set);
        state.disk.unmap(set);
        let freed = before & !state.disk.owned(geo);
        let count = (freed.count_ones() >> geo.cluster_shift) as i8;
        if count == 0 {
            return;
        }
        state.disk.free |= freed;
        state.disk.freed |= freed;
        for pblk in 0..32u8 {
            if freed & (1 << pblk) != 0 {
                state.disk.set_media(pblk, STALE);
            }
        }
        state.fs.free += count;
        state.fs.bitmap_in_tx = true;
        state.inode.i_blocks -= count;
        debug_assert_eq!(freed & Disk::cluster_bits(geo, 0), 0);
        // Clusters that still hold delayed blocks need their space back (re-reserve).
        let left = clusters & !geo.clusters_of(state.disk.mapped) & state.es.pending;
        for _ in each(left) {
            state.inode.reserved += 1;
            state.fs.dirty += 1;
        }
        state.es.pending &= !left;
    }

    /// `ext4_truncate` of what a failed extending write has left behind the size.
    pub(super) fn cut_orphan(&self, state: &mut State) -> Flow {
        if state.inode.orphan {
            let first = self.geo.blocks_for(state.inode.i_size);
            let beyond = span(first, self.geo.blocks);
            self.es_remove(state, beyond);
            self.free_blocks(state, beyond & state.disk.mapped);
            self.forget_leaf(state);
            state.want.fill(beyond, ZERO);
            state.inode.orphan = false;
        }
        Flow::Next
    }

    /// Looks the path up again after `i_data_sem` was dropped.
    pub(super) fn refresh_path(&self, state: &mut State, slot: usize) -> Flow {
        // Kernels with M44 keep the old one: `aside` stays as it was.
        if self.has(Flag::PathRefreshed) {
            state.threads[slot].aside = 0;
        }
        Flow::Next
    }

    /// Moves extents, data and sizes of collapse and insert.
    pub(super) fn shift(&self, state: &mut State, first: u8, by: i8) -> Flow {
        let blocks = self.geo.blocks;
        let lost = if by < 0 { 0 } else { span(blocks - by.unsigned_abs().min(blocks), blocks) };
        self.free_blocks(state, state.disk.mapped & lost);
        let cut = by > 0
            && first > 0
            && state.disk.mapped & bit(first) != 0
            && state.disk.extent_start(first) < first;
        self.grow(state, state.disk.extents() + u32::from(cut));
        state.disk.shift(first, by, blocks);
        let old = state.want;
        let from = if by < 0 { first - by.unsigned_abs() } else { first };
        for b in from..blocks {
            let source = b.checked_add_signed(-by).filter(|&s| s >= first && s < blocks);
            state.want.set(b, source.map_or(ZERO, |s| old.get(s)));
        }
        let bytes = self.geo.bytes(by.unsigned_abs());
        let moved = |size: u32| {
            if by < 0 {
                size.saturating_sub(bytes)
            } else {
                (size + bytes).min(self.geo.bytes(blocks))
            }
        };
        state.inode.i_size = moved(state.inode.i_size);
        state.inode.i_disksize = moved(state.inode.i_disksize);
        Flow::Next
    }
}
