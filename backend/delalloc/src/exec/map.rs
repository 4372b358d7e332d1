//! Lookups: the extent status tree, the walk of the extent tree, what both put into extent status.

use super::{Engine, Flow};
use crate::geometry::{bit, each, span};
use crate::invariant::Invariant;
use crate::kernel::Flag;
use crate::program::Need;
use crate::state::{Disk, Map, STALE, State, Status};

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
        t.map = Map { lblk: block, end: t.end, pblk: state.es.pblk[usize::from(block)], flags: 0 };
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
        self.mark_seq(state, slot);
        status
    }

    /// The mapping at hand takes the `i_es_seq` of now, if its folio is locked: no other use of the
    /// number is modelled.
    #[inline]
    pub(super) fn mark_seq(&self, state: &mut State, slot: usize) {
        let t = &mut state.threads[slot];
        if t.folios != 0 && self.has(Flag::EsSeq) {
            t.map.flags |= Map::SEQ;
        }
    }

    /// Extent status changes: `i_es_seq` is no longer what mappings made so far carry.
    #[inline]
    pub(super) fn new_seq(&self, state: &mut State) {
        if self.has(Flag::EsSeq) {
            for t in &mut state.threads {
                t.map.flags &= !Map::SEQ;
            }
        }
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
                Flow::Goto(if satisfied(state.threads[slot].map, need) { hit } else { gap })
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

    /// The extents of a leaf that was read go into extent status.
    pub(super) fn leaf_cache(&self, state: &mut State, slot: usize) -> Flow {
        let leaf = self.geo.leaf_set(self.geo.leaf(state.threads[slot].cur));
        self.cache_extents(state, leaf);
        Flow::Next
    }

    /// What `ext4_find_extent` puts into extent status on its way: extents in the inode always,
    /// those of a leaf when it is looked at for the first time.
    pub(super) fn find_extent(&self, state: &mut State) {
        if self.geo.leaf_blocks != 0 || self.geo.indirect {
            return;
        }
        match state.disk.leaves {
            Disk::KNOWN_LEAF => return,
            Disk::NEW_LEAF => state.disk.leaves = Disk::KNOWN_LEAF,
            _ => {}
        }
        self.cache_extents(state, self.geo.all());
    }

    /// `ext4_cache_extents`: every extent of a leaf, and every hole between two of them, of which
    /// extent status knows no block.
    fn cache_extents(&self, state: &mut State, leaf: u16) {
        let mut rest = leaf & state.disk.mapped;
        let mut previous = None;
        // What is being written is an extent of its own until it has been.
        let writes = state.io.iter().map(|io| io.convert);
        let asides = state.threads.iter().map(|t| t.aside);
        let cuts = writes.chain(asides).fold(0, |cuts, set| cuts | (set ^ (set << 1)));
        while rest != 0 {
            let first = rest.trailing_zeros() as u8;
            let mut end = state.disk.extent_end(first, self.geo.blocks);
            let cut = cuts & span(first + 1, end);
            if cut != 0 {
                end = cut.trailing_zeros() as u8;
            }
            let extent = span(first, end) & leaf;
            let end = 16 - extent.leading_zeros() as u8;
            if let Some(previous) = previous {
                let hole = span(previous, first);
                if hole != 0 && state.es.present() & hole == 0 {
                    state.es.insert_hole(hole);
                }
            }
            if state.es.present() & extent == 0 {
                let unwritten = state.disk.unwritten & bit(first) != 0;
                let pblk = state.disk.pblk[usize::from(first)];
                state.es.insert_mapped(first, end, pblk, unwritten, false);
            }
            previous = Some(end);
            rest &= !extent;
        }
    }

    /// Puts an extent of the tree into the extent status tree as a lookup does.
    fn insert_found(&self, state: &mut State, first: u8, end: u8) {
        let set = span(first, end);
        let pblk = state.disk.pblk[usize::from(first)];
        let unwritten = state.disk.unwritten & bit(first) != 0;
        if self.has(Flag::CacheKeepsType) {
            // ext4_es_cache_extent: what is there stays.
            for b in each(set & !state.es.present()) {
                state.es.insert_mapped(b, b + 1, pblk + (b - first), unwritten, false);
            }
            return;
        }
        let with_delayed = self.joins_delayed(state, set, unwritten);
        state.es.insert_mapped(first, end, pblk, unwritten, with_delayed);
        if self.geo.cluster_shift != 0 {
            self.revise_pending(state, set);
        }
    }

    /// Kernels up to 6.1 mark a whole unwritten entry delayed if any of its blocks was.
    #[inline]
    pub(super) fn joins_delayed(&self, state: &State, set: u16, unwritten: bool) -> bool {
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
        if first == 0 && end < self.geo.blocks && !self.geo.indirect {
            // ext4_ext_find_hole looks to the left of a block only if there is an extent.
            first = block;
        }
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
        t.map = Map { lblk: first, end, pblk: 0, flags };
        Flow::Next
    }

    /// The lookup half's insert into the extent status tree.
    #[inline]
    pub(super) fn cache_found(&self, state: &mut State, slot: usize) -> Flow {
        let t = state.threads[slot];
        let map = t.map;
        self.find_extent(state);
        if map.pblk != 0 {
            self.insert_found(state, map.lblk, map.end);
            self.mark_seq(state, slot);
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
        self.mark_seq(state, slot);
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
