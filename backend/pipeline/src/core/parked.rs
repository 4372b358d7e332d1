//! Requests that wait, by identity and by due time.
//!
//! In: entries. Out: entries, each let go at most once. Must not know: rules, events, actions.
//!
//! One heap holds the due time of every waiting request. A request let go before its time
//! leaves its due time behind; such leftovers are dropped when they come to the top, and all at
//! once when they are more than half of the heap, so that a guest whose holds are short but
//! have long limits cannot make it grow.

use std::cmp::Reverse;
use std::collections::hash_map::{self, HashMap};
use std::collections::{BTreeSet, BinaryHeap};

use crate::request::{Nanos, RequestId};

/// Room that is there from the start: nothing is allocated until more requests wait.
const ROOM: usize = 1024;

/// A request that waits, or was let go and has not completed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Index of the rule that parked it.
    pub(super) rule: usize,
    /// Place in the order of arrivals.
    pub(super) order: u64,
    pub(super) arrived: Nanos,
    /// When it is let go at the latest.
    pub(super) due: Nanos,
    /// Number of the arrival that lets it go; `u64::MAX` if none does.
    pub(super) requests: u64,
    /// The errno that it is failed with in the end.
    pub(super) fail: Option<i32>,
    /// When it was let go.
    pub(super) released: Option<Nanos>,
    /// It was let go because its time was over.
    pub(super) ran_out: bool,
}

/// Due times in the order in which they come; of equal ones the earlier arrival first.
type Due = Reverse<(Nanos, u64, RequestId)>;

#[derive(Debug)]
pub(super) struct Parked {
    entries: HashMap<RequestId, Entry>,
    /// A due time for each waiting entry, and leftovers, but never a leftover on top.
    due: BinaryHeap<Due>,
    waiting: usize,
    /// Arrival numbers that let an entry go, of the waiting entries that have one.
    requests: BTreeSet<(u64, RequestId)>,
}

impl Parked {
    pub(super) fn new() -> Parked {
        Parked {
            entries: HashMap::with_capacity(ROOM),
            due: BinaryHeap::with_capacity(2 * ROOM),
            waiting: 0,
            requests: BTreeSet::new(),
        }
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Adds a waiting entry. False, and nothing is added, if the identity is taken: the device
    /// layer never repeats one, and if it did, two requests in one entry would lose one of them.
    pub(super) fn park(&mut self, id: RequestId, entry: Entry) -> bool {
        let hash_map::Entry::Vacant(vacant) = self.entries.entry(id) else {
            return false;
        };
        vacant.insert(entry);
        self.due.push(Reverse((entry.due, entry.order, id)));
        self.waiting += 1;
        if entry.requests != u64::MAX {
            self.requests.insert((entry.requests, id));
        }
        true
    }

    pub(super) fn next_due(&self) -> Option<Nanos> {
        self.due.peek().map(|Reverse((due, ..))| *due)
    }

    /// The arrival number that lets an entry go next.
    pub(super) fn next_requests(&self) -> Option<u64> {
        self.requests.first().map(|(requests, _)| *requests)
    }

    /// The waiting request that is due first, if it is due now.
    pub(super) fn first_due(&self, now: Nanos) -> Option<RequestId> {
        self.due.peek().filter(|Reverse((due, ..))| *due <= now).map(|Reverse((.., id))| *id)
    }

    /// Waiting requests that `wanted` says yes to, in the order of their arrival, into `found`.
    pub(super) fn find(&self, found: &mut Vec<RequestId>, wanted: impl Fn(&Entry) -> bool) {
        found.clear();
        if self.waiting == 0 {
            return;
        }
        let waiting = self.entries.iter().filter(|(_, entry)| entry.released.is_none());
        found.extend(waiting.filter(|(_, entry)| wanted(entry)).map(|(id, _)| *id));
        // Every identity found is in the map; `map_or` only spares a panic.
        found.sort_unstable_by_key(|id| self.entries.get(id).map_or(0, |entry| entry.order));
    }

    /// Lets a request go. It stays until it completes, unless it fails without being submitted.
    pub(super) fn release(&mut self, id: RequestId, now: Nanos, ran_out: bool) -> Option<Entry> {
        let entry = self.entries.get_mut(&id).filter(|entry| entry.released.is_none())?;
        entry.released = Some(now);
        entry.ran_out = ran_out;
        let entry = *entry;
        self.waiting -= 1;
        if entry.requests != u64::MAX {
            self.requests.remove(&(entry.requests, id));
        }
        if entry.fail.is_some() {
            self.entries.remove(&id);
        }
        self.drop_leftovers();
        Some(entry)
    }

    /// Storage finished a request; its entry, if it had been parked.
    pub(super) fn complete(&mut self, id: RequestId) -> Option<Entry> {
        self.entries.get(&id)?.released?;
        self.entries.remove(&id)
    }

    /// Forgets the requests that were let go and have not completed.
    pub(super) fn forget_released(&mut self) {
        self.entries.retain(|_, entry| entry.released.is_none());
    }

    /// Due times of requests that no longer wait.
    #[cfg(test)]
    pub(super) fn leftovers(&self) -> usize {
        self.due.len() - self.waiting
    }

    fn drop_leftovers(&mut self) {
        let entries = &self.entries;
        let waits = |Reverse((_, order, id)): &Due| {
            entries.get(id).is_some_and(|e| e.released.is_none() && e.order == *order)
        };
        if self.due.len() > 2 * self.waiting.max(ROOM / 2) {
            self.due.retain(waits);
        }
        while self.due.peek().is_some_and(|due| !waits(due)) {
            self.due.pop();
        }
    }
}
