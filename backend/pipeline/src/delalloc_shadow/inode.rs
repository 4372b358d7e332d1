//! What is known of one inode: extent status, blocks on disk, reservations.
//!
//! In: changes, in the kernel's order. Out: counts to compare.
//! Must not know: events, threads' operations, how a finding looks.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use delalloc::Invariant;

use super::Actor;
use super::cache::Dropped;
use super::ranges::Ranges;

/// Status bits are the highest five of `es_pblk` (`ES_SHIFT` in fs/ext4/extents_status.h).
pub(super) const ES_SHIFT: u32 = 59;
const ES_WRITTEN: u64 = 1;
const ES_UNWRITTEN: u64 = 2;
const ES_DELAYED: u64 = 4;
const ES_HOLE: u64 = 8;

/// Steps of an inode's story that are kept.
const MOST_STEPS: usize = 12;
/// Most pending clusters of an inode; beyond that they are unknown.
const MOST_PENDING: usize = 4096;

/// What an entry of extent status says of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status(u8);

impl Status {
    /// From the bits of `es_pblk`, or those that functions take.
    pub(super) fn of(bits: u64) -> Status {
        Status((bits & 15) as u8)
    }

    fn has(self, bit: u64) -> bool {
        u64::from(self.0) & bit != 0
    }

    /// Written or unwritten: the blocks have space.
    pub(super) fn mapped(self) -> bool {
        self.has(ES_WRITTEN | ES_UNWRITTEN)
    }

    /// Unwritten, whatever else.
    pub(super) fn unwritten(self) -> bool {
        self.has(ES_UNWRITTEN) && !self.has(ES_WRITTEN)
    }

    /// Delayed, and nothing else.
    pub(super) fn delayed_only(self) -> bool {
        self.has(ES_DELAYED) && !self.mapped()
    }

    /// Whether the shrinker must leave it alone.
    pub(super) fn must_keep(self) -> bool {
        self.has(ES_DELAYED)
    }

    /// A hole.
    pub(super) fn hole(self) -> bool {
        self.has(ES_HOLE) && !self.mapped() && !self.has(ES_DELAYED)
    }

    /// One of W, U, D and H; before Linux 6.12 also U+D.
    pub(super) fn legal(self, exclusive: bool) -> bool {
        let unwritten_delayed = u64::from(self.0) == ES_UNWRITTEN | ES_DELAYED;
        self.0.is_power_of_two() || (unwritten_delayed && !exclusive)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = [(ES_WRITTEN, "W"), (ES_UNWRITTEN, "U"), (ES_DELAYED, "D"), (ES_HOLE, "H")];
        let mut names = bits.iter().filter(|(bit, _)| self.has(*bit)).map(|(_, name)| *name);
        f.write_str(names.next().unwrap_or("nothing"))?;
        names.try_for_each(|name| write!(f, "+{name}"))
    }
}

/// Blocks with one status, and where they are.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub(super) status: Status,
    /// Physical minus logical number, wrapping, so that parts of a range share it.
    pub(super) shift: u64,
    pub(super) by: Arc<Actor>,
}

impl Cell {
    /// Physical block of a logical one.
    pub(super) fn pblk(&self, lblk: u32) -> u64 {
        u64::from(lblk).wrapping_add(self.shift)
    }
}

/// Something that happened to an inode.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) by: Arc<Actor>,
    pub(super) what: Change,
}

/// What.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    Put(Status, u32, u32),
    Remove(u32, u32),
    Reclaim(u32, u32),
    Update(u64),
    Release(u64),
    Free(u64, u64),
    Truncate(u64),
    Evict,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Put(status, lblk, len) => {
                write!(f, "extent status {lblk}+{len} becomes {status}")
            }
            Change::Remove(lblk, len) => write!(f, "extent status {lblk}+{len} is given up"),
            Change::Reclaim(lblk, len) => write!(f, "extent status {lblk}+{len} is reclaimed"),
            Change::Update(n) => write!(f, "{n} reserved clusters are used up"),
            Change::Release(n) => write!(f, "{n} reserved clusters are released"),
            Change::Free(block, count) => write!(f, "blocks {block}+{count} are freed"),
            Change::Truncate(size) => write!(f, "truncate to {size} bytes"),
            Change::Evict => f.write_str("evict"),
        }
    }
}

/// One inode.
#[derive(Debug, Default)]
pub(super) struct Inode {
    pub(super) ino: u64,
    /// When it was changed last, in events.
    pub(super) changed: u64,
    /// Blocks per cluster; 0 while unknown.
    pub(super) ratio: u32,
    es: Ranges<Cell>,
    delayed_only: u64,
    /// Blocks of entries that must be kept.
    kept: u64,
    /// Every delayed block is in `es`.
    pub(super) complete: bool,
    /// Blocks that have space on disk, as far as known: extent status comes and goes.
    pub(super) disk: Ranges<Cell>,
    /// Unwritten blocks that writeback writes to and is to make written; who gave them space.
    pub(super) converting: Ranges<Arc<Actor>>,
    /// `i_reserved_data_blocks` after the last step that was seen.
    pub(super) reserved: Option<u64>,
    /// Clusters of the pending tree; `None` while unknown. Known again when nothing is delayed.
    pub(super) pending: Option<BTreeSet<u32>>,
    /// The thread whose section under `i_data_sem` is not known to be over.
    pub(super) open: Option<u32>,
    /// Seen since it was allocated.
    pub(super) fresh: bool,
    /// Some of its data could not be written.
    pub(super) failed: bool,
    /// `i_es_seq` before the last change that advances it.
    pub(super) seq: Option<u32>,
    /// Pages that were dropped from the page cache and whose blocks are to go.
    pub(super) dropped: Option<Dropped>,
    story: VecDeque<Step>,
    /// Rules that were told of: what is broken once breaks more of what follows.
    pub(super) told: Vec<Invariant>,
}

impl Inode {
    /// An inode that has just been made: nothing is in it.
    pub(super) fn fresh(changed: u64) -> Inode {
        Inode {
            changed,
            complete: true,
            fresh: true,
            reserved: Some(0),
            pending: Some(BTreeSet::new()),
            ..Inode::default()
        }
    }

    /// How many ranges it takes to remember it.
    pub(super) fn ranges(&self) -> usize {
        let mapped = self.es.len() + self.disk.len() + self.converting.len();
        mapped + self.pending.as_ref().map_or(0, BTreeSet::len)
    }

    /// Extent status of a range.
    pub(super) fn es(&self, lblk: u32, len: u32) -> impl Iterator<Item = (u32, u32, &Cell)> {
        self.es.within(lblk, len)
    }

    /// Whether all blocks of a range are known to be delayed, and nothing else.
    pub(super) fn delayed(&self, lblk: u32, len: u32) -> bool {
        let parts = self.es.within(lblk, len).filter(|(.., cell)| cell.status.delayed_only());
        parts.map(|(_, len, _)| u64::from(len)).sum::<u64>() == u64::from(len)
    }

    /// All of it.
    pub(super) fn es_all(&self) -> impl Iterator<Item = (u32, u32, &Cell)> {
        self.es.all()
    }

    /// Takes a range out of extent status.
    pub(super) fn es_remove(&mut self, lblk: u32, len: u32) {
        for (_, len, cell) in self.es.within(lblk, len) {
            let len = u64::from(len);
            self.delayed_only -= if cell.status.delayed_only() { len } else { 0 };
            self.kept -= if cell.status.must_keep() { len } else { 0 };
        }
        self.es.remove(lblk, len);
    }

    /// Puts a range into extent status.
    pub(super) fn es_insert(&mut self, lblk: u32, len: u32, cell: Cell) {
        self.es_remove(lblk, len);
        self.delayed_only += if cell.status.delayed_only() { u64::from(len) } else { 0 };
        self.kept += if cell.status.must_keep() { u64::from(len) } else { 0 };
        self.es.insert(lblk, len, cell);
    }

    /// Extent status is empty now.
    pub(super) fn es_clear(&mut self) {
        self.es.clear();
        (self.delayed_only, self.kept) = (0, 0);
        self.complete = true;
    }

    /// Whether any entry is one that must be kept.
    pub(super) fn keeps_any(&self) -> bool {
        self.kept > 0
    }

    /// What `i_reserved_data_blocks` has to be, if everything that counts is known.
    pub(super) fn due(&self) -> Option<u64> {
        if !self.complete {
            return None;
        }
        match self.ratio {
            0 => None,
            1 => Some(self.delayed_only),
            _ => {
                let clusters = self.delayed_clusters().len() as u64;
                clusters.checked_sub(self.pending.as_ref()?.len() as u64)
            }
        }
    }

    /// Clusters that hold a delayed block without space.
    pub(super) fn delayed_clusters(&self) -> BTreeSet<u32> {
        let ratio = self.ratio.max(1);
        let parts = self.es.all().filter(|(.., cell)| cell.status.delayed_only());
        // Bounded by what was reserved; a hostile guest claims more than it has.
        parts
            .flat_map(|(lblk, len, _)| lblk / ratio..=lblk.saturating_add(len - 1) / ratio)
            .take(MOST_PENDING)
            .collect()
    }

    /// A cluster becomes pending, or stops to be.
    pub(super) fn set_pending(&mut self, lblk: u32, pending: bool) {
        let cluster = lblk / self.ratio.max(1);
        let Some(set) = &mut self.pending else {
            return;
        };
        if !pending {
            set.remove(&cluster);
        } else if set.len() < MOST_PENDING {
            set.insert(cluster);
        } else {
            self.pending = None;
        }
    }

    /// Delayed blocks of a range go away: `get_rsvd` takes clusters out of the pending tree by itself,
    /// and no probe sees which.
    pub(super) fn forget_pending(&mut self, lblk: u32, len: u32) {
        let ratio = self.ratio.max(1);
        let clusters = lblk / ratio..=lblk.saturating_add(len.max(1) - 1) / ratio;
        if self.pending.as_ref().is_some_and(|set| set.range(clusters).next().is_some()) {
            self.pending = None;
        }
    }

    /// Adds to its story.
    pub(super) fn tell(&mut self, by: &Arc<Actor>, what: Change) {
        if self.story.len() == MOST_STEPS {
            self.story.pop_front();
        }
        self.story.push_back(Step { by: Arc::clone(by), what });
    }

    /// Its story, oldest first.
    pub(super) fn story(&self) -> impl Iterator<Item = &Step> {
        self.story.iter()
    }

    /// Who changed it last, and the last other thread before.
    pub(super) fn last_two(&self) -> (Option<Arc<Actor>>, Option<Arc<Actor>>) {
        let last = self.story.back().map(|step| Arc::clone(&step.by));
        let other = self
            .story
            .iter()
            .rev()
            .find(|step| last.as_ref().is_some_and(|last| step.by.tid != last.tid));
        (last, other.map(|step| Arc::clone(&step.by)))
    }
}
