//! What is there before a worker serves a ring, and what outlives it.
//!
//! In: the in-flight area of an earlier daemon, the log of a front-end that migrates. Out: requests
//! that are done again, pages that are marked.
//! Must not know: what requests mean.

use std::sync::Arc;

use tracing::info;

use super::{QueueFault, Worker};
use crate::blk::lock;
use crate::dirty_log::DirtyLog;
use crate::inflight::Tracker;
use crate::request::Chain;

impl Worker {
    /// The first time that a started ring is seen: goes on where it was left, by whomever. What
    /// was in flight when an earlier daemon died is done (again), in the order in which it was
    /// taken, before anything new.
    pub(super) fn begin(&mut self) -> Result<(), QueueFault> {
        if self.begun {
            return Ok(());
        }
        self.follow_memory();
        let Some(ring) = &mut self.ring else { return Ok(()) };
        let Some(running) = ring.running(&self.memory)? else {
            return Ok(());
        };
        self.begun = true;
        let area = lock(&self.around.inflight).clone();
        let tracker = area.map(|area| Tracker::new(&area, self.queue, running.size)).transpose()?;
        let Some(mut tracker) = tracker.flatten() else {
            ring.begin_at(running.used_idx, None);
            return Ok(());
        };
        let heads = tracker.recover(running.used_idx)?;
        // Not where the front-end says: cloud-hypervisor gives the avail index of now.
        ring.begin_at(running.used_idx, Some(running.used_idx.wrapping_add(heads.len() as u16)));
        self.tracker = Some(tracker);
        if running.used_idx != 0 {
            ring.call();
        }
        if !heads.is_empty() {
            info!(queue = self.queue, requests = heads.len(), "doing again what was in flight");
            self.serve_heads(&heads)?;
        }
        self.settle();
        Ok(())
    }

    /// Marks what the device may have written to in the chains that are about to be returned.
    /// They are walked again: until then they are the device's, and those that were taken before
    /// the log was asked for are marked too.
    #[cold]
    pub(super) fn mark_chains(&mut self) -> Option<Arc<DirtyLog>> {
        let log = lock(&self.around.dirty_log).clone()?;
        let table = self.ring.as_mut()?.table_now(&self.memory)?;
        let indirect = self.around.negotiated.indirect();
        for used in &self.used {
            // A chain that is broken now was whole before: its driver has no claim.
            if let Ok(chain) = Chain::walk(&self.memory, &table, used.head, indirect) {
                log.mark_segments(self.memory.memory(), &chain.writable);
            }
        }
        Some(log)
    }
}
