//! Where events go: the log file, which loses nothing, and subscribers, who are told what they
//! lost.
//!
//! In: events, in order. Out: lines of JSON, in the same order.
//! Must not know: what the events mean, how a subscriber is reached.
//!
//! [`Sinks::push`] is called under the engine's lock and only moves the events into a queue; one
//! thread makes lines of them. A queue thread waits for that thread ([`Sinks::throttle`],
//! outside the lock) only when a log is written and the disk under it is slower than the guest;
//! the first time is logged, every time is counted. Without a log the events are dropped and
//! counted instead.

mod subscription;

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use pipeline::event::Event;

use crate::sandbox::{self, Role};
use subscription::Batch;
pub use subscription::Subscription;

/// Events that may wait to be turned into lines: some tens of megabytes.
const BACKLOG: usize = 1 << 16;

/// Where the lines of the log go.
pub type Log = Box<dyn Write + Send>;

/// The queue of events and the thread behind it; dropping it writes out what is queued.
pub struct Sinks {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    has_log: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// There is something to do for the thread.
    filled: Condvar,
    /// The thread has taken the queue.
    taken: Condvar,
    subscriptions: Mutex<Vec<Arc<Subscription>>>,
    /// Times that a queue thread waited for the log.
    stalls: AtomicU64,
}

#[derive(Default)]
struct Queue {
    events: Vec<Event>,
    /// Dropped because nobody with a right to all of them was there, and the queue was full.
    lost: u64,
    stop: bool,
    /// The thread has events in hand.
    busy: bool,
    /// The log cannot be written any more: nothing waits for it.
    log_failed: bool,
}

impl Sinks {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(log: Option<Log>) -> io::Result<Sinks> {
        let shared = Arc::new(Shared::default());
        let has_log = log.is_some();
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("rg-events".into()).spawn(move || {
            sandbox::narrow(Role::Events);
            of_thread.run(log);
        })?;
        Ok(Sinks { shared, thread: Some(thread), has_log })
    }

    /// Whether there is a log.
    pub fn has_log(&self) -> bool {
        self.has_log
    }

    /// Whether somebody is there to read events.
    pub fn wanted(&self) -> bool {
        self.has_log || !self.shared.subscriptions().is_empty()
    }

    /// Queues events and leaves `events` empty. Never waits for a disk or a subscriber.
    pub fn push(&self, events: &mut Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let mut queue = self.shared.queue();
        if !self.has_log && queue.events.len() >= BACKLOG {
            queue.lost += events.len() as u64;
            events.clear();
            return;
        }
        let was_empty = queue.events.is_empty();
        queue.events.append(events);
        drop(queue);
        if was_empty {
            self.shared.filled.notify_one();
        }
    }

    /// Waits while the log is too far behind. To be called without any lock.
    pub fn throttle(&self) {
        if !self.has_log {
            return;
        }
        let mut queue = self.shared.queue();
        if queue.events.len() < BACKLOG {
            return;
        }
        if self.shared.stalls.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!("the event log is slower than the guest: requests wait for it");
        }
        while queue.events.len() >= BACKLOG && !queue.log_failed && !queue.stop {
            queue = self.shared.taken.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until everything pushed so far was written and offered to the subscribers.
    pub fn settle(&self) {
        let mut queue = self.shared.queue();
        while !queue.events.is_empty() || queue.busy {
            queue = self.shared.taken.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How often a queue thread had to wait for the log.
    pub fn stalls(&self) -> u64 {
        self.shared.stalls.load(Ordering::Relaxed)
    }

    /// A new subscriber, who gets `header` and every event after it, as long as it reads.
    ///
    /// # Errors
    /// When the system gives no eventfd.
    pub fn subscribe(&self, header: &Event) -> io::Result<Arc<Subscription>> {
        let subscription = Arc::new(Subscription::new(header)?);
        self.shared.subscriptions().push(Arc::clone(&subscription));
        Ok(subscription)
    }

    /// The subscriber is gone.
    pub fn unsubscribe(&self, subscription: &Arc<Subscription>) {
        self.shared.subscriptions().retain(|other| !Arc::ptr_eq(other, subscription));
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscriptions(&self) -> MutexGuard<'_, Vec<Arc<Subscription>>> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut log: Option<Log>) {
        let (mut events, mut lines, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            let mut queue = self.queue();
            queue.busy = false;
            self.taken.notify_all();
            while queue.events.is_empty() && queue.lost == 0 && !queue.stop {
                queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::swap(&mut queue.events, &mut events);
            let lost = std::mem::take(&mut queue.lost);
            let stop = queue.stop && events.is_empty();
            queue.busy = !stop;
            drop(queue);
            self.taken.notify_all();
            if stop {
                return;
            }
            to_lines(&mut events, &mut lines, &mut ends);
            if let Some(file) = &mut log
                && let Err(error) = file.write_all(&lines).and_then(|()| file.flush())
            {
                tracing::error!(%error, "cannot write the event log: it ends here");
                log = None;
                self.queue().log_failed = true;
                self.taken.notify_all();
            }
            for subscription in self.subscriptions().iter() {
                subscription.offer(&Batch { events: &events, lines: &lines, ends: &ends, lost });
            }
            events.clear();
        }
    }
}

/// One line of JSON for each event; `ends` are the offsets behind each newline.
fn to_lines(events: &mut Vec<Event>, lines: &mut Vec<u8>, ends: &mut Vec<usize>) {
    lines.clear();
    ends.clear();
    events.retain(|event| {
        let begin = lines.len();
        let written = serde_json::to_writer(&mut *lines, event);
        match written {
            Ok(()) => {
                lines.push(b'\n');
                ends.push(lines.len());
            }
            Err(error) => {
                // No event holds a map with keys that are no strings, the one thing JSON lacks.
                tracing::error!(%error, seq = event.seq, "an event has no JSON form");
                lines.truncate(begin);
            }
        }
        lines.len() > begin
    });
}

impl Drop for Sinks {
    fn drop(&mut self) {
        self.shared.queue().stop = true;
        self.shared.filled.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the event thread panicked");
        }
    }
}
