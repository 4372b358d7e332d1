//! The page server: persistent memory whose every page fault and write-back is a request.
//!
//! In: what the kernel asks of a FUSE file that a VMM has mapped; an engine, a storage. Out: pages,
//! when the engine lets them go.
//! Must not know: ext4, what the rules mean, which VMM.
//!
//! # How touches are seen
//!
//! The first touch of a page that is not in the host's page cache is a READ of 4096 bytes
//! (`max_read`, no readahead): [`Op::Fault`](pipeline::Op::Fault). From then on the page is cached
//! and nobody hears of touches. So a page that a rule may want, armed or not, is thrown out of the
//! cache (`FUSE_NOTIFY_INVAL_INODE`) some milliseconds after it was read, and never while it is
//! being read, which would make the reader read twice.
//!
//! QEMU asks for huge pages (`MADV_HUGEPAGE`), and then a touch reads 2 MiB around itself,
//! whatever readahead says (`do_sync_mmap_readahead`). Such a READ looks like any other. So the
//! first READ of a page that a rule may want is answered with EIO. That costs whoever reads around
//! nothing, and whoever touches the page only one more READ: a fault retries once
//! (`filemap_fault` returns VM_FAULT_RETRY after it let go of its lock to read), and a READ of a
//! page that is in the cache but not up to date is one that somebody waits for. `pages` keeps
//! count.
//!
//! # How stores are seen
//!
//! Not at all, until the page is written back: [`Op::Store`](pipeline::Op::Store), a WRITE. The
//! kernel does that after 30 s, at fsync (virtio-pmem's flush, not a guest's sync on an NVDIMM), or
//! when a page is thrown out. Pages from which the layout follows, and those of which a rule wants
//! the stores, are thrown out like those that are armed: the engine's map therefore follows the
//! guest by some milliseconds, in the order of write-backs, which is that of page numbers, not of
//! the guest's stores. When rules are loaded, and when an operator asks for the layout, what is
//! still cached is brought in first. A rule's label is thus what the guest had stored some
//! milliseconds before the touch; a guest that changes metadata and touches the block at once is
//! labelled by what was there before.
//!
//! # What waits for what
//!
//! Threads of the session read requests and answer those that need not wait. A request that is
//! parked is answered by the thread that listens to the engine's inbox, with a page that was read
//! ahead; what may take long (flushes, parked stores) is given to a thread of its own. Throwing
//! pages out waits for their write-back, so a thread does only that; a rule that holds stores
//! holds it up too, and nothing else. This process never opens its own file: it would wait for
//! itself.
//!
//! A VMM that is killed while its page is held ends when the page is let go: the kernel waits for
//! the answer to a request that a server has read (`request_wait_answer`).

mod files;
mod mount;
mod pages;
mod rearm;
mod requests;
mod supervisor;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use thiserror::Error;
use tracing::warn;

pub use mount::{FILE_NAME, Mount, MountError, MountOptions};

use crate::control::Front;
use crate::engine::Engine;
use crate::stop::Stop;
use crate::storage::{SECTOR_BYTES, Storage, StorageError};
use files::Files;
use rearm::Rearm;
use requests::Requests;

pub use files::Attributes;

/// Bytes of a page, the unit of faults.
pub const PAGE_BYTES: u64 = 4096;

/// What the fronts ask of the size: QEMU's NVDIMM and cloud-hypervisor's `--pmem` take multiples of
/// 2 MiB.
pub const FRONT_BYTES: u64 = 2 << 20;

/// Queues of the engine that a page server uses.
pub const QUEUES: u16 = 1;

/// Sectors of a page.
const PAGE_SECTORS: u64 = PAGE_BYTES / SECTOR_BYTES;

/// Threads that read requests: one may wait for storage while others go on.
const THREADS: usize = 4;

/// How long the end waits for the guest's last stores to be written back.
const LAST_STORES: Duration = Duration::from_secs(5);

/// Why pages cannot be served, or not any longer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PmemError {
    /// Not whole pages.
    #[error(
        "the size of the image, {bytes} bytes, is not a multiple of {PAGE_BYTES}; persistent \
         memory in QEMU and cloud-hypervisor needs a multiple of 2 MiB: enlarge the image \
         (truncate -s {})",
        bytes.next_multiple_of(FRONT_BYTES)
    )]
    Size {
        /// Size of the image.
        bytes: u64,
    },
    /// The connection is in use.
    #[error("this mount is served already")]
    Served,
    /// The kernel and we do not agree on the protocol.
    #[error("the kernel's FUSE does not answer")]
    Handshake(#[source] io::Error),
    /// Threads or eventfds could not be had.
    #[error("cannot set up the page server")]
    Setup(#[source] io::Error),
    /// Somebody else took the mount away.
    #[error("the mount is gone: it was unmounted from outside")]
    Unmounted,
    /// Waiting for the end failed.
    #[error("cannot wait for the end")]
    Wait(#[source] Errno),
    /// The storage could not be flushed at the end.
    #[error("cannot flush the storage")]
    Sync(#[source] Errno),
}

/// Checks that an image can be persistent memory.
///
/// # Errors
/// It has no whole pages.
pub fn check_size(bytes: u64) -> Result<(), PmemError> {
    if bytes.is_multiple_of(PAGE_BYTES) { Ok(()) } else { Err(PmemError::Size { bytes }) }
}

/// A running page server. It ends, and its mount with it, when this is dropped.
pub struct PageServer {
    mount: Mount,
    requests: Arc<Requests>,
    rearm: Rearm,
    /// Set when the session has ended.
    ended: Arc<Stop>,
    /// They answer what was parked.
    workers: Vec<JoinHandle<()>>,
    session: Option<JoinHandle<()>>,
}

impl PageServer {
    /// Serves `storage` on `mount`. Faults, write-backs and flushes go past `engine`, as its
    /// queue 0.
    ///
    /// # Errors
    /// The image has no whole pages, or the system does not give what is needed.
    pub fn start(
        mut mount: Mount,
        attributes: Attributes,
        storage: Arc<dyn Storage>,
        engine: Arc<Engine>,
    ) -> Result<PageServer, PmemError> {
        let bytes = storage.capacity_sectors() * SECTOR_BYTES;
        check_size(bytes)?;
        let fuse = mount.take_fuse().ok_or(PmemError::Served)?;
        let rearm = Rearm::new(Arc::clone(&engine), bytes / PAGE_BYTES);
        let requests = Requests::new(storage, engine, rearm.handle()).map_err(PmemError::Setup)?;
        let files = Files::new(attributes, bytes, Arc::clone(&requests));
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        // The kernel has checked who asks; the requests of writeback have no user.
        config.acl = SessionACL::All;
        let session =
            Session::from_fd(files, fuse, SessionACL::All, config).map_err(PmemError::Handshake)?;

        let ended = Arc::new(Stop::new().map_err(PmemError::Setup)?);
        let mut server =
            PageServer { mount, requests, rearm, ended, workers: Vec::new(), session: None };
        server.start_threads(session).map_err(PmemError::Setup)?;
        Ok(server)
    }

    fn start_threads(&mut self, session: Session<Files>) -> io::Result<()> {
        self.rearm.start(session.notifier())?;
        let requests = Arc::clone(&self.requests);
        self.workers.push(spawn("rg-release", move || requests.release_parked())?);
        let requests = Arc::clone(&self.requests);
        self.workers.push(spawn("rg-slow", move || requests.do_slow_work())?);
        let ended = Arc::clone(&self.ended);
        let run = move || {
            if let Err(error) = session.run() {
                warn!(%error, "the page server's session broke");
            }
            ended.set();
        };
        self.session = Some(spawn("rg-pages", run)?);
        Ok(())
    }

    /// The mount.
    pub fn mount(&self) -> &Mount {
        &self.mount
    }

    /// What commands do to the pages.
    pub fn front(&self) -> Arc<dyn Front> {
        Arc::new(PageFront { requests: Arc::clone(&self.requests), rearm: self.rearm.handle() })
    }

    /// Waits until `shutdown` is readable, brings in the guest's last stores and unmounts. Parked
    /// requests are released, the storage is flushed.
    ///
    /// # Errors
    /// The mount was taken away, or the storage cannot be flushed.
    pub fn serve(mut self, shutdown: BorrowedFd<'_>) -> Result<(), PmemError> {
        let mut fds = [
            PollFd::from_borrowed_fd(shutdown, PollFlags::IN),
            PollFd::from_borrowed_fd(self.ended.as_fd(), PollFlags::IN),
        ];
        let waited = loop {
            match poll(&mut fds, None) {
                Ok(_) => break Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => break Err(PmemError::Wait(errno)),
            }
        };
        let gone = fds[0].revents().is_empty() && !fds[1].revents().is_empty();
        self.end();
        let synced = self.requests.sync().map_err(PmemError::Sync);
        waited?;
        synced?;
        if gone { Err(PmemError::Unmounted) } else { Ok(()) }
    }

    fn end(&mut self) {
        // Not the pages that are let go now: whoever waits for one has yet to see it.
        let cached = self.rearm.handle().cached();
        self.requests.let_all_pass();
        if !self.ended.is_set()
            && let Err(error) = self.rearm.handle().write_back(cached, LAST_STORES)
        {
            warn!(%error, "the guest's last stores may be lost");
        }
        self.requests.stop();
        self.workers.drain(..).for_each(join);
        // Before the rearming thread, which may wait for an answer on the connection.
        self.mount.unmount();
        self.rearm.stop();
        self.session.take().into_iter().for_each(join);
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a thread of the page server panicked");
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        if self.session.is_some() || !self.workers.is_empty() {
            self.end();
        }
    }
}

/// What an operator does to the pages.
struct PageFront {
    requests: Arc<Requests>,
    rearm: rearm::Handle,
}

impl Front for PageFront {
    fn resize(&self, _bytes: u64) -> Result<(), StorageError> {
        Err(StorageError::Unsupported { what: "change its size: persistent memory is mapped" })
    }

    fn settle(&self) {
        if let Err(error) = self.rearm.settle() {
            warn!(%error, "what the guest stored last is not known yet");
        }
    }

    fn rearm(&self) -> Result<(), StorageError> {
        self.rearm.rearm_all()
    }

    fn rules_changed(&self) {
        if let Err(error) = self.rearm.rearm_all() {
            warn!(%error, "some pages are not armed yet");
        }
    }

    fn reset(&self, _engine: &Engine) -> Result<(), StorageError> {
        self.rearm.reset(&self.requests)
    }
}
