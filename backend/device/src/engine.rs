//! The engine of one device: what every queue thread shares to classify requests and to decide
//! what happens to them.
//!
//! In: requests as they arrive and complete, control commands, marks of the agent, time.
//! Out: a [`Disposition`] for each request, later releases through the [`Inbox`] of its queue,
//! events for the sinks.
//! Must not know: virtqueues, guest memory, how storage works.
//!
//! A queue thread asks [`Engine::interest`] first. With nothing loaded the answer costs one
//! relaxed load and is [`Interest::None`]: the request goes to storage as if there were no engine.
//! Everything else happens under one short lock around the core and the layout; the order in
//! which that lock is taken is the order of events. Under it nothing is written to a file or a
//! socket; only a layout that has to be read from storage (rules loaded, mkfs in the guest) makes
//! other queues wait.
//!
//! The labels of a request follow from every write that *completed* before it arrived:
//! [`Engine::complete`] swaps the map before the guest learns of the completion. A write that
//! was already with storage when the layout was opened is not seen; rules that are loaded while
//! the guest writes metadata may label those few blocks by their old content.

mod control;
mod inbox;
mod layout;
mod memo;
mod shadow;
mod state;
mod view;

pub use control::LayoutError;
pub use inbox::{Inbox, Release};
pub use view::{Look, Seen, Watch, Watcher};

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use pipeline::event::bytes_event;
use pipeline::shadow::Shadow;
use pipeline::{Input, Nanos, Op, Outcome, Request, RequestId, Want};

use crate::clock::Clock;
use crate::lead::Lead;
use crate::link::Mailbox;
use crate::sink::{Log, Sinks};
use crate::storage::{SECTOR_BYTES, Storage};
use crate::timer::{Alarm, Timer};

use state::State;
use view::View;

/// Longest time by which a release is sent ahead, in nanoseconds, and so the longest time that a
/// queue thread waits actively.
const LEAD_MAX_NS: u64 = 80_000;

/// How much the engine wants to know of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Nothing: give it straight to storage; neither [`Engine::arrive`] nor
    /// [`Engine::complete`] is called for it.
    None,
    /// Call [`Engine::arrive`] and [`Engine::complete`], without data.
    Event,
    /// Writes and stores only. Copy the data to a private buffer first (the guest may change its own while
    /// we look), pass that buffer to [`Engine::arrive`] and [`Engine::complete`], and store from
    /// it.
    EventWithBytes,
}

/// A request as a queue thread hands it over.
#[derive(Clone, Copy, Debug)]
pub struct ArrivingRequest {
    /// From [`Engine::next_id`].
    pub id: RequestId,
    /// Virtqueue index.
    pub queue: u16,
    /// Head descriptor index in the avail ring.
    pub head: u16,
    /// What it does.
    pub op: Op,
    /// First 512-byte sector; 0 for a flush.
    pub sector: u64,
    /// Length in 512-byte sectors; 0 for a flush.
    pub sectors: u64,
}

/// What to do with a request now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Hand it to storage.
    Submit,
    /// Keep it; the [`Inbox`] of its queue will name it.
    Park,
    /// Complete it with this errno without touching storage (then call [`Engine::complete`]
    /// too).
    Fail {
        /// From the rule.
        errno: i32,
    },
}

/// What an engine is made of.
pub struct EngineOptions {
    /// Virtqueues of the device.
    pub queues: u16,
    /// Seed of every random draw.
    pub seed: u64,
    /// Where the layout is read from.
    pub storage: Arc<dyn Storage>,
    /// Where every event is written, from the first on; `None`: no log.
    pub log: Option<Log>,
    /// Whether a shadow looks for what must not be on the disk, and how.
    pub shadow: Option<pipeline::shadow::Options>,
}

/// Shared by all queue threads of one device.
pub struct Engine {
    clock: Clock,
    next_id: AtomicU64,
    view: View,
    inboxes: Vec<Arc<Inbox>>,
    state: Mutex<State>,
    sinks: Sinks,
    storage: Arc<dyn Storage>,
    alarm: Alarm,
    lead: Arc<Lead>,
    mailbox: OnceLock<Arc<Mailbox>>,
    /// Started last, dropped with the engine. It holds the engine weakly.
    timer: OnceLock<Timer>,
}

impl Engine {
    /// An engine without rules. With a log its events begin now.
    ///
    /// # Errors
    /// When the system gives no eventfd, timerfd or thread.
    pub fn new(options: EngineOptions) -> io::Result<Arc<Engine>> {
        let clock = Clock::start();
        let lead = Arc::new(Lead::new(LEAD_MAX_NS));
        let inboxes = (0..options.queues)
            .map(|_| Inbox::new(clock, Arc::clone(&lead)).map(Arc::new))
            .collect::<io::Result<Vec<_>>>()?;
        let logging = options.log.is_some();
        let alarm = Alarm::new(clock)?;
        let engine = Arc::new(Engine {
            clock,
            next_id: AtomicU64::new(0),
            view: View::nothing(),
            inboxes,
            state: Mutex::new(State::new(options.seed, options.shadow.map(Shadow::new))),
            sinks: Sinks::start(options.log)?,
            storage: options.storage,
            alarm: alarm.clone(),
            lead,
            mailbox: OnceLock::new(),
            timer: OnceLock::new(),
        });
        let weak = Arc::downgrade(&engine);
        let timer = alarm.start(move || {
            if let Some(engine) = weak.upgrade() {
                engine.tick();
            }
        })?;
        // The cell is empty: the engine was made above.
        let _ = engine.timer.set(timer);
        if logging {
            engine.begin_log();
        } else if options.shadow.is_some() {
            engine.begin_shadow();
        }
        Ok(engine)
    }

    /// Where signals for the agent in the guest go; the first one given stays.
    pub fn attach_agent(&self, mailbox: Arc<Mailbox>) {
        let _ = self.mailbox.set(mailbox);
    }

    /// A number for a request that is about to be handed over, never given twice.
    pub fn next_id(&self) -> RequestId {
        RequestId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// How much the engine wants to know of such a request. Takes no lock.
    #[inline]
    pub fn interest(&self, op: Op, sector: u64, sectors: u64) -> Interest {
        self.view.look_once(op, sector, sectors).interest
    }

    /// The same, and what the request touches, as far as that was looked at. Takes no lock. `seen`
    /// is the calling thread's, and is used again and again.
    #[inline]
    pub fn look(&self, seen: &mut Seen, op: Op, sector: u64, sectors: u64) -> Look {
        self.view.look(seen, op, sector, sectors)
    }

    /// Why a page of persistent memory must not stay in the host's page cache. Takes no lock.
    #[inline]
    pub fn watch(&self, sector: u64, sectors: u64) -> Watch {
        self.view.watch(sector, sectors)
    }

    /// The same for many pages, by one state of rules and layout.
    pub fn watcher(&self) -> Watcher {
        self.view.watcher()
    }

    /// How often rules or layout have changed: other pages may be watched since.
    pub fn view_version(&self) -> u64 {
        self.view.version()
    }

    /// A request was taken from a queue. `bytes` is the data of a write for which
    /// [`Engine::interest`] said [`Interest::EventWithBytes`].
    pub fn arrive(&self, request: &ArrivingRequest, bytes: Option<&[u8]>) -> Disposition {
        let mut guard = self.state();
        let now = guard.now(self.clock);
        let state = &mut *guard;
        if let Some(bytes) = bytes {
            self.write_arrived(state, now, request.sector, bytes);
        }
        state.spans.clear();
        if let Some(map) = &state.map
            && state.filter.wants(request.op) == Want::Classes
        {
            let spans = &mut state.spans;
            map.classify(request.sector, request.sectors, &mut |span| {
                spans.push(span);
            });
        }
        let input = Input::Arrive(Request {
            id: request.id,
            queue: request.queue,
            head: request.head,
            op: request.op,
            sector: request.sector,
            sectors: request.sectors,
            spans: &state.spans,
        });
        if let (Some(bytes), true) = (bytes, self.records(state)) {
            let what = || bytes_event(Some(request.id), request.sector * SECTOR_BYTES, bytes);
            state.core.note_with(now, what, &mut state.outbox);
        }
        state.core.step(now, input, &mut state.outbox);
        shadow::arrive(state, now, request, bytes);
        let own = Some((request.id, request.queue));
        let (disposition, _) = self.carry_out(guard, own);
        disposition
    }

    /// A request that was handed over ended, and is about to be completed to the guest: call it
    /// *before* the used ring is written, so that what the guest does next sees the new layout.
    /// `bytes` are those given to [`Engine::arrive`].
    pub fn complete(
        &self,
        id: RequestId,
        outcome: Outcome,
        op: Op,
        sector: u64,
        sectors: u64,
        bytes: Option<&[u8]>,
    ) {
        let mut guard = self.state();
        let now = guard.now(self.clock);
        let state = &mut *guard;
        let old = state.shadow.as_ref().and_then(|_| state.map.clone());
        if outcome == Outcome::Ok {
            match op {
                Op::Write | Op::Store => {
                    if let Some(bytes) = bytes {
                        self.write_done(state, now, sector, bytes);
                    }
                }
                Op::Discard | Op::WriteZeroes => self.zeroed(state, now, sector, sectors),
                Op::Read | Op::Flush | Op::Fault => {}
            }
        }
        let submitted = state
            .released
            .remove(&id)
            .and_then(|queue| self.inboxes.get(usize::from(queue))?.handed_over(id));
        let input = Input::Complete { id, outcome, submitted };
        state.core.step(now, input, &mut state.outbox);
        shadow::complete(state, now, id, outcome, old.as_deref());
        self.carry_out(guard, None);
    }

    /// Where releases of parked requests of that queue arrive; `None` past the last queue.
    pub fn inbox(&self, queue: u16) -> Option<Arc<Inbox>> {
        self.inboxes.get(usize::from(queue)).cloned()
    }

    /// The front-end went away or reset the device: every parked request is released through
    /// its inbox.
    pub fn disconnect(&self) {
        let mut guard = self.state();
        // What was let go for an earlier front-end and never completed never will.
        guard.released.clear();
        for inbox in &self.inboxes {
            inbox.forget();
        }
        let now = guard.now(self.clock);
        let state = &mut *guard;
        state.core.step(now, Input::Disconnect, &mut state.outbox);
        if let Some(shadow) = &mut state.shadow {
            shadow.disconnect();
        }
        self.carry_out(guard, None);
    }

    /// Something is due now, or so soon that it is let go ahead of its time.
    fn tick(&self) {
        let mut guard = self.state();
        let state = &mut *guard;
        let mut now = state.now(self.clock);
        if let Some(due) = state.core.next_due()
            && due <= now.plus(LEAD_MAX_NS)
        {
            now = state.not_before(due);
        }
        state.core.step(now, Input::Tick, &mut state.outbox);
        // The alarm may have gone off for a time that the core has taken back since: it has to
        // be set for the next one even if the core thinks that it is.
        if let Some(due) = state.core.next_due() {
            self.set_alarm(due);
        }
        self.carry_out(guard, None);
    }

    /// Has [`Engine::tick`] called in time for what is due then; called under the lock.
    fn set_alarm(&self, due: Nanos) {
        self.alarm.set(Nanos(due.0.saturating_sub(self.lead.get_ns())));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One step of the core; gives how many parked requests it let go.
    fn input(&self, input: Input<'_>) -> u64 {
        let mut guard = self.state();
        let now = guard.now(self.clock);
        let state = &mut *guard;
        state.core.step(now, input, &mut state.outbox);
        self.carry_out(guard, None).1
    }
}

#[cfg(test)]
mod tests;
