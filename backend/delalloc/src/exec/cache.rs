//! The page cache: folios, buffers, the data in them.

use std::ops::Range;

use super::{Engine, Flow, meta};
use crate::geometry::{Set, bit, each, span};
use crate::kernel::Flag;
use crate::program::Drop;
use crate::state::{ANY, Content, Errno, IO_ENDS, IoState, Map, State, ZERO};

#[inline]
pub(super) fn folio_unlock(state: &mut State, slot: usize) -> Flow {
    let t = &mut state.threads[slot];
    state.cache.locked &= !t.folios;
    t.folios = 0;
    // Without its folio nobody relies on it.
    t.map.flags &= !Map::SEQ;
    Flow::Next
}

/// The buffer takes the mapping at hand: written blocks are mapped, unwritten ones also new.
#[inline]
pub(super) fn buffer_map(state: &mut State, slot: usize) -> Flow {
    let t = &mut state.threads[slot];
    let block = bit(t.cur);
    state.cache.mapped |= block;
    state.cache.delay &= !block;
    if t.map.has(Map::UNWRITTEN) {
        state.cache.unwritten |= block;
    }
    if t.map.has(Map::NEW) {
        state.cache.data.set(t.cur, ZERO);
    }
    Flow::Next
}

/// The buffer is mapped, new and delayed, without a block number. New means: what the write does
/// not cover is zeroed.
#[inline]
pub(super) fn buffer_delay(state: &mut State, slot: usize) -> Flow {
    let t = &mut state.threads[slot];
    t.map = Map::default();
    let block = bit(t.cur);
    state.cache.mapped |= block;
    state.cache.delay |= block;
    Flow::Next
}

#[inline]
pub(super) fn unguard(state: &mut State, slot: usize) -> Flow {
    state.threads[slot].guard = 0;
    Flow::Next
}

/// Jumps unless the last block written is allocated and lies beyond `i_disksize`.
pub(super) fn if_disksize_covers(state: &State, size: u32, last: u8, skip: u16) -> Flow {
    let block = bit(last);
    let allocated = state.cache.mapped & !state.cache.delay & !state.cache.unwritten & block != 0;
    meta::jump_if(size <= state.inode.i_disksize || !allocated, skip)
}

impl Engine {
    fn take_folio(&self, state: &mut State, slot: usize, folio: u8) {
        state.cache.locked |= bit(folio);
        state.threads[slot].folios |= bit(folio);
    }

    #[inline]
    pub(super) fn folio_create(&self, state: &mut State, slot: usize) -> Flow {
        let folio = self.geo.folio(state.threads[slot].cur);
        if state.cache.present & bit(folio) == 0 {
            state.cache.present |= bit(folio);
            state.cache.discard(self.geo.folio_blocks(folio));
        }
        self.take_folio(state, slot, folio);
        Flow::Next
    }

    /// The lock of `page_mkwrite`: the range ends at the end of the file.
    #[inline]
    pub(super) fn folio_lock(&self, state: &mut State, slot: usize) -> Flow {
        let t = &mut state.threads[slot];
        let folio = self.geo.folio(t.cur);
        t.end = t.end.min(self.geo.blocks_for(state.inode.i_size));
        // A page is mapped only when all of it up to the end of the file is up to date.
        let missing = span(t.cur, t.end) & !state.cache.uptodate;
        if state.cache.present & bit(folio) == 0 || t.end <= t.cur || missing != 0 {
            return meta::fail(state, slot, Errno::Fault);
        }
        self.take_folio(state, slot, folio);
        Flow::Next
    }

    /// Whether the block's data is there, or can be had without the device; if so it is.
    #[inline]
    pub(super) fn fill_without_device(&self, state: &mut State, slot: usize) -> bool {
        let t = &state.threads[slot];
        let block = bit(t.cur);
        if state.cache.uptodate & block != 0 {
            return true;
        }
        let delayed = state.cache.delay & block != 0;
        if !delayed && t.map.pblk != 0 && !t.map.has(Map::UNWRITTEN) {
            return false;
        }
        state.cache.data.set(t.cur, ZERO);
        state.cache.uptodate |= block;
        true
    }

    /// The device has read the block.
    pub(super) fn filled(&self, state: &mut State, slot: usize) -> Flow {
        let t = &state.threads[slot];
        let (block, pblk) = (t.cur, t.map.pblk);
        let data = state.expose(block, pblk);
        state.cache.data.set(block, data);
        state.cache.uptodate |= bit(block);
        Flow::Next
    }

    pub(super) fn if_cached(&self, state: &State, slot: usize, needed: Set, to: u16) -> Flow {
        let folio = bit(self.geo.folio(state.threads[slot].cur));
        let there = state.cache.present & folio != 0 && needed & !state.cache.uptodate == 0;
        meta::jump_if(there, to)
    }

    /// The range ends where the file does; jumps if nothing is left of it.
    pub(super) fn clip_to_size(&self, state: &mut State, slot: usize, to: u16) -> Flow {
        let t = &mut state.threads[slot];
        t.end = t.end.min(self.geo.blocks_for(state.inode.i_size));
        meta::jump_if(t.end <= t.cur, to)
    }

    /// The rest of the folio behind the end of the file reads as zeroes.
    pub(super) fn zero_tail(&self, state: &mut State, slot: usize) -> Flow {
        let t = &state.threads[slot];
        let folio = self.geo.folio(t.end.max(1) - 1);
        let inside = span(0, t.end);
        let tail = self.geo.folio_blocks(folio) & self.geo.all() & !inside & !state.cache.uptodate;
        state.cache.data.fill(tail, ZERO);
        state.cache.uptodate |= tail;
        Flow::Next
    }

    /// User data arrives in the folio; its buffers and the folio become dirty.
    pub(super) fn store(
        &self,
        state: &mut State,
        slot: usize,
        data: Range<u8>,
        content: Content,
        size: u32,
    ) -> Flow {
        let mut stored = span(data.start, data.end);
        if size == 0 {
            // Bytes behind the end of the file are nobody's.
            stored &= span(0, self.geo.blocks_for(state.inode.i_size));
        }
        state.cache.data.fill(stored, content);
        state.want.fill(stored, content);
        let folio = self.geo.folio(data.start);
        let dirtied = if size == 0 {
            // A store through a mapping dirties the folio up to the end of the file.
            let end = self.geo.blocks_for(state.inode.i_size);
            self.geo.folio_blocks(folio) & span(0, end)
        } else {
            state.inode.i_size = state.inode.i_size.max(size);
            // The range of the operation, which a partial write stores nothing into.
            span(data.start, self.geo.blocks_for(size))
        };
        if state.inode.dio != 0 {
            // Beside a direct write nobody can say which of the two is last; and what was read
            // before it and is dirtied with the store goes over it.
            state.want.fill(stored | dirtied, ANY);
        }
        state.cache.behind_eof &= !stored;
        state.cache.uptodate |= dirtied;
        state.cache.buf_dirty |= dirtied;
        state.cache.dirty |= bit(folio);
        state.threads[slot].map = Map::default();
        Flow::Next
    }

    /// A store through a mapping behind the end of the file: it dirties the folio as any other.
    pub(super) fn store_behind_eof(&self, state: &mut State, slot: usize, block: u8) -> Flow {
        let inside = span(0, self.geo.blocks_for(state.inode.i_size));
        let partial = inside & !self.geo.whole_blocks(state.inode.i_size);
        self.store(state, slot, block..block, ZERO, 0);
        state.cache.behind_eof |= bit(block) & partial;
        Flow::Next
    }

    /// `ext4_block_truncate_page` at the old end of a file that has grown.
    pub(super) fn zero_eof(&self, state: &mut State) -> Flow {
        state.cache.behind_eof &= !self.geo.whole_blocks(state.inode.i_size);
        Flow::Next
    }

    /// What writeback does before it submits blocks: bytes behind the end of the file are zeroed.
    pub(super) fn zero_behind_eof(&self, state: &mut State, blocks: Set) {
        state.cache.behind_eof &= !blocks | self.geo.whole_blocks(state.inode.i_size);
    }

    /// Whether the first folio in the way can be removed.
    #[inline]
    pub(super) fn can_drop(&self, state: &State, blocks: Set) -> bool {
        let folios = state.cache.present & self.geo.folios_of(blocks);
        let first = folios & folios.wrapping_neg();
        (state.cache.locked | state.cache.writeback) & first == 0
    }

    /// `truncate_pagecache_range` and the invalidation around direct I/O: removes folios that
    /// nobody holds; stays while one is left.
    pub(super) fn drop_folios(
        &self,
        state: &mut State,
        slot: usize,
        blocks: Set,
        why: Drop,
    ) -> Flow {
        let mut folios = state.cache.present & self.geo.folios_of(blocks);
        match why {
            Drop::Before if state.cache.dirty & folios != 0 => {
                // Dirtied again since it was written back: the kernel falls back to the page
                // cache, which is another operation here.
                return meta::fail(state, slot, Errno::Einval);
            }
            Drop::After => folios &= !state.cache.dirty,
            _ => {}
        }
        let blocks = match why {
            Drop::Remove | Drop::Move => blocks,
            // invalidate_inode_pages2_range knows whole pages only.
            Drop::Before | Drop::After => self.geo.blocks_of(folios),
        };
        let busy = folios & (state.cache.locked | state.cache.writeback);
        for folio in each(folios & !busy) {
            self.drop_folio(state, folio, blocks);
        }
        if busy != 0 {
            return Flow::Stay;
        }
        self.dropped(state, slot, blocks, why);
        Flow::Next
    }

    /// Takes a folio away, or zeroes the part of it that goes.
    fn drop_folio(&self, state: &mut State, folio: u8, blocks: Set) {
        let all = self.geo.folio_blocks(folio) & self.geo.all();
        let gone = all & blocks;
        let uptodate = state.cache.uptodate & gone;
        state.cache.discard(gone);
        state.cache.ordered &= !gone;
        if gone == all {
            state.cache.present &= !bit(folio);
            state.cache.dirty &= !bit(folio);
        } else {
            // discard_buffer leaves that bit alone; the data is zeroes now.
            state.cache.uptodate |= uptodate;
        }
    }

    /// The cache of `blocks` is gone.
    pub(super) fn dropped(&self, state: &mut State, slot: usize, blocks: Set, why: Drop) {
        if matches!(why, Drop::Remove | Drop::Move) {
            let whole = each(self.geo.folios_of(blocks))
                .filter(|&f| self.geo.folio_blocks(f) & self.geo.all() & !blocks == 0)
                .fold(0, |set, f| set | bit(f));
            state.threads[slot].guard = whole;
        }
        if why == Drop::Remove {
            state.want.fill(blocks, ZERO);
        }
    }

    /// Memory reclaim on one folio: a clean one goes; a dirty one is written by kernels that have
    /// `->writepage`, as far as its buffers are mapped.
    pub(super) fn reclaim(&self, state: &mut State, folio: u8) -> Flow {
        let f = bit(folio);
        let busy = state.cache.locked | state.cache.writeback;
        if state.cache.present & f == 0 || busy & f != 0 {
            return Flow::Next;
        }
        let blocks = self.geo.folio_blocks(folio);
        if state.cache.dirty & f == 0 {
            if state.cache.buf_dirty & blocks == 0 {
                state.cache.discard(blocks);
                state.cache.present &= !f;
            }
            return Flow::Next;
        }
        let dirty = state.cache.buf_dirty & blocks;
        let unwritable = dirty & (state.cache.delay | state.cache.unwritten);
        let writable = dirty & !unwritable & state.cache.mapped;
        let Some(io) = (0..IO_ENDS).find(|&i| state.io[i].state == IoState::Idle) else {
            return Flow::Next;
        };
        if !self.has(Flag::ReclaimWritepage) || writable == 0 {
            return Flow::Next;
        }
        if unwritable == 0 || !self.has(Flag::RedirtyKept) {
            state.cache.dirty &= !f;
        }
        self.zero_behind_eof(state, blocks);
        self.start_io(state, io, writable, 0);
        Flow::Next
    }
}
