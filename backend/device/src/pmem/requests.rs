//! What becomes of READs, WRITEs and FSYNCs of the file.
//!
//! In: those requests, and later the engine's releases. Out: one answer for each.
//! Must not know: names, attributes, how pages are thrown out.
//!
//! A request that the engine does not want goes to storage in the thread that read it. One that it
//! parks is kept here until its inbox names it; its thread goes on with others.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use fuser::{ReplyData, ReplyEmpty, ReplyWrite};
use pipeline::{Op, RequestId};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::rearm::Handle;
use super::{PAGE_BYTES, PAGE_SECTORS};
use crate::completion::outcome_of;
use crate::engine::{ArrivingRequest, Disposition, Engine, Inbox, Interest, Release, Watch};
use crate::stop::Stop;
use crate::storage::{IoResult, SECTOR_BYTES, Storage, StorageError};

/// All faults and write-backs are of this queue of the engine.
const QUEUE: u16 = 0;

/// The bytes of one page.
type PageBuf = [u8; PAGE_BYTES as usize];

/// Serves the file's bytes.
pub(super) struct Requests {
    storage: Arc<dyn Storage>,
    engine: Arc<Engine>,
    inbox: Arc<Inbox>,
    rearm: Handle,
    waiting: Mutex<Waiting>,
    slow: Sender<Slow>,
    slow_work: Mutex<Option<Receiver<Slow>>>,
    era: RwLock<Era>,
    /// The end is near: the engine is not asked any more.
    passing: AtomicBool,
    /// State of rules and layout for which pages were last looked at.
    seen_view: AtomicU64,
    stop: Stop,
}

/// Requests that the engine has parked.
#[derive(Default)]
struct Waiting {
    parked: HashMap<RequestId, Job>,
    /// Let go before their thread came to put them here.
    early: HashMap<RequestId, Release>,
}

/// The time between two resets of the storage.
#[derive(Default)]
struct Era {
    number: u64,
    /// A reset is being carried out: what the host's page cache still has is of the last era.
    closed: bool,
}

/// One request.
enum Job {
    Read(Read),
    Write(Write, Vec<u8>),
    Flush(ReplyEmpty),
}

struct Read {
    offset: u64,
    len: usize,
    /// Past the page cache (O_DIRECT).
    direct: bool,
    /// Read ahead, in that era.
    ahead: Option<(u64, Box<PageBuf>)>,
    reply: ReplyData,
}

struct Write {
    offset: u64,
    /// The engine looks at the bytes.
    seen: bool,
    era: u64,
    /// What the answer says was written.
    len: u32,
    reply: ReplyWrite,
}

/// What may take long, for a thread of its own.
enum Slow {
    Job(RequestId, Job),
    Stop,
}

impl Read {
    fn page(&self) -> u64 {
        self.offset / PAGE_BYTES
    }

    fn sectors(&self) -> (u64, u64) {
        sectors(self.offset, self.len as u64)
    }
}

/// The sectors that a range of bytes touches: the first, and how many.
fn sectors(offset: u64, len: u64) -> (u64, u64) {
    let first = offset / SECTOR_BYTES;
    (first, (offset + len).div_ceil(SECTOR_BYTES) - first)
}

fn fuse_errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

impl Requests {
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        engine: Arc<Engine>,
        rearm: Handle,
    ) -> io::Result<Arc<Requests>> {
        let inbox = engine.inbox(QUEUE).ok_or_else(|| io::Error::other("no queue"))?;
        let (slow, work) = channel();
        let seen_view = AtomicU64::new(engine.view_version());
        Ok(Arc::new(Requests {
            storage,
            engine,
            inbox,
            rearm,
            waiting: Mutex::default(),
            slow,
            slow_work: Mutex::new(Some(work)),
            era: RwLock::default(),
            passing: AtomicBool::new(false),
            seen_view,
            stop: Stop::new()?,
        }))
    }

    /// A READ, of one page at most.
    pub(super) fn read(&self, offset: u64, len: usize, direct: bool, reply: ReplyData) {
        let mut read = Read { offset, len, direct, ahead: None, reply };
        let (sector, sectors) = read.sectors();
        let passing = self.passing.load(Ordering::Acquire);
        let page = read.page();
        let pages = self.rearm.pages();
        if !direct {
            if passing || self.engine.watch(sector, sectors) != Watch::Touches {
                pages.read_plainly(page);
            } else if !pages.is_touch(page, self.rearm.now()) {
                return read.reply.error(fuser::Errno::EIO);
            }
        }
        if passing || self.engine.interest(Op::Fault, sector, sectors) == Interest::None {
            return self.finish_read(None, read);
        }
        if !direct {
            pages.park(page);
        }
        let (id, disposition) = self.arrive(Op::Fault, sector, sectors, None);
        match disposition {
            Disposition::Submit => self.finish_read(Some(id), read),
            Disposition::Fail { errno } => self.fail(id, Job::Read(read), errno),
            Disposition::Park => {
                let mut bytes = Box::new([0; PAGE_BYTES as usize]);
                let era = self.era_number();
                // If it cannot be read now it is read, and the failure reported, at its time.
                if self.storage.read_at(offset, &mut bytes[..len]).is_ok() {
                    read.ahead = Some((era, bytes));
                }
                self.park(id, Job::Read(read));
            }
        }
    }

    /// A WRITE: write-back of pages, or somebody's write(2).
    pub(super) fn write(&self, offset: u64, data: &[u8], write_back: bool, reply: ReplyWrite) {
        let (len, era) = (data.len() as u32, self.era_number());
        if self.read_era().closed {
            // Stored before the reset.
            return reply.written(len);
        }
        if !write_back {
            self.rearm.pages_written(offset, data.len() as u64);
        }
        let (sector, sectors) = sectors(offset, data.len() as u64);
        let interest = if self.passing.load(Ordering::Acquire) {
            Interest::None
        } else {
            self.engine.interest(Op::Store, sector, sectors)
        };
        if interest == Interest::None {
            return match self.store(offset, data, era) {
                Ok(_) => reply.written(len),
                Err(errno) => reply.error(fuse_errno(errno)),
            };
        }
        let (offset, data) = match self.whole_sectors(offset, data) {
            Ok(whole) => whole,
            Err(errno) => return reply.error(fuse_errno(errno)),
        };
        let seen = interest == Interest::EventWithBytes;
        let (id, disposition) = self.arrive(Op::Store, sector, sectors, seen.then_some(&*data));
        match disposition {
            Disposition::Submit => {
                let write = Write { offset, seen, era, len, reply };
                self.finish_write(id, write, &data);
            }
            Disposition::Fail { errno } => {
                let errno = Errno::from_raw_os_error(errno);
                self.stored(id, offset, &data, false, Err(errno));
                reply.error(fuse_errno(errno));
            }
            Disposition::Park => {
                let write = Write { offset, seen, era, len, reply };
                self.park(id, Job::Write(write, data.into_owned()));
            }
        }
    }

    /// An FSYNC. The kernel has written back every dirty page before, and sends one at a time
    /// (`fuse_fsync` holds the inode's lock).
    pub(super) fn fsync(&self, reply: ReplyEmpty) {
        if self.passing.load(Ordering::Acquire)
            || self.engine.interest(Op::Flush, 0, 0) == Interest::None
        {
            return answer(reply, self.storage.sync());
        }
        let (id, disposition) = self.arrive(Op::Flush, 0, 0, None);
        match disposition {
            Disposition::Submit => self.finish_flush(id, reply),
            Disposition::Fail { errno } => self.fail(id, Job::Flush(reply), errno),
            Disposition::Park => self.park(id, Job::Flush(reply)),
        }
    }

    /// Everything that was stored before would survive a power cut.
    pub(super) fn sync(&self) -> IoResult {
        self.storage.sync()
    }

    fn arrive(
        &self,
        op: Op,
        sector: u64,
        sectors: u64,
        bytes: Option<&[u8]>,
    ) -> (RequestId, Disposition) {
        let id = self.engine.next_id();
        let request = ArrivingRequest { id, queue: QUEUE, head: 0, op, sector, sectors };
        (id, self.engine.arrive(&request, bytes))
    }

    fn finish_read(&self, id: Option<RequestId>, read: Read) {
        let Read { offset, len, direct, ahead, reply } = read;
        let (sector, sectors) = sectors(offset, len as u64);
        let mut here: PageBuf;
        let (bytes, result) = match &ahead {
            Some((era, bytes)) if *era == self.era_number() => (&bytes[..len], Ok(())),
            _ => {
                here = [0; PAGE_BYTES as usize];
                let result = self.storage.read_at(offset, &mut here[..len]);
                (&here[..len], result)
            }
        };
        if let Some(id) = id {
            self.engine.complete(id, outcome_of(result), Op::Fault, sector, sectors, None);
        }
        let page = offset / PAGE_BYTES;
        if !direct {
            self.rearm.pages().answer(page, result.is_ok());
        }
        match result {
            Ok(()) => reply.data(bytes),
            Err(errno) => return reply.error(fuse_errno(errno)),
        }
        // After the answer, which need not wait for it. First cached, then asked for: whoever
        // changes the rules meanwhile sees one or the other.
        if !direct && self.engine.watch(page * PAGE_SECTORS, PAGE_SECTORS) != Watch::Nothing {
            self.rearm.soon(page);
        }
    }

    fn finish_flush(&self, id: RequestId, reply: ReplyEmpty) {
        let result = self.storage.sync();
        self.engine.complete(id, outcome_of(result), Op::Flush, 0, 0, None);
        answer(reply, result);
    }

    fn finish_write(&self, id: RequestId, write: Write, bytes: &[u8]) {
        let Write { offset, seen, era, len, reply } = write;
        let result = self.store(offset, bytes, era);
        let seen = seen && result == Ok(true);
        self.stored(id, offset, bytes, seen, result.map(|_| ()));
        match result {
            Ok(_) => reply.written(len),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    /// Stores bytes of an era; `false`: it is over, and they with it.
    fn store(&self, offset: u64, bytes: &[u8], era: u64) -> Result<bool, Errno> {
        let now = self.read_era();
        if now.closed || now.number != era {
            return Ok(false);
        }
        self.storage.write_at(offset, bytes).map(|()| true)
    }

    /// Tells the engine of a write that has ended, and looks at the pages again if the layout
    /// has followed it.
    fn stored(&self, id: RequestId, offset: u64, bytes: &[u8], seen: bool, result: IoResult) {
        let (sector, sectors) = sectors(offset, bytes.len() as u64);
        let bytes = seen.then_some(bytes);
        self.engine.complete(id, outcome_of(result), Op::Store, sector, sectors, bytes);
        let view = self.engine.view_version();
        if self.seen_view.swap(view, Ordering::AcqRel) != view {
            self.rearm.look_again();
        }
    }

    /// The same write in whole sectors: what a write(2) leaves out comes from storage.
    fn whole_sectors<'a>(
        &self,
        offset: u64,
        data: &'a [u8],
    ) -> Result<(u64, Cow<'a, [u8]>), Errno> {
        let (sector, sectors) = sectors(offset, data.len() as u64);
        let start = sector * SECTOR_BYTES;
        if start == offset && sectors * SECTOR_BYTES == data.len() as u64 {
            return Ok((offset, Cow::Borrowed(data)));
        }
        let mut whole = vec![0; (sectors * SECTOR_BYTES) as usize];
        self.storage.read_at(start, &mut whole)?;
        let skip = (offset - start) as usize;
        whole[skip..skip + data.len()].copy_from_slice(data);
        Ok((start, Cow::Owned(whole)))
    }

    fn park(&self, id: RequestId, job: Job) {
        let mut waiting = self.waiting();
        match waiting.early.remove(&id) {
            Some(release) => {
                drop(waiting);
                self.go_on(id, job, release);
            }
            None => {
                waiting.parked.insert(id, job);
            }
        }
    }

    /// Answers what the engine lets go, until [`Requests::stop`].
    pub(super) fn release_parked(&self) {
        let mut released = Vec::new();
        loop {
            let mut fds = [
                PollFd::new(&*self.inbox, PollFlags::IN),
                PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot wait for releases: held pages stay held");
                    return;
                }
            }
            let stop = !fds[1].revents().is_empty();
            self.inbox.drain(&mut released);
            for (id, release) in released.drain(..) {
                let mut waiting = self.waiting();
                if let Some(job) = waiting.parked.remove(&id) {
                    drop(waiting);
                    self.go_on(id, job, release);
                } else {
                    waiting.early.insert(id, release);
                }
            }
            if stop {
                return;
            }
        }
    }

    fn go_on(&self, id: RequestId, job: Job, release: Release) {
        match (release, job) {
            (Release::Submit, Job::Read(read)) => self.finish_read(Some(id), read),
            // Whoever waits for a page must not wait for a flush of the storage. After the end of
            // that thread the answer is the one that dropping gives.
            (Release::Submit, job) => drop(self.slow.send(Slow::Job(id, job))),
            (Release::Fail { errno }, job) => self.fail(id, job, errno),
        }
    }

    fn fail(&self, id: RequestId, job: Job, errno: i32) {
        let errno = Errno::from_raw_os_error(errno);
        let complete = |op, (sector, sectors): (u64, u64)| {
            self.engine.complete(id, outcome_of(Err(errno)), op, sector, sectors, None);
        };
        match job {
            Job::Read(read) => {
                complete(Op::Fault, read.sectors());
                if !read.direct {
                    self.rearm.pages().answer(read.page(), false);
                }
                read.reply.error(fuse_errno(errno));
            }
            Job::Write(write, bytes) => {
                complete(Op::Store, sectors(write.offset, bytes.len() as u64));
                write.reply.error(fuse_errno(errno));
            }
            Job::Flush(reply) => {
                complete(Op::Flush, (0, 0));
                reply.error(fuse_errno(errno));
            }
        }
    }

    /// Does what may take long, until [`Requests::stop`].
    pub(super) fn do_slow_work(&self) {
        let work = self.slow_work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(work) = work else { return };
        while let Ok(Slow::Job(id, job)) = work.recv() {
            match job {
                Job::Read(read) => self.finish_read(Some(id), read),
                Job::Flush(reply) => self.finish_flush(id, reply),
                Job::Write(write, bytes) => self.finish_write(id, write, &bytes),
            }
        }
    }

    /// From now on nothing is parked, and what is parked is let go.
    pub(super) fn let_all_pass(&self) {
        self.passing.store(true, Ordering::Release);
        self.engine.disconnect();
    }

    /// Ends the threads.
    pub(super) fn stop(&self) {
        // What was about to be parked when `let_all_pass` was called.
        self.engine.disconnect();
        self.stop.set();
        let _ = self.slow.send(Slow::Stop);
    }

    /// Puts the storage back to its state at the start. Until [`Requests::open_era`] all that is
    /// written back is of before that, and dropped.
    pub(super) fn close_era(&self) -> Result<(), StorageError> {
        let mut era = self.era.write().unwrap_or_else(PoisonError::into_inner);
        self.engine.reset()?;
        *era = Era { number: era.number + 1, closed: true };
        Ok(())
    }

    /// The host's page cache has nothing any more that was stored before the reset.
    pub(super) fn open_era(&self) {
        self.era.write().unwrap_or_else(PoisonError::into_inner).closed = false;
    }

    fn read_era(&self) -> std::sync::RwLockReadGuard<'_, Era> {
        self.era.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn era_number(&self) -> u64 {
        self.read_era().number
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer(reply: ReplyEmpty, result: IoResult) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(fuse_errno(errno)),
    }
}
