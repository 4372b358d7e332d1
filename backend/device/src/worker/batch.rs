//! A batch: heads from the ring, understood a few at a time, and begun.
//!
//! In: heads. Out: requests that are begun or refused, used elements shown a few at a time.
//! Must not know: how a request is carried out, or ends.

use tracing::debug;

use super::{QueueFault, Worker};
use crate::completion::complete;
use crate::request::{Chain, Limits, Refused, Request, Table, parse};
use crate::segments::Snapshot;
use crate::storage::SECTOR_BYTES;

/// Heads taken from the ring at a time: enough to share one call, few enough that the first
/// does not wait long for the last.
pub(super) const BATCH: usize = 64;

/// Ended requests that are shown to the driver at once: one that is awake works on them while the
/// rest of the batch is served.
const SHARE: usize = 4;

/// Chains that are understood before the first of them is served: what they take is then on its
/// way from memory, and the driver's writes to the ring from its processor.
pub(super) const AHEAD: usize = 4;

impl Worker {
    /// Serves up to [`BATCH`] chains. False if there were none.
    pub(super) fn serve_batch(&mut self) -> Result<bool, QueueFault> {
        let Some(ring) = &mut self.ring else { return Ok(false) };
        let mut heads = std::mem::take(&mut self.heads);
        let taken = ring.take(&self.memory, &mut heads, BATCH);
        let result = taken.map_err(QueueFault::from).and_then(|()| {
            if heads.is_empty() {
                return Ok(());
            }
            if let Some(tracker) = &mut self.tracker {
                tracker.taken(&heads);
            }
            self.serve_heads(&heads)
        });
        let any = !heads.is_empty();
        heads.clear();
        self.heads = heads;
        self.settle();
        result.map(|()| any)
    }

    pub(super) fn serve_heads(&mut self, heads: &[u16]) -> Result<(), QueueFault> {
        let memory = self.memory.clone();
        let limits = self.limits();
        let Some(table) = self.ring.as_ref().and_then(|ring| ring.table(&memory)) else {
            return Ok(());
        };
        if let Some(counters) = self.around.counters.queue(self.queue) {
            self.taken_ns = counters.now_ns();
        }
        let mut understood = std::mem::take(&mut self.understood);
        let mut fault = None;
        let mut left = heads.len();
        for some in heads.chunks(AHEAD) {
            for head in some {
                match self.understand(&memory, &table, *head, limits) {
                    Ok(request) => understood.push((*head, request)),
                    Err(why) => {
                        fault = Some(why);
                        break;
                    }
                }
            }
            for (head, request) in understood.drain(..) {
                self.serve(head, request);
                left -= 1;
                if self.used.len() >= SHARE {
                    self.publish();
                    self.call_driver_in_time(left);
                }
            }
            // What came before is answered.
            if fault.is_some() {
                break;
            }
        }
        self.understood = understood;
        fault.map_or(Ok(()), Err)
    }

    /// Reads a chain, and has what it is about fetched ahead.
    fn understand(
        &mut self,
        memory: &Snapshot,
        table: &Table<'_>,
        head: u16,
        limits: Limits,
    ) -> Result<Result<Request, Refused>, QueueFault> {
        self.busy.claim(head)?;
        let request = Chain::walk(memory, table, head, self.around.negotiated.indirect())
            .and_then(|chain| parse(chain, limits))
            .map_err(|source| QueueFault::Chain { head, source })?;
        if let Ok(Request { verb, .. }) = &request
            && let Some((sector, bytes)) = verb.transfers()
        {
            self.channel.soon(sector * SECTOR_BYTES, bytes);
            self.seen.prefetch(sector);
        }
        Ok(request)
    }

    fn serve(&mut self, head: u16, request: Result<Request, Refused>) {
        match request {
            Ok(request) => self.start(head, request),
            Err(Refused { why, status }) => {
                debug!(queue = self.queue, head, %why, "request refused");
                self.used_up(complete(head, status, why.status(), 0));
                if let Some(counters) = self.around.counters.queue(self.queue) {
                    counters.refuse();
                }
            }
        }
    }

    fn limits(&self) -> Limits {
        let storage = &self.around.storage;
        Limits {
            capacity_sectors: storage.capacity_sectors(),
            read_only: self.around.negotiated.read_only(),
            can_discard: storage.can_discard(),
        }
    }
}
