//! What the engine's lock protects, and how the actions of a step are carried out.
//!
//! In: the outbox of a step. Out: releases in inboxes, signals to the agent, events in the sinks.
//! Must not know: why the core decided so.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard};

use ext4_layout::{Layout, LayoutMap, Span};
use pipeline::delalloc_shadow::Follower;
use pipeline::shadow::Shadow;
use pipeline::{Action, Core, Filter, Nanos, Outbox, RequestId};

use super::view::Snapshot;
use super::{Disposition, Engine, Release, shadow};
use crate::clock::Clock;

/// Core, layout and what belongs to them.
pub(super) struct State {
    pub(super) core: Core,
    /// Emptied after every step; kept for its memory.
    pub(super) outbox: Outbox,
    /// Classes of the request at hand; kept for its memory.
    pub(super) spans: Vec<Span>,
    /// The filter of `core`, as it was last published.
    pub(super) filter: Arc<Filter>,
    /// What the loaded rules can want, armed or not.
    pub(super) watch: Arc<Filter>,
    /// `None` while nobody needs it.
    pub(super) layout: Option<Layout>,
    /// The map of `layout`.
    pub(super) map: Option<Arc<LayoutMap>>,
    /// Somebody asked for the layout: it is kept from then on.
    pub(super) layout_asked: bool,
    /// Events are made, for a log or a subscriber.
    pub(super) logging: bool,
    /// A write said that the layout has to be read anew, and is not stored yet.
    pub(super) reopen_due: bool,
    /// Looks at what the guest does to the disk, if it is asked to.
    pub(super) shadow: Option<Shadow>,
    /// Follows what the guest's kernel keeps in memory, as far as an agent tells.
    pub(super) follower: Follower,
    /// Set while the disk has no ext4 that can be read.
    pub(super) no_ext4: Option<NoExt4>,
    /// The time of the last step, which no later one may precede: a step that lets go of
    /// something ahead of its time is made at that time.
    last: Nanos,
    /// Queue of every parked request.
    pub(super) parked: HashMap<RequestId, u16>,
    /// Queue of every request that was let go and has not completed.
    pub(super) released: HashMap<RequestId, u16>,
}

/// Why the disk has no layout.
pub(super) struct NoExt4 {
    /// In one line.
    pub(super) why: String,
    /// The operator, whose rules go by class, was warned.
    pub(super) reported: bool,
}

impl State {
    pub(super) fn new(seed: u64, shadow: Option<Shadow>) -> State {
        let core = Core::new(seed);
        let filter = core.filter();
        State {
            core,
            outbox: Outbox::default(),
            spans: Vec::new(),
            filter,
            watch: Arc::new(Filter::nothing()),
            layout: None,
            map: None,
            layout_asked: false,
            logging: false,
            reopen_due: false,
            shadow,
            follower: Follower::new(),
            no_ext4: None,
            last: Nanos(0),
            parked: HashMap::new(),
            released: HashMap::new(),
        }
    }

    /// The time of a step that is made now.
    pub(super) fn now(&mut self, clock: Clock) -> Nanos {
        self.not_before(clock.now())
    }

    /// The time of a step that is made for something due at `at`.
    pub(super) fn not_before(&mut self, at: Nanos) -> Nanos {
        self.last = self.last.max(at);
        self.last
    }

    /// Turns events on or off; the view has to be published anew.
    pub(super) fn set_logging(&mut self, on: bool) {
        self.logging = on;
        self.core.set_logging(on);
        self.filter = self.core.filter();
    }
}

/// The queues to be signalled, one bit each: a device has 16 at most.
#[derive(Default)]
struct Signals(u64);

impl Engine {
    /// Carries out what the last step left in the outbox, and gives up the lock. `own` is the
    /// request that is just arriving, with its queue. Gives its disposition, and how many parked
    /// requests were let go.
    pub(super) fn carry_out(
        &self,
        mut guard: MutexGuard<'_, State>,
        own: Option<(RequestId, u16)>,
    ) -> (Disposition, u64) {
        let state = &mut *guard;
        let mut outbox = std::mem::take(&mut state.outbox);
        // The core answers an arrival with exactly one of the three; if it ever did not, the
        // request must not be lost.
        let mut disposition = Disposition::Submit;
        let mut signals = Signals::default();
        let mut let_go = 0;
        for action in outbox.actions.drain(..) {
            match action {
                Action::Submit(id) if own.is_some_and(|own| own.0 == id) => {
                    disposition = Disposition::Submit;
                }
                Action::Fail { id, errno } if own.is_some_and(|own| own.0 == id) => {
                    disposition = Disposition::Fail { errno };
                }
                Action::Park(id) => {
                    if let Some((own_id, queue)) = own
                        && own_id == id
                    {
                        state.parked.insert(id, queue);
                        disposition = Disposition::Park;
                    }
                }
                Action::Submit(id) => {
                    let_go += u64::from(self.let_go(state, id, Release::Submit, &mut signals));
                }
                Action::Fail { id, errno } => {
                    let release = Release::Fail { errno };
                    let_go += u64::from(self.let_go(state, id, release, &mut signals));
                }
                Action::TellAgent { signal } => {
                    if let Some(mailbox) = self.mailbox.get() {
                        mailbox.signal(&signal);
                    }
                }
                Action::Rearm { due: Some(due) } => self.set_alarm(due),
                Action::Rearm { due: None } => {}
            }
        }
        if outbox.filter_changed {
            state.filter = state.core.filter();
            self.publish(state);
        }
        shadow::follow(state, &mut outbox);
        self.sinks.push(&mut outbox.events);
        outbox.clear();
        state.outbox = outbox;
        drop(guard);
        self.signal(&signals);
        self.sinks.throttle();
        (disposition, let_go)
    }

    /// Whether the request was parked here.
    fn let_go(
        &self,
        state: &mut State,
        id: RequestId,
        release: Release,
        signals: &mut Signals,
    ) -> bool {
        let Some(queue) = state.parked.remove(&id) else {
            return false;
        };
        state.released.insert(id, queue);
        if let Some(inbox) = self.inboxes.get(usize::from(queue))
            && inbox.push(id, release, state.last)
        {
            signals.0 |= 1_u64.checked_shl(u32::from(queue)).unwrap_or(u64::MAX);
        }
        true
    }

    fn signal(&self, signals: &Signals) {
        if signals.0 == 0 {
            return;
        }
        for (queue, inbox) in self.inboxes.iter().enumerate() {
            if signals.0 & 1_u64.checked_shl(queue as u32).unwrap_or(u64::MAX) != 0 {
                inbox.signal();
            }
        }
    }

    /// Makes the filter and the map of the state those that queue threads see.
    pub(super) fn publish(&self, state: &State) {
        self.view.publish(Snapshot {
            filter: Arc::clone(&state.filter),
            watch: Arc::clone(&state.watch),
            map: state.map.clone(),
            shadow: state.shadow.as_ref().map(Shadow::watch),
        });
    }
}
