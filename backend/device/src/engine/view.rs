//! What queue threads read without a lock: the filter and the map, as one snapshot.
//!
//! In: a new snapshot whenever one of them changes. Out: [`Interest`].
//! Must not know: the core, the layout's owner.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use ext4_layout::{Kind, LayoutMap};
use pipeline::{Filter, Op, Want};

use super::Interest;

/// The snapshot, and whether there is anything in it.
pub(super) struct View {
    /// Somebody may want something; read before anything else.
    active: AtomicBool,
    snapshot: ArcSwap<Snapshot>,
}

struct Snapshot {
    filter: Arc<Filter>,
    map: Option<Arc<LayoutMap>>,
}

impl View {
    pub(super) fn nothing() -> View {
        let snapshot = Snapshot { filter: Arc::new(Filter::nothing()), map: None };
        View { active: AtomicBool::new(false), snapshot: ArcSwap::from_pointee(snapshot) }
    }

    /// Replaces the snapshot.
    pub(super) fn publish(&self, filter: Arc<Filter>, map: Option<Arc<LayoutMap>>) {
        let active = map.is_some() || Op::ALL.iter().any(|op| filter.wants(*op) != Want::Nothing);
        self.snapshot.store(Arc::new(Snapshot { filter, map }));
        self.active.store(active, Ordering::Release);
    }

    #[inline]
    pub(super) fn interest(&self, op: Op, sector: u64, sectors: u64) -> Interest {
        // Relaxed: a request that races with the loading of rules may go either way.
        if !self.active.load(Ordering::Relaxed) {
            return Interest::None;
        }
        self.snapshot.load().interest(op, sector, sectors)
    }
}

impl Snapshot {
    fn interest(&self, op: Op, sector: u64, sectors: u64) -> Interest {
        let want = self.filter.wants(op);
        let mut kinds = 0;
        if let Some(map) = &self.map {
            match op {
                Op::Write if map.wants_bytes(sector, sectors) => return Interest::EventWithBytes,
                Op::Discard | Op::WriteZeroes => return Interest::Event,
                _ if want == Want::Classes => kinds = map.kinds(sector, sectors),
                _ => {}
            }
        } else {
            kinds = Kind::Unknown.bit();
        }
        if want != Want::Nothing && self.filter.may_match(op, sector, sectors, kinds) {
            Interest::Event
        } else {
            Interest::None
        }
    }
}
