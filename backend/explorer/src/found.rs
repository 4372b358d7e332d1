//! What all strategies share: the violations found so far and the verdict on an end.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::model::{InvariantId, Model, Step};

/// The state of a model.
pub(crate) type State<M> = <M as Model>::State;

/// One schedule for each broken invariant.
#[derive(Default)]
pub(crate) struct Found {
    by_invariant: BTreeMap<InvariantId, (usize, Vec<Step>)>,
}

impl Found {
    pub(crate) fn any(&self) -> bool {
        !self.by_invariant.is_empty()
    }

    /// Keeps a schedule if its rank is below that of the one at hand; builds it only then.
    pub(crate) fn shorter(
        &mut self,
        invariant: InvariantId,
        schedule: impl FnOnce() -> Vec<Step>,
        rank: usize,
    ) {
        match self.by_invariant.entry(invariant) {
            Entry::Vacant(vacant) => {
                vacant.insert((rank, schedule()));
            }
            Entry::Occupied(mut kept) if rank < kept.get().0 => {
                kept.insert((rank, schedule()));
            }
            Entry::Occupied(_) => {}
        }
    }

    pub(crate) fn into_schedules(self) -> impl Iterator<Item = (InvariantId, Vec<Step>)> {
        self.by_invariant.into_iter().map(|(invariant, (_, steps))| (invariant, steps))
    }
}

/// The verdict on a state without enabled steps.
pub(crate) fn check_end<M: Model>(model: &M, state: &State<M>) -> Result<(), InvariantId> {
    if model.finished(state) { model.check_final(state) } else { Err(InvariantId::DEADLOCK) }
}
