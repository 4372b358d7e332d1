//! The rules that a state must keep, each a named check.
//!
//! In: a state after a step. Out: the first rule that it breaks, and the block at fault.
//!
//! Judged: A1-A6, A8 and A9 whenever nobody holds `i_data_sem` W ("lock-stable"); A7 always; D2 and D3
//! whenever moreover no handle is open, that is in every state a commit could freeze; G1, G2 and
//! G3 whenever moreover nobody changes the file's layout; B1-B5 at the end of a run, when every
//! thread is done. A10, A11, C1-C3, G4 and a stale read (D3) are judged by the step that would
//! break them.
//!
//! Not judged: D4-D7 and P1 (crash cuts and order on the wire are the shadow's).
//!
//! A9 without its number: one that only grows would make every state new. All that anybody asks of
//! it is whether it is still the same, so each mapping carries a mark that every change of extent
//! status takes away ([`Map::SEQ`]); a change that forgets to leaves the mark on a mapping that is
//! no longer true. Not covered: mappings made without the lock of a folio.
//!
//! G2 knows one bit a block: whether a store through a mapping has left bytes behind the end of the
//! file in it, in the page cache. On disk there are none before G2 is broken, because writeback
//! zeroes them. A store in the middle of an extension counts as one behind it.

use crate::exec::Engine;
use crate::geometry::{Set, bit, each, span};
use crate::kernel::Flag;
use crate::program::Instr;
use crate::state::{ANY, Disk, IoState, Map, Rwsem, STALE, State, Thread, ZERO};

/// Declares the rules with their statements, in order of number.
macro_rules! invariants {
    ($($rule:ident = $statement:literal,)*) => {
        /// One rule of the catalogue.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Invariant { $(#[doc = $statement] $rule,)* }

        impl Invariant {
            /// Every rule, in order of number.
            pub const ALL: &[Invariant] = &[$(Invariant::$rule,)*];

            /// Name in the catalogue.
            pub const fn name(self) -> &'static str {
                match self { $(Invariant::$rule => stringify!($rule),)* }
            }

            /// What has to hold.
            pub const fn statement(self) -> &'static str {
                match self { $(Invariant::$rule => $statement,)* }
            }
        }
    };
}

invariants! {
    A1 = "a W or U entry of extent status agrees with the extent tree on every block",
    A2 = "an H entry covers no block on disk and no delayed block",
    A3 = "i_reserved_data_blocks counts the clusters of delayed blocks that have no space",
    A4 = "a delayed block is not on disk and has a dirty delayed buffer; such a buffer has a delayed or allocated block",
    A5 = "a cluster is pending if and only if it is allocated and holds a delayed block",
    A6 = "i_disksize is at most i_size",
    A7 = "a folio dropped before its blocks are removed stays away until they are",
    A8 = "an entry of extent status has a legal set of types",
    A9 = "a mapping of a locked folio that carries the i_es_seq of now is still true",
    A10 = "the shrinker never takes a delayed entry",
    A11 = "no more is released than was reserved",
    B1 = "s_dirtyclusters_counter is the sum of the reservations",
    B2 = "s_freeclusters_counter is the number of free clusters in the bitmap",
    B3 = "no write is left without its end, no unwritten block without its conversion",
    B4 = "with nothing dirty, i_disksize is i_size and the inode is no orphan",
    B5 = "i_blocks counts the clusters that the inode owns",
    C1 = "an evicted inode has no reservation and nothing pending",
    C2 = "an evicted inode has no I/O in flight",
    C3 = "an evicted inode owns no block",
    D1 = "every block that the bitmap has in use has exactly one owner",
    D2 = "no written block lies beyond i_disksize unless the inode is an orphan",
    D3 = "a written block never shows an earlier owner's data",
    G1 = "what was written last is what is read",
    G2 = "what lay behind the end of the file reads as zeroes when the file has grown",
    G3 = "what was punched, zeroed or cut off reads as zeroes",
    G4 = "no hole is reported where data is delayed",
}

impl Invariant {
    /// The rule with a number.
    pub fn nth(number: u16) -> Option<Invariant> {
        Invariant::ALL.get(usize::from(number)).copied()
    }
}

/// A broken rule and the block at fault.
pub type Finding = (Invariant, u8);

/// The lowest block of a set that must be empty.
#[inline]
fn empty(set: Set, invariant: Invariant) -> Result<(), Finding> {
    if set == 0 { Ok(()) } else { Err((invariant, set.trailing_zeros() as u8)) }
}

#[inline]
fn holds(condition: bool, invariant: Invariant) -> Result<(), Finding> {
    if condition { Ok(()) } else { Err((invariant, 0)) }
}

impl Engine {
    /// The first rule that the state breaks after a step.
    #[inline]
    pub fn check(&self, state: &State) -> Result<(), Finding> {
        if state.broken.invariant != 0 {
            let number = u16::from(state.broken.invariant - 1);
            let invariant = Invariant::nth(number).unwrap_or(Invariant::A1);
            return Err((invariant, state.broken.block));
        }
        self.dropped_folios(state)?;
        if state.locks.written(Rwsem::Data) {
            return Ok(());
        }
        self.extent_status(state)?;
        if self.has(Flag::EsSeq) {
            self.mappings(state)?;
        }
        self.reservations(state)?;
        Self::sizes(state)?;
        if state.locks.handles == 0 {
            self.frozen(state)?;
        }
        self.user_view(state)
    }

    #[inline]
    fn dropped_folios(&self, state: &State) -> Result<(), Finding> {
        let guarded = state.threads.iter().fold(0, |set, t| set | t.guard);
        empty(self.geo.blocks_of(state.cache.present & guarded), Invariant::A7)
    }

    #[inline]
    fn extent_status(&self, state: &State) -> Result<(), Finding> {
        let (es, disk) = (&state.es, &state.disk);
        let mapped = es.mapped();
        let mut wrong =
            mapped & !disk.mapped | es.written & disk.unwritten | es.unwritten & !disk.unwritten;
        if es.pblk != disk.pblk {
            for b in each(mapped) {
                if es.pblk[usize::from(b)] != disk.pblk[usize::from(b)] {
                    wrong |= bit(b);
                }
            }
        }
        empty(wrong, Invariant::A1)?;
        empty(es.hole & (disk.mapped | es.delayed), Invariant::A2)?;
        let mut illegal = es.written & es.unwritten | es.hole & mapped;
        if self.has(Flag::ExclusiveTypes) {
            illegal |= es.delayed & mapped;
        } else if self.has(Flag::ConvertDropsDelayed) {
            illegal |= es.delayed & es.written;
        }
        empty(illegal, Invariant::A8)
    }

    /// Mappings that carry the `i_es_seq` of now, as far as their folios are locked.
    #[inline]
    fn mappings(&self, state: &State) -> Result<(), Finding> {
        for t in &state.threads {
            if t.map.has(Map::SEQ) {
                empty(self.untrue(state, t), Invariant::A9)?;
            }
        }
        Ok(())
    }

    /// Blocks of a thread's locked folios of which its mapping is not true.
    fn untrue(&self, state: &State, thread: &Thread) -> Set {
        let (map, disk) = (thread.map, &state.disk);
        let set = span(map.lblk, map.end) & self.geo.blocks_of(thread.folios);
        if map.pblk == 0 {
            let delayed = if map.has(Map::DELAYED) { !state.es.delayed } else { 0 };
            return set & (disk.mapped | delayed);
        }
        let unwritten = if map.has(Map::UNWRITTEN) { !disk.unwritten } else { disk.unwritten };
        let moved = each(set)
            .filter(|&b| disk.pblk[usize::from(b)] != map.pblk + (b - map.lblk))
            .fold(0, |set, b| set | bit(b));
        set & (!disk.mapped | unwritten) | moved
    }

    #[inline]
    fn reservations(&self, state: &State) -> Result<(), Finding> {
        let (es, cache, geo) = (&state.es, &state.cache, &self.geo);
        let delayed = es.delayed_only();
        if geo.cluster_shift != 0 {
            let allocated = geo.clusters_of(state.disk.mapped);
            let due = geo.clusters_of(delayed) & allocated;
            let wrong = (es.pending ^ due).trailing_zeros() as u8;
            if es.pending != due {
                return Err((Invariant::A5, wrong << geo.cluster_shift));
            }
        }
        empty(delayed & state.disk.mapped, Invariant::A4)?;
        if state.inode.reserved != state.reservation_due(geo) && !self.reserving(state) {
            let first = if delayed == 0 { 0 } else { delayed.trailing_zeros() as u8 };
            return Err((Invariant::A3, first));
        }
        // A folio in somebody's hands, or a cache that is being dropped, says nothing yet.
        if state.locks.written(Rwsem::Invalidate) || state.inode.gone {
            return Ok(());
        }
        let visible = !geo.blocks_of(cache.locked);
        let dirty_delay = cache.buf_dirty & cache.delay;
        empty(delayed & !dirty_delay & visible, Invariant::A4)?;
        empty(dirty_delay & !(delayed | state.disk.mapped) & visible, Invariant::A4)
    }

    /// Whether a thread has reserved and not yet inserted: only a kernel with M02 can be seen so.
    fn reserving(&self, state: &State) -> bool {
        (0..self.users).any(|slot| matches!(self.at(state, slot), Instr::InsertDelayed))
    }

    #[inline]
    fn sizes(state: &State) -> Result<(), Finding> {
        let inode = &state.inode;
        holds(inode.i_disksize <= inode.i_size, Invariant::A6)
    }

    /// What a commit at this moment would freeze.
    #[inline]
    fn frozen(&self, state: &State) -> Result<(), Finding> {
        let (disk, cache) = (&state.disk, &state.cache);
        let used = disk.owned(&self.geo);
        let free = disk.free;
        let known = Disk::new(&self.geo).free;
        if used & free != 0 || used | free != known {
            return Err((Invariant::D1, 0));
        }
        if !state.inode.orphan && !state.inode.gone {
            let end = self.geo.blocks_for(state.inode.i_disksize);
            let beyond = disk.written() & !span(0, end);
            empty(beyond & !cache.in_flight, Invariant::D2)?;
        }
        let direct = self.direct_blocks(state);
        let guarded = state.threads.iter().fold(0, |set, t| set | t.guard);
        let excused = cache.in_flight | cache.ordered | direct | self.geo.blocks_of(guarded);
        // Without dioread_nolock a failed write leaves what was there: the user is told.
        let told = if self.geo.dioread_nolock {
            0
        } else {
            each(self.geo.all())
                .filter(|&b| state.want.get(b) == ANY)
                .fold(0, |set, b| set | bit(b))
        };
        let excused = excused | told;
        // Recovery truncates an orphan: what lies behind its size is never seen.
        let seen = if state.inode.orphan {
            span(0, self.geo.blocks_for(state.inode.i_disksize))
        } else {
            Set::MAX
        };
        empty(disk.stale() & seen & !excused, Invariant::D3)
    }

    /// Blocks that a direct write is about to fill.
    #[inline]
    fn direct_blocks(&self, state: &State) -> Set {
        if state.inode.dio == 0 {
            return 0;
        }
        self.geo.all()
    }

    /// What users read, from the cache and, where the cache is clean, from disk.
    #[inline]
    fn user_view(&self, state: &State) -> Result<(), Finding> {
        if state.locks.written(Rwsem::Invalidate) || state.inode.dio != 0 || state.inode.gone {
            return Ok(());
        }
        let (cache, geo) = (&state.cache, &self.geo);
        let locked = geo.blocks_of(cache.locked);
        let inside = span(0, geo.blocks_for(state.inode.i_size)) & !locked;
        let cached = geo.blocks_of(cache.present) & cache.uptodate;
        if cache.behind_eof != 0 {
            let whole = geo.whole_blocks(state.inode.i_size);
            empty(cache.behind_eof & whole & !locked, Invariant::G2)?;
        }
        let differs = cache.data.0 ^ state.want.0;
        if differs != 0 {
            for b in each(inside & cached) {
                if (differs >> (4 * u32::from(b))) & 15 != 0 {
                    judge(cache.data.get(b), state.want.get(b), b)?;
                }
            }
        }
        // A folio that is neither dirty nor being written claims that the disk is up to date.
        let unsafe_yet = geo.blocks_of(cache.dirty | cache.writeback);
        for b in each(inside & !unsafe_yet & geo.all()) {
            let on_disk = state.read_disk(b);
            judge(on_disk, state.want.get(b), b)?;
        }
        Ok(())
    }

    /// What has to hold once every thread is done.
    pub fn check_final(&self, state: &State) -> Result<(), Finding> {
        let (inode, fs, cache) = (&state.inode, &state.fs, &state.cache);
        holds(fs.dirty == inode.reserved, Invariant::B1)?;
        let usable = (state.disk.free.count_ones() >> self.geo.cluster_shift) as i8;
        holds(fs.free == usable, Invariant::B2)?;
        let owned = (state.disk.owned(&self.geo).count_ones() >> self.geo.cluster_shift) as i8;
        holds(inode.i_blocks == owned, Invariant::B5)?;
        let waiting = state.io.iter().any(|io| io.state != IoState::Idle);
        holds(!waiting && cache.writeback == 0, Invariant::B3)?;
        if cache.dirty == 0 && !inode.gone {
            holds(!inode.orphan, Invariant::B4)?;
            empty(cache.buf_dirty & cache.delay, Invariant::B3)?;
            let lost = (0..16).any(|b| state.want.get(b) == ANY);
            holds(lost || inode.i_size == inode.i_disksize, Invariant::B4)?;
        }
        Ok(())
    }
}

/// Compares what a user would read with what it should be.
#[inline]
fn judge(read: u8, want: u8, block: u8) -> Result<(), Finding> {
    if read == want || want == ANY || read == ANY {
        Ok(())
    } else if read == STALE {
        Err((Invariant::D3, block))
    } else if want == ZERO {
        Err((Invariant::G3, block))
    } else {
        Err((Invariant::G1, block))
    }
}
