//! A worker: what one queue's thread does.
//!
//! In: heads from the virtqueue, results from storage, releases from the engine. Out: operations
//! for storage, used elements for the driver. No request is lost, none ends twice, none waits
//! for another.
//! Must not know: vhost-user messages, what a rule is.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use pipeline::{Op, RequestId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use smallvec::SmallVec;
use thiserror::Error;
use tracing::warn;
use vm_memory::GuestAddressSpace;

use crate::completion::{InFlight, Part, Slab, Token, Traced, outcome_of};
use crate::counters::{Begun, Done};
use crate::engine::{ArrivingRequest, Disposition, Inbox, Interest, Look, Release, Seen};
use crate::inflight::{BadArea, Tracker};
use crate::queue::{BadHead, Heads, Ring, RingFault, Used, Vring};
use crate::request::{BrokenChain, Range, Refused, Request, Verb};
use crate::segments::{AlignedBuf, Segments, Snapshot};
use crate::storage::{Channel, Io, IoResult, SECTOR_BYTES, StorageError, Submitted};

mod around;
mod batch;
mod calls;
mod poll;
mod resume;

pub(crate) use around::{Negotiated, Surroundings};
use batch::{AHEAD, BATCH};
use calls::Calls;
use poll::Poller;
pub use poll::Polling;

/// Looks at the ring between two looks at the clock.
const LOOKS: u32 = 8;

/// Why a worker wakes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The driver made chains available, or the queue was enabled.
    Kick,
    /// Storage finished something.
    Completion,
    /// The engine released something.
    Inbox,
}

/// Why a queue is broken.
#[derive(Debug, Error)]
enum QueueFault {
    #[error("cannot access the ring")]
    Ring(#[from] RingFault),
    #[error("chain {head} cannot be answered")]
    Chain { head: u16, source: BrokenChain },
    #[error(transparent)]
    Head(#[from] BadHead),
    #[error("the in-flight area says what cannot be")]
    Area(#[from] BadArea),
}

/// What one queue's thread owns.
pub(crate) struct Worker {
    queue: u16,
    around: Surroundings,
    channel: Box<dyn Channel>,
    inbox: Option<Arc<Inbox>>,
    /// The ring, once there was an event for it.
    ring: Option<Ring>,
    /// The ring was started, and not stopped since.
    begun: bool,
    /// Where the heads in flight are kept beyond our own death.
    tracker: Option<Tracker>,
    poller: Poller,
    memory: Snapshot,
    seen: Seen,
    requests: Slab<InFlight>,
    parts: Slab<Part>,
    parked: HashMap<RequestId, (Part, Io)>,
    busy: Heads,
    broken: bool,
    /// When the batch that is being served was taken, for the counters.
    taken_ns: u64,
    calls: Calls,
    // Reused from batch to batch.
    heads: Vec<u16>,
    understood: Vec<(u16, Result<Request, Refused>)>,
    used: Vec<Used>,
    done: Vec<Done>,
    ended: Vec<(u64, IoResult)>,
    released: Vec<(RequestId, Release)>,
}

impl Worker {
    pub(crate) fn new(
        queue: u16,
        queue_size: u16,
        around: Surroundings,
    ) -> Result<Worker, StorageError> {
        let mut channel = around.storage.channel()?;
        let inbox = around.engine.as_ref().and_then(|engine| engine.inbox(queue));
        let memory = Snapshot::new(around.memory.memory().into_inner());
        channel.follow_memory(&memory);
        let poller = Poller::new(around.polling);
        Ok(Worker {
            queue,
            around,
            channel,
            inbox,
            ring: None,
            begun: false,
            tracker: None,
            poller,
            memory,
            seen: Seen::default(),
            requests: Slab::new(),
            parts: Slab::new(),
            parked: HashMap::new(),
            busy: Heads::new(queue_size),
            broken: false,
            taken_ns: 0,
            calls: Calls::default(),
            heads: Vec::with_capacity(BATCH),
            understood: Vec::with_capacity(AHEAD),
            used: Vec::with_capacity(BATCH),
            done: Vec::with_capacity(BATCH),
            ended: Vec::with_capacity(BATCH),
            released: Vec::new(),
        })
    }

    pub(crate) fn channel(&self) -> &dyn Channel {
        &*self.channel
    }

    pub(crate) fn inbox(&self) -> Option<&Inbox> {
        self.inbox.as_deref()
    }

    /// Something happened: does all there is to do.
    pub(crate) fn run(&mut self, vring: &Vring, wake: Wake) {
        if self.ring.is_none() {
            self.ring = Some(Ring::new(vring.clone()));
        }
        match wake {
            Wake::Kick => self.poller.woken(Instant::now()),
            Wake::Completion => self.reap(|channel, done| channel.reap(done)),
            Wake::Inbox => self.take_releases(),
        }
        self.settle();
        if !self.broken
            && let Err(fault) = self.begin().and_then(|()| self.drain(wake))
        {
            self.break_queue(&fault);
        }
        self.call_driver();
    }

    /// Serves the ring until the driver has nothing more, and is known to kick when it has.
    fn drain(&mut self, wake: Wake) -> Result<(), QueueFault> {
        loop {
            self.follow_memory();
            let Some(ring) = &mut self.ring else { return Ok(()) };
            ring.unwant_kick(&self.memory)?;
            while self.serve_batch()? {
                self.call_driver_in_time(0);
            }
            self.call_driver();
            let may_look = wake == Wake::Kick || self.poller.never_sleeps();
            if may_look && self.poll() {
                continue;
            }
            let Some(ring) = &mut self.ring else { return Ok(()) };
            if !ring.want_kick(&self.memory)? {
                self.seen.forget();
                self.poller.sleeps(Instant::now());
                return Ok(());
            }
        }
    }

    /// Looks at the ring for a while, if that is worth it and there is nothing else to wait for.
    /// True if there is something in it. Only for requests that are served at once: where they wait
    /// for a disk the worker has to sleep anyway, and a driver that is called from a processor about
    /// to be idle wakes sooner than one on another that is idle already.
    fn poll(&mut self) -> bool {
        let window = self.poller.window();
        let Some(ring) = self.ring.as_ref().filter(|_| !window.is_zero()) else { return false };
        if self.parts.len() > 0 || !self.parked.is_empty() {
            return false;
        }
        let until = Instant::now() + window;
        let mut found = ring.has_more();
        while !found && ring.is_current() && Instant::now() < until {
            for _ in 0..LOOKS {
                std::hint::spin_loop();
                found |= ring.has_more();
            }
        }
        self.poller.looked(found);
        if !found && self.poller.never_sleeps() {
            ring.wake_self();
        }
        found
    }

    /// Moves on what storage has finished and the engine has released, and tells the driver.
    /// Costs no system call when nothing is parked and nothing pending.
    fn settle(&mut self) {
        if !self.parked.is_empty() {
            self.take_releases();
        }
        self.channel.flush_submissions();
        if self.parts.len() > 0 {
            self.reap(|channel, done| channel.reap_what_is_there(done));
        }
        self.publish();
        if let Some(counters) = self.around.counters.queue(self.queue) {
            counters.hold(self.requests.len(), self.parked.len());
        }
    }

    /// Rings and new requests follow the newest memory map; those in flight keep theirs.
    fn follow_memory(&mut self) {
        let now = self.around.memory.memory();
        if !self.memory.is_of(&now) {
            self.memory = Snapshot::new(now.into_inner());
            self.channel.follow_memory(&self.memory);
        }
    }

    fn used_up(&mut self, used: Used) {
        self.busy.release(used.head);
        self.used.push(used);
    }

    /// All parts of a request have ended.
    fn finish(&mut self, in_flight: InFlight) {
        let (used, done) = in_flight.complete();
        self.calls.ended(done.begun.bytes);
        self.done.push(done);
        self.used_up(used);
    }

    /// Turns a request into operations.
    fn start(&mut self, head: u16, request: Request) {
        let Request { verb, status } = request;
        let (op, bytes) = verb.moves();
        let begun = Begun { op, kinds: 0, bytes, at_ns: self.taken_ns };
        let failed = None;
        let in_flight =
            |written, parts_left| InFlight { head, status, written, parts_left, failed, begun };
        match verb {
            Verb::GetId { to } => {
                let len = to.len().min(self.around.serial.len() as u64) as u32;
                to.write(0, &self.around.serial[..len as usize]);
                self.finish(in_flight(len, 0));
            }
            Verb::Read { to: data, .. } | Verb::Write { from: data, .. } if data.is_empty() => {
                self.finish(in_flight(0, 0));
            }
            Verb::Read { sector, to } => {
                let sectors = to.len() / SECTOR_BYTES;
                let in_flight = in_flight(to.len() as u32, 1);
                let io = Io::Read { offset: sector * SECTOR_BYTES, to };
                self.start_transfer(in_flight, Op::Read, sector, sectors, io);
            }
            Verb::Write { sector, from } => {
                let sectors = from.len() / SECTOR_BYTES;
                let durable = self.around.negotiated.write_through();
                let io = Io::Write { offset: sector * SECTOR_BYTES, from, durable };
                self.start_transfer(in_flight(0, 1), Op::Write, sector, sectors, io);
            }
            Verb::Flush => {
                let look = self.look(Op::Flush, 0, 0);
                let owner = self.requests.insert(in_flight(0, 1));
                self.launch(owner, look.interest, (Op::Flush, 0, 0), Io::Flush);
            }
            Verb::Discard(ranges) => self.start_ranges(in_flight(0, 0), Op::Discard, ranges),
            Verb::WriteZeroes(ranges) => {
                self.start_ranges(in_flight(0, 0), Op::WriteZeroes, ranges);
            }
        }
    }

    /// A read or write; one that nobody wants to know of and that storage can do on the spot is
    /// over without ever being in a table.
    fn start_transfer(
        &mut self,
        mut in_flight: InFlight,
        op: Op,
        sector: u64,
        sectors: u64,
        mut io: Io,
    ) {
        let Look { interest, kinds } = self.look(op, sector, sectors);
        in_flight.begun.kinds = kinds;
        if interest == Interest::None
            && let Some(result) = self.channel.at_once(&mut io)
        {
            in_flight.part_ended(result);
            self.finish(in_flight);
            return;
        }
        let owner = self.requests.insert(in_flight);
        self.launch(owner, interest, (op, sector, sectors), io);
    }

    fn look(&mut self, op: Op, sector: u64, sectors: u64) -> Look {
        match &self.around.engine {
            Some(engine) => engine.look(&mut self.seen, op, sector, sectors),
            None => Look::NOTHING,
        }
    }

    /// Each range is an operation of its own, for storage and for the engine.
    fn start_ranges(&mut self, in_flight: InFlight, op: Op, mut ranges: SmallVec<[Range; 1]>) {
        ranges.retain(|range| range.sectors > 0);
        if ranges.is_empty() {
            self.finish(in_flight);
            return;
        }
        let parts_left = ranges.len() as u32;
        let owner = self.requests.insert(InFlight { parts_left, ..in_flight });
        let durable = self.around.negotiated.write_through();
        for Range { sector, sectors, unmap } in ranges {
            let sectors = u64::from(sectors);
            let (offset, len) = (sector * SECTOR_BYTES, sectors * SECTOR_BYTES);
            let io = if op == Op::Discard {
                Io::Discard { offset, len }
            } else {
                Io::WriteZeroes { offset, len, unmap, durable }
            };
            let Look { interest, kinds } = self.look(op, sector, sectors);
            if let Some(request) = self.requests.get_mut(owner) {
                request.begun.kinds |= kinds;
            }
            self.launch(owner, interest, (op, sector, sectors), io);
        }
    }

    /// Hands an operation to storage, past the engine if it wants to know.
    fn launch(
        &mut self,
        owner: Token,
        interest: Interest,
        (op, sector, sectors): (Op, u64, u64),
        io: Io,
    ) {
        let Some(engine) = self.around.engine.as_ref().filter(|_| interest != Interest::None)
        else {
            return self.submit(Part { owner, traced: None }, io);
        };
        let (io, bytes) = match (interest, io) {
            (Interest::EventWithBytes, Io::Write { offset, from, durable }) => {
                let bytes = from.to_private();
                let from = Segments::private(bytes.clone());
                (Io::Write { offset, from, durable }, Some(bytes))
            }
            (_, io) => (io, None),
        };
        let id = engine.next_id();
        let head = self.requests.get_mut(owner).map_or(0, |request| request.head);
        let arriving = ArrivingRequest { id, queue: self.queue, head, op, sector, sectors };
        let disposition = engine.arrive(&arriving, bytes.as_deref().map(AlignedBuf::as_slice));
        let part = Part { owner, traced: Some(Traced { id, op, sector, sectors, bytes }) };
        match disposition {
            Disposition::Submit => self.submit(part, io),
            Disposition::Park => {
                self.parked.insert(id, (part, io));
            }
            Disposition::Fail { errno } => self.end(part, Err(Errno::from_raw_os_error(errno))),
        }
    }

    fn submit(&mut self, part: Part, io: Io) {
        let token = self.parts.insert(part);
        if let Submitted::Done(result) = self.channel.submit(token.0, io)
            && let Some(part) = self.parts.remove(token)
        {
            self.end(part, result);
        }
    }

    /// An operation ended; the last one of a request completes it.
    fn end(&mut self, part: Part, result: IoResult) {
        let Part { owner, traced } = part;
        if let (Some(traced), Some(engine)) = (&traced, &self.around.engine) {
            let bytes = traced.bytes.as_deref().map(AlignedBuf::as_slice);
            let outcome = outcome_of(result);
            engine.complete(traced.id, outcome, traced.op, traced.sector, traced.sectors, bytes);
        }
        if let Some(request) = self.requests.get_mut(owner)
            && request.part_ended(result)
            && let Some(request) = self.requests.remove(owner)
        {
            self.finish(request);
        }
    }

    fn take_releases(&mut self) {
        let Some(inbox) = &self.inbox else { return };
        let mut released = std::mem::take(&mut self.released);
        inbox.drain(&mut released);
        for (id, release) in released.drain(..) {
            // An id that is not parked belongs to an earlier connection.
            let Some((part, io)) = self.parked.remove(&id) else {
                continue;
            };
            match release {
                Release::Submit => self.submit(part, io),
                Release::Fail { errno } => self.end(part, Err(Errno::from_raw_os_error(errno))),
            }
        }
        self.released = released;
    }

    fn reap(&mut self, how: impl FnOnce(&mut dyn Channel, &mut dyn FnMut(u64, IoResult))) {
        let mut ended = std::mem::take(&mut self.ended);
        how(&mut *self.channel, &mut |token, result| ended.push((token, result)));
        for (token, result) in ended.drain(..) {
            if let Some(part) = self.parts.remove(Token(token)) {
                self.end(part, result);
            }
        }
        self.ended = ended;
    }

    fn publish(&mut self) {
        if self.used.is_empty() {
            return;
        }
        self.follow_memory();
        let log = if self.around.negotiated.logging() { self.mark_chains() } else { None };
        if let Some(ring) = &mut self.ring
            && let Err(fault) = ring.publish(&self.memory, &self.used, self.tracker.as_ref())
        {
            self.break_queue(&fault.into());
        }
        if let (Some(log), Some(ring)) = (log, &self.ring) {
            let (addr, bytes) = ring.used_ring();
            log.mark(addr, bytes);
        }
        self.used.clear();
        if let Some(counters) = self.around.counters.queue(self.queue) {
            counters.record(&mut self.done);
        }
    }

    /// This queue is of no use until it is set up anew; everything else goes on.
    fn break_queue(&mut self, fault: &QueueFault) {
        if !self.broken {
            let cause = std::error::Error::source(fault).map(ToString::to_string);
            warn!(queue = self.queue, %fault, cause, "queue stopped: the driver broke it");
            self.broken = true;
            if let Some(ring) = &self.ring {
                ring.signal_error();
            }
        }
    }

    /// Waits until nothing is in flight. The ring gives no more heads (it was stopped, or the
    /// connection is gone).
    pub(crate) fn quiesce(&mut self) {
        if let Some(engine) = &self.around.engine
            && !self.parked.is_empty()
        {
            engine.disconnect();
        }
        self.channel.hurry();
        loop {
            self.settle();
            self.call_driver();
            if self.requests.len() == 0 {
                break;
            }
            self.wait();
            self.reap(|channel, done| channel.reap(done));
        }
        self.busy.clear();
        self.broken = false;
        self.begun = false;
        if let (Some(tracker), Some(ring)) = (self.tracker.take(), &self.ring) {
            tracker.begin(ring.next_used());
        }
    }

    /// Waits for storage or the engine, at most a second: what comes without an eventfd is then
    /// looked for.
    fn wait(&self) {
        let fds = [self.channel.completion_fd(), self.inbox.as_deref().map(AsFd::as_fd)];
        let mut fds: SmallVec<[PollFd<'_>; 2]> = fds
            .into_iter()
            .flatten()
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        // An error (a signal) leads to another look, as a timeout does.
        let _ = poll(&mut fds, Some(&second));
    }
}

impl Drop for Worker {
    /// Nothing is left behind, whatever ended the connection.
    fn drop(&mut self) {
        self.quiesce();
    }
}
