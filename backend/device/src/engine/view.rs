//! What queue threads read without a lock: the filter and the map, as one snapshot.
//!
//! In: a new snapshot whenever one of them changes. Out: [`Look`], [`Watch`].
//! Must not know: the core, the layout's owner.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use ext4_layout::{Kind, LayoutMap};
use pipeline::shadow::{self, Wants};
use pipeline::{Filter, Op, Want};

use super::Interest;
use super::memo::{Memo, Untold};

/// What is seen of a request without a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// How much the engine wants to know of it.
    pub interest: Interest,
    /// The classes that it touches, as an OR of [`Kind::bit`]; 0 where nobody goes by them.
    pub kinds: u32,
}

impl Look {
    /// Nobody wants to know of it.
    pub const NOTHING: Look = Look { interest: Interest::None, kinds: 0 };
}

/// The snapshot, and whether there is anything in it.
pub(super) struct View {
    /// Somebody may want something; read before anything else.
    active: AtomicBool,
    /// The operations of which somebody may want something, as an OR of [`bit`]: with a shadow and
    /// no rule, reads cost one load.
    ops: AtomicU32,
    /// How often the snapshot was replaced.
    version: AtomicU64,
    snapshot: ArcSwap<Snapshot>,
}

/// One state of what rules and layout want.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) filter: Arc<Filter>,
    /// The filter of all rules, armed or not, without the log.
    pub(super) watch: Arc<Filter>,
    pub(super) map: Option<Arc<LayoutMap>>,
    /// What the shadow wants, if there is one.
    pub(super) shadow: Option<Arc<shadow::Watch>>,
}

/// Why a page of persistent memory must not stay in the host's page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watch {
    /// It may: nobody wants to know of it.
    Nothing,
    /// What the guest stores there matters (the layout follows from it, or a rule is about
    /// stores), and is only seen when it is written back.
    Stores,
    /// A rule may want its first touch.
    Touches,
}

/// [`Watch`] of any number of pages, for one state of rules and layout.
#[derive(Clone, Debug)]
pub struct Watcher(Arc<Snapshot>);

impl Watcher {
    /// Why those sectors are watched.
    pub fn watch(&self, sector: u64, sectors: u64) -> Watch {
        self.0.watch(sector, sectors)
    }

    /// Whether the layout is known; without it, it is not known which stores matter to it.
    pub fn has_layout(&self) -> bool {
        self.0.map.is_some()
    }
}

impl View {
    pub(super) fn nothing() -> View {
        let nothing = Arc::new(Filter::nothing());
        let snapshot =
            Snapshot { filter: Arc::clone(&nothing), watch: nothing, map: None, shadow: None };
        View {
            active: AtomicBool::new(false),
            ops: AtomicU32::new(0),
            version: AtomicU64::new(0),
            snapshot: ArcSwap::from_pointee(snapshot),
        }
    }

    /// Replaces the snapshot.
    pub(super) fn publish(&self, snapshot: Snapshot) {
        let wanted = |filter: &Filter| Op::ALL.iter().any(|op| filter.wants(*op) != Want::Nothing);
        let active = snapshot.map.is_some() || wanted(&snapshot.filter) || wanted(&snapshot.watch);
        // The map alone wants to know of what changes the disk.
        let changes = |op: Op| snapshot.map.is_some() && !matches!(op, Op::Read | Op::Fault);
        let ops = Op::ALL
            .into_iter()
            .filter(|op| snapshot.filter.wants(*op) != Want::Nothing || changes(*op));
        let ops = ops.fold(0, |ops, op| ops | bit(op));
        self.snapshot.store(Arc::new(snapshot));
        self.ops.store(ops, Ordering::Release);
        self.active.store(active, Ordering::Release);
        self.version.fetch_add(1, Ordering::Release);
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(super) fn watcher(&self) -> Watcher {
        Watcher(self.snapshot.load_full())
    }

    #[inline]
    pub(super) fn watch(&self, sector: u64, sectors: u64) -> Watch {
        if !self.active.load(Ordering::Relaxed) {
            return Watch::Nothing;
        }
        self.snapshot.load().watch(sector, sectors)
    }

    #[inline]
    pub(super) fn look(&self, seen: &mut Seen, op: Op, sector: u64, sectors: u64) -> Look {
        // Relaxed: a request that races with the loading of rules may go either way.
        if self.ops.load(Ordering::Relaxed) & bit(op) == 0 {
            return Look::NOTHING;
        }
        // Whoever replaces the snapshot has told of it before the guest learns of what led to it.
        let version = self.version();
        if seen.version != version {
            seen.version = version;
            seen.memo.void();
            seen.snapshot = None;
        }
        seen.snapshot.get_or_insert_with(|| self.snapshot.load_full()).look_and_remember(
            &mut seen.memo,
            op,
            sector,
            sectors,
        )
    }

    /// As [`View::look`], for those who look seldom.
    #[inline]
    pub(super) fn look_once(&self, op: Op, sector: u64, sectors: u64) -> Look {
        if self.ops.load(Ordering::Relaxed) & bit(op) == 0 {
            return Look::NOTHING;
        }
        self.snapshot.load().look(op, sector, sectors)
    }
}

/// The snapshot that a thread has looked at last, which costs less than to fetch it anew for each
/// request, and what it has found there. A thread that goes to sleep forgets the snapshot: maps are
/// large.
#[derive(Debug, Default)]
pub struct Seen {
    version: u64,
    snapshot: Option<Arc<Snapshot>>,
    memo: Memo,
}

impl Seen {
    /// A look at that sector follows soon.
    #[inline]
    pub fn prefetch(&self, sector: u64) {
        self.memo.prefetch(sector);
    }

    /// Keeps no snapshot until the next look.
    pub fn forget(&mut self) {
        self.snapshot = None;
    }

    #[cfg(test)]
    pub(super) fn memo(&self) -> &Memo {
        &self.memo
    }
}

/// The bit of an operation in [`View::ops`].
const fn bit(op: Op) -> u32 {
    1 << op as u32
}

impl Snapshot {
    /// As [`Snapshot::look`], by what was found before where that is enough.
    #[inline]
    fn look_and_remember(&self, memo: &mut Memo, op: Op, sector: u64, sectors: u64) -> Look {
        let write = matches!(op, Op::Write | Op::Store);
        let by_class = self.filter.wants(op) == Want::Classes;
        let Some(map) = self.map.as_ref().filter(|_| {
            // What a shadow wants follows from more than the map.
            self.shadow.is_none()
                && (write || by_class && matches!(op, Op::Read | Op::Fault))
                && !self.filter.wants_place(op, sector, sectors)
        }) else {
            return self.look(op, sector, sectors);
        };
        let mut known = memo.kinds(sector, sectors, write);
        if known == Err(Untold::NotKnown) {
            memo.learn(map, &self.filter, sector, sectors);
            known = memo.kinds(sector, sectors, write);
        }
        match known {
            Ok(kinds) => Look { interest: Interest::None, kinds: if by_class { kinds } else { 0 } },
            Err(_) => self.look(op, sector, sectors),
        }
    }

    fn look(&self, op: Op, sector: u64, sectors: u64) -> Look {
        let mut kinds = 0;
        let interest = self.interest(op, sector, sectors, &mut kinds);
        match &self.map {
            None => kinds = 0,
            // What is looked at that closely is counted by class.
            Some(map) if interest != Interest::None && kinds == 0 => {
                kinds = map.kinds(sector, sectors);
            }
            Some(_) => {}
        }
        Look { interest, kinds }
    }

    /// Puts the classes to `kinds` if it has to look them up.
    fn interest(&self, op: Op, sector: u64, sectors: u64, kinds: &mut u32) -> Interest {
        let want = self.filter.wants(op);
        let mut wanted = Wants::Nothing;
        let mut by_rule = None;
        if let Some(map) = &self.map {
            if let Some(shadow) = &self.shadow {
                wanted = shadow.wants(map, op, sector, sectors);
                if wanted == Wants::Bytes && matches!(op, Op::Write | Op::Store) {
                    return Interest::EventWithBytes;
                }
                if wanted == Wants::Nothing && want == Want::Nothing {
                    return Interest::None;
                }
            }
            match op {
                Op::Write | Op::Store if map.wants_bytes(sector, sectors) => {
                    return Interest::EventWithBytes;
                }
                Op::Discard | Op::WriteZeroes => return Interest::Event,
                _ if want == Want::Classes => {
                    let (may_match, found) = self.filter.look(map, op, sector, sectors);
                    *kinds = found;
                    by_rule = Some(may_match);
                }
                _ => {}
            }
        } else {
            *kinds = Kind::Unknown.bit();
        }
        let by_rule = by_rule.unwrap_or_else(|| {
            want != Want::Nothing && self.filter.may_match(op, sector, sectors, *kinds)
        });
        if by_rule || wanted != Wants::Nothing { Interest::Event } else { Interest::None }
    }

    fn watch(&self, sector: u64, sectors: u64) -> Watch {
        let kinds = match &self.map {
            Some(map)
                if [Op::Fault, Op::Store]
                    .map(|op| self.watch.wants(op))
                    .contains(&Want::Classes) =>
            {
                map.kinds(sector, sectors)
            }
            Some(_) => 0,
            None => Kind::Unknown.bit(),
        };
        let rule = |op| {
            self.watch.wants(op) != Want::Nothing
                && self.watch.may_match(op, sector, sectors, kinds)
        };
        if rule(Op::Fault) {
            Watch::Touches
        } else if rule(Op::Store)
            || self.map.as_ref().is_some_and(|map| map.wants_bytes(sector, sectors))
        {
            Watch::Stores
        } else {
            Watch::Nothing
        }
    }
}
