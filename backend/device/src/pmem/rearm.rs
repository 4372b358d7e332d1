//! Throws pages out of the host's page cache, so that they are slow again and their stores seen.
//!
//! In: pages that were read, commands. Out: invalidations (`FUSE_NOTIFY_INVAL_INODE`).
//! Must not know: rules, storage.
//!
//! One thread: an invalidation waits for the write-back of dirty pages, which other threads of
//! this process carry out.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::Notifier;
use pipeline::Nanos;

use super::files::FILE;
use super::pages::Pages;
use super::requests::Requests;
use super::{PAGE_BYTES, PAGE_SECTORS};
use crate::clock::Clock;
use crate::engine::{Engine, Watch};
use crate::storage::StorageError;

/// How long a page that matters stays cached after it was read: long enough for the reader to
/// copy it, a moment for everybody else.
const SOON_NS: u64 = 10_000_000;

/// Least time between two looks at all pages because the layout has changed.
const LOOK_NS: u64 = 50_000_000;

/// How long a command waits for its pages.
const COMMAND: Duration = Duration::from_secs(2);

/// The thread.
pub(super) struct Rearm {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// How others reach it.
#[derive(Clone)]
pub(super) struct Handle(Arc<Shared>);

struct Shared {
    engine: Arc<Engine>,
    pages: Pages,
    clock: Clock,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Pages to be thrown out, and when; in that order, as all wait equally long.
    pages: VecDeque<(Nanos, u64)>,
    /// When to look at all pages again.
    look: Option<Nanos>,
    last_look: Nanos,
    orders: VecDeque<Order>,
    stop: bool,
}

/// What a command wants thrown out.
enum Which {
    /// These.
    These(Vec<u64>),
    /// What is watched.
    Watched,
    /// What the layout may follow from.
    Layout,
    /// Whatever is cached, after a reset of the storage.
    Reset(Arc<Requests>),
}

struct Order {
    which: Which,
    done: SyncSender<Result<(), StorageError>>,
}

enum Work {
    Pages(Vec<u64>),
    Look,
    Order(Order),
    Stop,
}

impl Rearm {
    /// Nothing is thrown out before [`Rearm::start`].
    pub(super) fn new(engine: Arc<Engine>, pages: u64) -> Rearm {
        let shared = Shared {
            engine,
            pages: Pages::new(pages),
            clock: Clock::start(),
            queue: Mutex::default(),
            changed: Condvar::new(),
        };
        Rearm { shared: Arc::new(shared), thread: None }
    }

    pub(super) fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    pub(super) fn start(&mut self, notifier: Notifier) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let run = move || shared.run(&notifier);
        self.thread = Some(std::thread::Builder::new().name("rg-rearm".into()).spawn(run)?);
        Ok(())
    }

    /// Ends the thread; what it waits for must be able to end.
    pub(super) fn stop(&mut self) {
        self.shared.queue().stop = true;
        self.shared.changed.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the rearming thread panicked");
        }
    }
}

impl Handle {
    pub(super) fn pages(&self) -> &Pages {
        &self.0.pages
    }

    pub(super) fn now(&self) -> Nanos {
        self.0.clock.now()
    }

    /// A page that is watched is about to be cached.
    pub(super) fn soon(&self, page: u64) {
        if self.0.pages.enqueue(page) {
            let mut queue = self.0.queue();
            let first = queue.pages.is_empty();
            queue.pages.push_back((self.now().plus(SOON_NS), page));
            drop(queue);
            if first {
                self.0.changed.notify_one();
            }
        }
    }

    /// Pages are cached because somebody has written to them with write(2).
    pub(super) fn pages_written(&self, offset: u64, len: u64) {
        for page in offset / PAGE_BYTES..(offset + len).div_ceil(PAGE_BYTES) {
            self.0.pages.answer(page, true);
            if self.0.is_watched(page) {
                self.soon(page);
            }
        }
    }

    /// Other pages may be watched now.
    pub(super) fn look_again(&self) {
        let mut queue = self.0.queue();
        if queue.look.is_none() {
            queue.look = Some(queue.last_look.plus(LOOK_NS).max(self.now()));
            drop(queue);
            self.0.changed.notify_one();
        }
    }

    /// Makes all pages that are watched slow again.
    pub(super) fn rearm_all(&self) -> Result<(), StorageError> {
        self.order(Which::Watched, COMMAND)
    }

    /// Brings in the stores from which the layout follows.
    pub(super) fn settle(&self) -> Result<(), StorageError> {
        self.order(Which::Layout, COMMAND)
    }

    /// The pages that are cached now.
    pub(super) fn cached(&self) -> Vec<u64> {
        self.0.cached(|_| true)
    }

    /// Brings in the stores to these pages.
    pub(super) fn write_back(&self, pages: Vec<u64>, limit: Duration) -> Result<(), StorageError> {
        self.order(Which::These(pages), limit)
    }

    /// Resets the storage, and the cache with it.
    pub(super) fn reset(&self, requests: &Arc<Requests>) -> Result<(), StorageError> {
        self.order(Which::Reset(Arc::clone(requests)), COMMAND)
    }

    fn order(&self, which: Which, limit: Duration) -> Result<(), StorageError> {
        let (done, wait) = sync_channel(1);
        self.0.queue().orders.push_back(Order { which, done });
        self.0.changed.notify_one();
        wait.recv_timeout(limit).unwrap_or(Err(StorageError::Busy))
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, notifier: &Notifier) {
        loop {
            match self.next() {
                Work::Stop => return,
                Work::Pages(pages) => self.throw_out(notifier, pages),
                Work::Look => self.throw_out(notifier, self.cached(|page| self.is_watched(page))),
                Work::Order(Order { which, done }) => {
                    let result = self.obey(notifier, which);
                    // Whoever asked may have given up.
                    let _ = done.send(result);
                }
            }
        }
    }

    /// Waits for something to do.
    fn next(&self) -> Work {
        let mut queue = self.queue();
        loop {
            if queue.stop {
                return Work::Stop;
            }
            if let Some(order) = queue.orders.pop_front() {
                return Work::Order(order);
            }
            let now = self.clock.now();
            let due = queue.pages.iter().take_while(|(at, _)| *at <= now).count();
            if due > 0 {
                return Work::Pages(queue.pages.drain(..due).map(|(_, page)| page).collect());
            }
            if queue.look.is_some_and(|at| at <= now) {
                queue.look = None;
                queue.last_look = now;
                return Work::Look;
            }
            let next = queue.pages.front().map(|(at, _)| *at).into_iter().chain(queue.look).min();
            queue = match next {
                None => self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let wait = Duration::from_nanos(at.since(now));
                    let waited = self.changed.wait_timeout(queue, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn obey(&self, notifier: &Notifier, which: Which) -> Result<(), StorageError> {
        let pages = match which {
            Which::These(pages) => pages,
            // Without a layout it is not known what matters to it.
            Which::Layout if !self.engine.watcher().has_layout() => self.cached(|_| true),
            Which::Watched | Which::Layout => self.cached(|page| self.is_watched(page)),
            Which::Reset(requests) => {
                requests.close_era()?;
                self.throw_out(notifier, self.cached(|_| true));
                requests.open_era();
                return Ok(());
            }
        };
        self.throw_out(notifier, pages);
        Ok(())
    }

    fn is_watched(&self, page: u64) -> bool {
        self.engine.watch(page * PAGE_SECTORS, PAGE_SECTORS) != Watch::Nothing
    }

    /// The cached pages that `wanted` says yes to.
    fn cached(&self, wanted: impl Fn(u64) -> bool) -> Vec<u64> {
        (0..self.pages.count())
            .filter(|page| self.pages.is_cached(*page) && wanted(*page))
            .collect()
    }

    /// Throws pages out, adjacent ones at once.
    fn throw_out(&self, notifier: &Notifier, mut pages: Vec<u64>) {
        pages.sort_unstable();
        pages.retain(|page| self.pages.take(*page));
        for run in pages.chunk_by(|page, next| page + 1 == *next) {
            let (offset, len) = (run[0] * PAGE_BYTES, run.len() as u64 * PAGE_BYTES);
            let thrown = notifier.inval_inode(FILE, offset.cast_signed(), len.cast_signed());
            if let Err(error) = thrown {
                // The connection is gone; whoever serves it says so.
                tracing::debug!(%error, "pages stay cached");
            }
        }
    }
}
