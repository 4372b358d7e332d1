//! Extent status lookups and inserts, the extent tree, allocation, reservations.

use super::{Engine, Fault, Flow, meta};
use crate::geometry::{bit, each, span};
use crate::invariant::Invariant;
use crate::kernel::Flag;
use crate::program::{Instr, Need};
use crate::state::{Disk, Errno, Map, STALE, State, Status, ZERO};

/// Whether a mapping is what the create half of `ext4_map_blocks` would make.
#[inline]
pub(super) fn satisfied(map: Map, need: Need) -> bool {
    map.pblk != 0
        && match need {
            Need::Lookup => true,
            Need::ToUnwritten => false,
            _ => !map.has(Map::UNWRITTEN),
        }
}

impl Engine {
    /// Fills the thread's mapping from the extent status entry at its cursor, if there is one.
    #[inline]
    fn look_up(&self, state: &mut State, slot: usize) -> Status {
        let t = &mut state.threads[slot];
        let block = t.cur;
        let status = state.es.status(block);
        t.map = Map {
            lblk: block,
            end: t.end,
            pblk: state.es.pblk[usize::from(block)],
            flags: 0,
        };
        if status == Status::None {
            return status;
        }
        t.map.end = state.es.entry_end(block, t.end);
        t.map.flags = match status {
            Status::Unwritten => Map::UNWRITTEN,
            Status::Delayed => Map::DELAYED,
            _ => 0,
        };
        if self.geo.referenced {
            let first = state.es.entry_start(block);
            let end = state.es.entry_end(block, self.geo.blocks);
            state.es.referenced |= span(first, end);
        }
        status
    }

    #[inline]
    pub(super) fn es_lookup(
        &self,
        state: &mut State,
        slot: usize,
        need: Need,
        hit: u16,
        gap: u16,
    ) -> Flow {
        match self.look_up(state, slot) {
            Status::None => Flow::Next,
            Status::Hole | Status::Delayed => Flow::Goto(gap),
            Status::Written | Status::Unwritten => {
                Flow::Goto(if satisfied(state.threads[slot].map, need) {
                    hit
                } else {
                    gap
                })
            }
        }
    }

    /// `to` is where to go for delayed, mapped, hole; a miss goes on.
    #[inline]
    pub(super) fn da_lookup(&self, state: &mut State, slot: usize, to: [u16; 3]) -> Flow {
        // Delayed is asked first: W+D, which only a kernel with M35 makes, counts as delayed.
        let status = self.look_up(state, slot);
        let block = bit(state.threads[slot].cur);
        match status {
            Status::None => Flow::Next,
            Status::Hole => Flow::Goto(to[2]),
            Status::Delayed => Flow::Goto(to[0]),
            Status::Written if state.es.delayed & block != 0 => Flow::Goto(to[0]),
            Status::Written | Status::Unwritten => Flow::Goto(to[1]),
        }
    }

    #[inline]
    pub(super) fn leaf_in_memory(&self, state: &State, block: u8) -> bool {
        state.disk.leaves & bit(self.geo.leaf(block)) != 0
    }

    /// `ext4_cache_extents`: every extent of the leaf that extent status knows nothing about.
    pub(super) fn leaf_cache(&self, state: &mut State, slot: usize) -> Flow {
        let leaf = self.geo.leaf_set(self.geo.leaf(state.threads[slot].cur));
        let mut rest = leaf & state.disk.mapped;
        while rest != 0 {
            let first = rest.trailing_zeros() as u8;
            let end = state.disk.extent_end(first, self.geo.blocks);
            let extent = span(first, end) & leaf;
            if state.es.present() & extent == 0 {
                let end = 16 - extent.leading_zeros() as u8;
                self.insert_found(state, first, end);
            }
            rest &= !extent;
        }
        Flow::Next
    }

    /// Puts an extent of the tree into the extent status tree as a lookup does.
    fn insert_found(&self, state: &mut State, first: u8, end: u8) {
        let set = span(first, end);
        let pblk = state.disk.pblk[usize::from(first)];
        let unwritten = state.disk.unwritten & bit(first) != 0;
        if self.has(Flag::CacheKeepsType) {
            // ext4_es_cache_extent: what is there stays.
            for b in each(set & !state.es.present()) {
                state
                    .es
                    .insert_mapped(b, b + 1, pblk + (b - first), unwritten, false);
            }
            return;
        }
        let with_delayed = self.joins_delayed(state, set, unwritten);
        state
            .es
            .insert_mapped(first, end, pblk, unwritten, with_delayed);
        if self.geo.cluster_shift != 0 {
            self.revise_pending(state, set);
        }
    }

    /// Kernels up to 6.1 mark a whole unwritten entry delayed if any of its blocks was.
    #[inline]
    fn joins_delayed(&self, state: &State, set: u16, unwritten: bool) -> bool {
        !self.has(Flag::ExclusiveTypes)
            && (unwritten || !self.has(Flag::ConvertDropsDelayed))
            && state.es.delayed & set != 0
    }

    /// `ext4_ext_map_blocks` without create: an extent, or the hole around the block up to the
    /// next delayed one.
    #[inline]
    pub(super) fn walk(&self, state: &mut State, slot: usize, untrimmed: bool) -> Flow {
        let t = &mut state.threads[slot];
        let block = t.cur;
        if state.disk.mapped & bit(block) != 0 {
            t.map = Map {
                lblk: block,
                end: state.disk.extent_end(block, t.end),
                pblk: state.disk.pblk[usize::from(block)],
                flags: u8::from(state.disk.unwritten & bit(block) != 0) * Map::UNWRITTEN,
            };
            return Flow::Next;
        }
        let (mut first, mut end) = state.disk.hole(block, self.geo.blocks);
        let mut flags = 0;
        if untrimmed {
            let hidden = state.es.delayed_only() & span(block, end.min(t.end));
            flags = u8::from(hidden != 0) * Map::HIDES;
        } else {
            let delayed = state.es.delayed;
            if delayed & bit(block) != 0 {
                flags = Map::NO_CACHE;
                end = state.es.entry_end(block, end);
            } else {
                let before = delayed & span(first, block);
                if before != 0 {
                    first = block;
                }
                let behind = delayed & span(block, end);
                if behind != 0 {
                    end = behind.trailing_zeros() as u8;
                }
            }
        }
        t.map = Map {
            lblk: first,
            end,
            pblk: 0,
            flags,
        };
        Flow::Next
    }

    /// The lookup half's insert into the extent status tree.
    #[inline]
    pub(super) fn cache_found(&self, state: &mut State, slot: usize) -> Flow {
        let t = state.threads[slot];
        let map = t.map;
        if map.pblk != 0 {
            self.insert_found(state, map.lblk, map.end);
            return Flow::Next;
        }
        // Holes of indirect-mapped files are not cached.
        if !self.geo.indirect && !map.has(Map::NO_CACHE) {
            let set = span(map.lblk, map.end);
            let delayed = set & state.es.delayed_only();
            if self.has(Flag::CacheKeepsType) {
                state.es.insert_hole(set & !state.es.present());
            } else {
                if delayed != 0 {
                    state.break_rule(Invariant::A2, delayed.trailing_zeros() as u8);
                }
                state.es.insert_hole(set);
            }
        }
        let map = &mut state.threads[slot].map;
        map.lblk = t.cur;
        map.end = map.end.min(t.end);
        Flow::Next
    }

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
            _ => true,
        };
        let reserved = self.takes_reserved(state, slot, need);
        let Some((end, new_clusters)) = self.take_space(state, block, end, unwritten, reserved)
        else {
            return meta::fail(state, slot, Errno::Enospc);
        };
        if !unwritten {
            state.cache.ordered |=
                span(block, end) & u16::from(need == Need::Written).wrapping_neg();
        }
        let map = &mut state.threads[slot].map;
        map.lblk = block;
        map.end = end;
        map.pblk = state.disk.pblk[usize::from(block)];
        map.flags = u8::from(unwritten) * Map::UNWRITTEN
            | u8::from(reserved) * Map::DELAYED
            | u8::from(new_clusters) * Map::NEW;
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
            let Some(pblk) = state.disk.lowest_free(geo) else {
                break;
            };
            if last_cluster.is_some_and(|last: u8| last + geo.cluster_blocks() != pblk) {
                break;
            }
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
            Need::Lookup | Need::Unwritten | Need::Direct => was_unwritten,
        };
        state.disk.set_unwritten(set, unwritten);
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
                && matches!(
                    fault,
                    Fault::AllocEnospc | Fault::AllocEnomem | Fault::AllocEio
                );
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
        state
            .es
            .insert_mapped(map.lblk, map.end, map.pblk, unwritten, with_delayed);
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
        let map = &mut state.threads[slot].map;
        map.flags = 0;
        if geo.cluster_shift != 0 {
            let cluster = geo.cluster_set(geo.cluster(state.threads[slot].cur));
            if state.es.delayed_only() & cluster != 0 {
                return Flow::Next;
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
        if map.has(Map::NEW) && fault != Some(Fault::PendingEnomem) {
            state.es.pending |= bit(self.geo.cluster(block));
        }
        Flow::Next
    }

    /// What FIEMAP or `SEEK_HOLE` reports from the mapping at hand.
    pub(super) fn report_hole(&self, state: &mut State, slot: usize) -> Flow {
        let map = state.threads[slot].map;
        if map.pblk == 0 && map.has(Map::HIDES) {
            state.break_rule(Invariant::G4, map.lblk);
        }
        Flow::Next
    }

    /// `EXT4_IOC_CLEAR_ES_CACHE`.
    pub(super) fn clear_es(&self, state: &mut State) -> Flow {
        let keep = state.es.delayed;
        state.es.remove(state.es.present() & !keep);
        Flow::Next
    }

    /// The shrinker takes the entry that starts at `block`, or its R bit first.
    pub(super) fn shrink(&self, state: &mut State, block: u8) {
        let entry = span(block, state.es.entry_end(block, self.geo.blocks));
        if entry & state.es.delayed != 0 {
            state.break_rule(Invariant::A10, block);
        }
        if state.es.referenced & entry != 0 {
            state.es.referenced &= !entry;
        } else {
            state.es.remove(entry);
            state.fs.shrinks -= 1;
        }
    }

    /// What the media holds after the device has written `blocks` from the page cache.
    pub(super) fn write_media(&self, state: &mut State, blocks: u16) {
        for b in each(blocks & state.disk.mapped) {
            let data = state.cache.data.get(b);
            debug_assert_ne!(data, STALE);
            state.disk.set_media(state.disk.pblk[usize::from(b)], data);
        }
    }
}
