//! Writeback of one folio, and the end of its I/O.

use super::{Engine, Flow, meta};
use crate::geometry::{Set, bit, each, span};
use crate::kernel::Flag;
use crate::state::{ANY, Errno, IO_ENDS, IoEnd, IoState, Map, State, ZERO};

/// Buffers of the mapping at hand are mapped now; unwritten blocks wait for their conversion.
#[inline]
pub(super) fn fix(state: &mut State, slot: usize) -> Flow {
    let t = &mut state.threads[slot];
    let set = span(t.map.lblk, t.map.end);
    state.cache.delay &= !set;
    state.cache.unwritten &= !set;
    state.cache.mapped |= set;
    if t.map.has(Map::UNWRITTEN) {
        t.aside |= set;
    }
    t.cur = t.map.end;
    t.map = Map::default();
    Flow::Next
}

/// After a direct write: its range is to be converted, unless it was written before.
pub(super) fn if_written(state: &mut State, slot: usize, to: u16) -> Flow {
    let t = &state.threads[slot];
    meta::jump_if(!t.map.has(Map::UNWRITTEN), to)
}

#[inline]
pub(super) fn next_folio(state: &mut State, slot: usize, to: u16) -> Flow {
    let t = &mut state.threads[slot];
    t.end = 0;
    t.wb += 1;
    meta::jump_if(t.wb < t.wb_end, to)
}

/// The worker takes the first write that waits for its end.
pub(super) fn end_io_wait(state: &mut State, slot: usize) -> Flow {
    let waits = |io: &IoEnd| matches!(io.state, IoState::ToConvert | IoState::Failed);
    if let Some(index) = state.io.iter().position(waits) {
        let t = &mut state.threads[slot];
        t.wb = index as u8;
        t.aside = state.io[index].convert;
    }
    Flow::Next
}

impl Engine {
    pub(super) fn wb_find(&self, state: &mut State, slot: usize, none: u16) -> Flow {
        let t = &mut state.threads[slot];
        if t.wb_end == 0 {
            // First look: the range of the operation in folios.
            t.wb = self.geo.folio(t.cur);
            t.wb_end = self.geo.folio(t.end.max(1) - 1) + 1;
        }
        let dirty = state.cache.dirty & span(t.wb, t.wb_end);
        if dirty == 0 {
            t.wb = 0;
            t.wb_end = 0;
            t.cur = 0;
            t.end = 0;
            return Flow::Goto(none);
        }
        t.wb = dirty.trailing_zeros() as u8;
        Flow::Next
    }

    pub(super) fn wb_lock(&self, state: &mut State, slot: usize, clean: u16) -> Flow {
        let t = &mut state.threads[slot];
        if state.cache.dirty & bit(t.wb) == 0 {
            return Flow::Goto(clean);
        }
        t.folios |= bit(t.wb);
        state.cache.locked |= bit(t.wb);
        // The first writeback takes leftover inline data away.
        state.inode.inline_data = false;
        t.cur = self.geo.folio_first(t.wb);
        t.aside = 0;
        Flow::Next
    }

    /// `mpage_process_page_bufs`: the next run of dirty buffers of one kind without a block.
    pub(super) fn wb_extent(&self, state: &mut State, slot: usize, none: u16) -> Flow {
        let t = &mut state.threads[slot];
        let within = span(t.cur, self.geo.folio_first(t.wb + 1));
        let cache = &state.cache;
        let unmapped = cache.buf_dirty & (cache.delay | cache.unwritten) & within;
        if unmapped == 0 {
            return Flow::Goto(none);
        }
        let first = unmapped.trailing_zeros() as u8;
        let same = if cache.delay & bit(first) != 0 {
            unmapped & cache.delay
        } else {
            unmapped & !cache.delay
        };
        t.cur = first;
        t.end = first + (same >> first).trailing_ones() as u8;
        Flow::Next
    }

    #[inline]
    pub(super) fn can_submit(&self, state: &State) -> bool {
        state.io.iter().any(|io| io.state == IoState::Idle)
    }

    /// Hands the folio's mapped dirty buffers to the device.
    pub(super) fn wb_submit(&self, state: &mut State, slot: usize, partial: bool) -> Flow {
        let t = &mut state.threads[slot];
        let folio = bit(t.wb);
        let blocks = self.geo.folio_blocks(t.wb);
        let convert = t.aside;
        t.aside = 0;
        t.folios &= !folio;
        t.cur = 0;
        t.end = 0;
        t.map = Map::default();
        state.cache.locked &= !folio;
        self.zero_behind_eof(state, blocks);
        let cache = &mut state.cache;
        let inside = span(0, self.geo.blocks_for(state.inode.i_size));
        let submit = cache.buf_dirty & cache.mapped & !cache.delay & !cache.unwritten & blocks;
        if !partial {
            cache.dirty &= !folio;
            cache.buf_dirty &= !blocks | inside;
            // ext4_bio_write_page: what lies behind the end of the file is zeroed, and up to date.
            let tail = blocks & !inside & self.geo.all();
            cache.data.fill(tail & !cache.uptodate, ZERO);
            cache.uptodate |= tail;
        }
        let submit = submit & inside;
        let idle = (0..IO_ENDS).find(|&i| state.io[i].state == IoState::Idle);
        if let (Some(io), true) = (idle, submit != 0) {
            state.threads[slot].end = 16 - submit.leading_zeros() as u8;
            self.start_io(state, io, submit, convert & submit);
        }
        Flow::Next
    }

    /// A data write of `blocks` is at the device.
    pub(super) fn start_io(&self, state: &mut State, io: usize, blocks: Set, convert: Set) {
        let cache = &mut state.cache;
        cache.buf_dirty &= !blocks;
        cache.in_flight |= blocks;
        cache.ordered &= !blocks;
        cache.writeback |= self.geo.folios_of(blocks);
        state.io[io] = IoEnd { blocks, convert, state: IoState::AtDevice };
    }

    /// End in bytes of what was submitted of the folio, at most `i_size`.
    fn submitted_size(&self, state: &State, slot: usize) -> u32 {
        let end = state.threads[slot].end;
        self.geo.bytes(end).min(state.inode.i_size)
    }

    pub(super) fn if_disksize_behind(&self, state: &State, slot: usize, to: u16) -> Flow {
        let size = self.submitted_size(state, slot);
        meta::jump_if(size <= state.inode.i_disksize, to)
    }

    pub(super) fn wb_disksize(&self, state: &mut State, slot: usize) -> Flow {
        let size = self.submitted_size(state, slot);
        state.inode.i_disksize = state.inode.i_disksize.max(size);
        state.threads[slot].end = 0;
        Flow::Next
    }

    /// `mpage_release_unused_pages` with `invalidate`: the delayed blocks of the folio go.
    pub(super) fn wb_give_up(&self, state: &mut State, slot: usize) -> Flow {
        let folio = state.threads[slot].wb;
        let first = self.geo.folio_first(folio);
        let end = if self.has(Flag::GiveUpWholeFolio) {
            self.geo.folio_first(folio + 1)
        } else {
            // Only up to the first block of the last page.
            first + 1
        };
        self.es_remove(state, span(first, end));
        Flow::Next
    }

    pub(super) fn wb_invalidate(&self, state: &mut State, slot: usize) -> Flow {
        let folio = state.threads[slot].wb;
        let blocks = self.geo.folio_blocks(folio) & self.geo.all();
        // The data is lost, and the kernel has said so.
        state.want.fill(blocks, ANY);
        state.cache.discard(blocks);
        state.cache.ordered &= !blocks;
        state.cache.dirty &= !bit(folio);
        let t = &mut state.threads[slot];
        t.aside = 0;
        Flow::Next
    }

    pub(super) fn end_io_next(&self, state: &mut State, slot: usize, none: u16) -> Flow {
        let t = &mut state.threads[slot];
        if t.errno != Errno::Ok {
            // "failed to convert unwritten extents ... potential data loss!"
            state.want.fill(t.aside, ANY);
            return Flow::Goto(none);
        }
        let failed = state.io[usize::from(t.wb)].state == IoState::Failed;
        if t.aside == 0 || failed && self.has(Flag::NoConvertAfterError) {
            return Flow::Goto(none);
        }
        if t.map.pblk != 0 {
            // The run converted last.
            t.aside &= !span(t.map.lblk, t.map.end);
            t.map = Map::default();
            if t.aside == 0 {
                return Flow::Goto(none);
            }
        }
        t.cur = t.aside.trailing_zeros() as u8;
        t.end = t.cur + (t.aside >> t.cur).trailing_ones() as u8;
        Flow::Next
    }

    pub(super) fn end_io_finish(&self, state: &mut State, slot: usize) -> Flow {
        let io = usize::from(state.threads[slot].wb);
        self.end_writeback(state, io);
        meta::begin(state, slot)
    }

    /// The folios of a write are no longer under writeback.
    pub(super) fn end_writeback(&self, state: &mut State, io: usize) {
        let blocks = state.io[io].blocks;
        state.io[io] = IoEnd::default();
        state.cache.in_flight &= !blocks;
        let mut still = 0;
        for other in &state.io {
            still |= self.geo.folios_of(other.blocks);
        }
        state.cache.writeback &= still;
    }

    /// The device has answered a data write.
    pub(super) fn io_done(&self, state: &mut State, index: usize, failed: bool) {
        let io = state.io[index];
        if failed {
            // The user is told that the data is lost.
            for b in each(io.blocks) {
                state.want.set(b, ANY);
            }
        } else {
            self.write_media(state, io.blocks);
        }
        if io.convert == 0 {
            self.end_writeback(state, index);
        } else {
            state.io[index].state = if failed { IoState::Failed } else { IoState::ToConvert };
        }
    }
}
