//! Reservations, and the inserts into extent status that go with them.

use super::{Engine, Fault, Flow, meta};
use crate::geometry::{bit, span};
use crate::invariant::Invariant;
use crate::kernel::Flag;
use crate::program::Need;
use crate::state::{Errno, Map, State};

impl Engine {
    /// Reserved clusters that the allocation at hand has used (kernels where insertion does not
    /// release them).
    #[inline]
    pub(super) fn reserve_used(&self, state: &State, slot: usize, need: Need) -> i8 {
        let map = state.threads[slot].map;
        if !map.has(Map::NEW) || !state.fs.delalloc {
            return 0;
        }
        let clusters = self.geo.clusters_of(span(map.lblk, map.end));
        if need == Need::Writeback && map.has(Map::DELAYED) {
            clusters.count_ones() as i8
        } else {
            // ext4_es_delayed_clu: clusters that were delayed before.
            let delayed = self.geo.clusters_of(state.es.delayed_only());
            (clusters & delayed).count_ones() as i8
        }
    }

    /// `ext4_da_update_reserve_space` from the allocation path.
    pub(super) fn update_reserve(&self, state: &mut State, slot: usize, need: Need) -> Flow {
        let used = self.reserve_used(state, slot, need);
        let claim = state.threads[slot].map.has(Map::DELAYED);
        self.claim(state, used, claim);
        Flow::Next
    }

    /// Takes `used` clusters out of the reservation, into `i_blocks` if they were not accounted
    /// when they were allocated.
    pub(super) fn claim(&self, state: &mut State, used: i8, into_blocks: bool) {
        let mut used = used;
        if used > state.inode.reserved {
            state.break_rule(Invariant::A11, 0);
            used = state.inode.reserved;
        }
        state.inode.reserved -= used;
        state.fs.dirty -= used;
        if into_blocks {
            state.inode.i_blocks += used;
        }
    }

    /// `ext4_es_insert_extent` after allocation or conversion.
    pub(super) fn insert_allocated(&self, state: &mut State, slot: usize, need: Need) -> Flow {
        let map = state.threads[slot].map;
        let set = span(map.lblk, map.end);
        let unwritten = map.has(Map::UNWRITTEN);
        let due = state.reservation_due(&self.geo);
        let with_delayed = !(need == Need::Writeback && map.has(Map::DELAYED))
            && self.joins_delayed(state, set, unwritten);
        state.es.insert_mapped(map.lblk, map.end, map.pblk, unwritten, with_delayed);
        if self.has(Flag::InsertNewSeq) {
            self.new_seq(state);
        }
        self.mark_seq(state, slot);
        if self.geo.cluster_shift != 0 {
            self.revise_pending(state, set);
        }
        if self.has(Flag::InsertReleases) && state.fs.delalloc {
            let used = due - state.reservation_due(&self.geo);
            self.claim(state, used, map.has(Map::DELAYED));
        }
        Flow::Next
    }

    /// `__revise_pending`: clusters of `set` are allocated now; those that still hold a delayed
    /// block have their space.
    pub(super) fn revise_pending(&self, state: &mut State, set: u16) {
        let clusters = self.geo.clusters_of(set);
        let delayed = self.geo.clusters_of(state.es.delayed_only());
        state.es.pending = state.es.pending & !clusters | clusters & delayed;
    }

    /// Whether the delayed block at the cursor will lie in a cluster that is allocated and holds
    /// no delayed block yet.
    pub(super) fn adds_pending(&self, state: &State, slot: usize) -> bool {
        state.threads[slot].map.has(Map::NEW)
    }

    /// `ext4_da_reserve_space`; with bigalloc first the finding of what the cluster has.
    pub(super) fn reserve(&self, state: &mut State, slot: usize) -> Flow {
        let geo = &self.geo;
        state.threads[slot].map.flags = 0;
        if geo.cluster_shift != 0 {
            let cluster = geo.cluster_set(geo.cluster(state.threads[slot].cur));
            if state.es.delayed_only() & cluster != 0 {
                return Flow::Next;
            }
            if state.es.mapped() & cluster == 0 {
                // ext4_clu_mapped walks the tree.
                self.find_extent(state);
            }
            if (state.es.mapped() | state.disk.mapped) & cluster != 0 {
                // Allocated already: to be recorded as pending with the insert.
                state.threads[slot].map.flags = Map::NEW;
                return Flow::Next;
            }
        }
        if state.fs.free <= state.fs.dirty {
            return meta::fail(state, slot, Errno::Enospc);
        }
        state.inode.reserved += 1;
        state.fs.dirty += 1;
        state.threads[slot].map.flags = Map::DELAYED;
        Flow::Next
    }

    /// `ext4_es_insert_delayed_block`.
    pub(super) fn insert_delayed(
        &self,
        state: &mut State,
        slot: usize,
        fault: Option<Fault>,
    ) -> Flow {
        let map = state.threads[slot].map;
        let block = state.threads[slot].cur;
        if fault == Some(Fault::EsEnomem) {
            if map.has(Map::DELAYED) && self.has(Flag::ReserveUndone) {
                state.inode.reserved -= 1;
                state.fs.dirty -= 1;
            }
            return meta::fail(state, slot, Errno::Enomem);
        }
        state.es.insert_delayed(bit(block));
        self.new_seq(state);
        if map.has(Map::NEW) && fault != Some(Fault::PendingEnomem) {
            state.es.pending |= bit(self.geo.cluster(block));
        }
        Flow::Next
    }
}
