//! Store visibility: the first store to each page of persistent memory, in order.
//!
//! In: a file on tmpfs, a process (QEMU) that maps it and was started with the library of
//! `store-shim`. Out: events: which byte was stored to, by which thread, what ext4 object it
//! belongs to; pages are protected again at every flush of the guest, after an interval, or when
//! the operator says so.
//! Must not know: how QEMU is started, where events go.
//!
//! What the log says: a store is entered when it has hit the protection, and is made after that;
//! the next one to hit it comes later in the log. Two stores of two threads that were under way at
//! once may become visible in the other order. Later stores to a page are not seen until it is
//! protected again, and a store by a process that maps the file without the library never is.
//!
//! One thread reads; whoever stores waits for it. Loads are free.

mod classes;
mod peer;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pipeline::event::{Protection, RulesText, SCHEMA};
use pipeline::{Event, Nanos, What};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstatfs;
use rustix::io::Errno;
use store_shim::wire::{Message, Step, Target, VARIABLE};
use thiserror::Error;

use crate::clock::Clock;
use crate::socket::{self, SocketError, SocketFile};
use classes::Classes;
use peer::{Mapping, Peer};

/// Bytes of a page, the unit of protection.
pub const PAGE_BYTES: u64 = 4096;

/// Why stores cannot be seen.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoresError {
    /// The file cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its pages cannot be protected.
    #[error("{} is not on tmpfs, where alone stores can be seen; copy it to /dev/shm and give QEMU \
             that path", path.display())]
    NotOnTmpfs {
        /// The file.
        path: PathBuf,
    },
    /// No socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No process with the library maps the file.
    #[error(
        "nobody has mapped the file after {limit:?}: the program is linked statically or has \
             privileges of its own (LD_PRELOAD is ignored), or it does not map this file shared"
    )]
    NeverMapped {
        /// How long it was waited for.
        limit: Duration,
    },
    /// The process that maps the file may not have a userfaultfd.
    #[error("the program that maps the file was refused a userfaultfd; {}", mend(*step, *source))]
    Refused {
        /// What was refused.
        step: Step,
        /// Why.
        source: Errno,
    },
    /// A call failed that has no business to.
    #[error("cannot {what}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// Why.
        source: Errno,
    },
}

fn mend(step: Step, errno: Errno) -> &'static str {
    match (step, errno) {
        (Step::Open, Errno::NOSYS) => "its kernel is built without CONFIG_USERFAULTFD",
        (Step::Open, _) => {
            "sysctl vm.unprivileged_userfaultfd=1 or access to /dev/userfaultfd permits it, and \
             no seccomp filter (QEMU's -sandbox) may be in the way"
        }
        (Step::Features, _) => "seeing stores to tmpfs takes Linux 5.19 or later",
        (Step::Register, _) => "the memory must be a mapping of the file on tmpfs",
    }
}

fn failed(what: &'static str) -> impl Fn(Errno) -> StoresError {
    move |source| StoresError::System { what, source }
}

/// When pages are protected again of themselves, and how long to wait for a mapping.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Between two protections.
    pub every: Option<Duration>,
    /// Until the file is mapped for the first time.
    pub mapped_within: Option<Duration>,
}

/// What was seen in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Mappings of the file.
    pub mappings: u64,
    /// First stores.
    pub stores: u64,
}

/// A file whose mappings will be watched: the socket is there, nobody has called yet.
#[derive(Debug)]
pub struct Watch {
    target: Target,
    file: File,
    listener: UnixListener,
    _socket: SocketFile,
}

impl Watch {
    /// Prepares to watch `file`, and listens at `socket` for processes that map it.
    pub fn new(file: &Path, socket: &Path) -> Result<Watch, StoresError> {
        let cannot = |source| StoresError::Open { path: file.to_owned(), source };
        let opened = File::open(file).map_err(cannot)?;
        let metadata = opened.metadata().map_err(cannot)?;
        let of = fstatfs(&opened).map_err(|errno| cannot(errno.into()))?;
        if !metadata.is_file() || of.f_type != libc::TMPFS_MAGIC {
            return Err(StoresError::NotOnTmpfs { path: file.to_owned() });
        }
        let (listener, socket_file) = socket::listen_at(socket)?;
        let socket = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
        let target = Target { device: metadata.dev(), inode: metadata.ino(), socket };
        Ok(Watch { target, file: opened, listener, _socket: socket_file })
    }

    /// The environment that the process which maps the file must be started with, when `shim` is
    /// the path of the library.
    pub fn environment(&self, shim: &Path) -> [(&'static str, OsString); 2] {
        [("LD_PRELOAD", shim.into()), (VARIABLE, self.target.to_variable())]
    }

    /// Gives every event to `log`, until `stop` is readable or every process that mapped the file
    /// has ended.
    pub fn run(
        self,
        times: Times,
        stop: BorrowedFd<'_>,
        log: &mut dyn FnMut(Event),
    ) -> Result<Seen, StoresError> {
        let clock = Clock::start();
        let mut reader = Reader {
            clock,
            seq: 0,
            log,
            classes: Classes::new(&self.file),
            peers: Vec::new(),
            stored: HashSet::new(),
            seen: Seen::default(),
        };
        let header =
            What::Log { schema: SCHEMA, seed: 0, from_start: true, rules: RulesText::default() };
        (reader.log)(Event { seq: 0, at: Nanos(0), what: header });
        reader.read_layout();
        reader.serve(&self.listener, times, stop)?;
        Ok(reader.seen)
    }
}

/// Has all pages protected again by the reader that listens at `socket`.
pub fn protect(socket: &Path) -> io::Result<()> {
    store_shim::preload::ask(&UnixStream::connect(socket)?, Message::Protect, None)
}

struct Reader<'a> {
    clock: Clock,
    seq: u64,
    log: &'a mut dyn FnMut(Event),
    classes: Classes<'a>,
    peers: Vec<Peer>,
    /// Pages stored to since they were protected last.
    stored: HashSet<u64>,
    seen: Seen,
}

impl Reader<'_> {
    fn serve(
        &mut self,
        listener: &UnixListener,
        times: Times,
        stop: BorrowedFd<'_>,
    ) -> Result<(), StoresError> {
        let in_ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let every_ns = times.every.map(in_ns);
        let mut protect_at = None;
        loop {
            let now = self.clock.now().0;
            let mapped_by = times.mapped_within.filter(|_| self.seen.mappings == 0).map(in_ns);
            if let Some(limit) =
                times.mapped_within.filter(|_| mapped_by.is_some_and(|at| at <= now))
            {
                return Err(StoresError::NeverMapped { limit });
            }
            if protect_at.is_some_and(|at| at <= now) {
                self.protect(Protection::Interval)?;
                protect_at = None;
            }
            if self.seen.mappings > 0 && protect_at.is_none() {
                protect_at = every_ns.map(|every| now.saturating_add(every));
            }
            let due = [mapped_by, protect_at].into_iter().flatten().min();
            let Some(ready) = self.wait(listener, stop, due.map(|at| at.saturating_sub(now)))?
            else {
                return Ok(());
            };
            // Stores first: a flush that was asked for meanwhile is not about them, but it may
            // cover them.
            self.stores()?;
            for index in ready.speaking.into_iter().rev() {
                self.hear(index)?;
            }
            if ready.calling {
                self.accept(listener)?;
            }
            if self.seen.mappings > 0 && self.peers.iter().all(|peer| peer.mapping.is_none()) {
                return Ok(());
            }
        }
    }

    /// Waits for something to do, at most that long; `None` to stop.
    fn wait(
        &self,
        listener: &UnixListener,
        stop: BorrowedFd<'_>,
        limit_ns: Option<u64>,
    ) -> Result<Option<Ready>, StoresError> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
            PollFd::new(listener, PollFlags::IN),
        ];
        let fixed = fds.len();
        fds.extend(self.peers.iter().map(|peer| PollFd::new(&peer.stream, PollFlags::IN)));
        let mappings = self.peers.iter().filter_map(|peer| peer.mapping.as_ref());
        fds.extend(
            mappings.map(|mapping| PollFd::from_borrowed_fd(mapping.uffd.as_fd(), PollFlags::IN)),
        );
        let limit = limit_ns.map(|ns| Timespec {
            tv_sec: (ns / 1_000_000_000).cast_signed(),
            tv_nsec: (ns % 1_000_000_000).cast_signed(),
        });
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed("wait for stores")(errno)),
        }
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        if ready(&fds[0]) {
            return Ok(None);
        }
        let peers = fds[fixed..fixed + self.peers.len()].iter().enumerate();
        let speaking = peers.filter(|(_, fd)| ready(fd)).map(|(index, _)| index).collect();
        Ok(Some(Ready { calling: ready(&fds[1]), speaking }))
    }

    /// Enters the stores that wait, and lets each go.
    fn stores(&mut self) -> Result<(), StoresError> {
        let mut faults = Vec::new();
        for index in 0..self.peers.len() {
            let Some(mapping) = &self.peers[index].mapping else {
                continue;
            };
            mapping.uffd.read(|fault| faults.push(fault)).map_err(failed("read stores"))?;
            for fault in faults.drain(..) {
                self.store(index, fault)?;
            }
        }
        Ok(())
    }

    fn store(&mut self, index: usize, fault: store_shim::uffd::Fault) -> Result<(), StoresError> {
        let Some(mapping) = &mut self.peers[index].mapping else {
            return Ok(());
        };
        if let Some(offset) = mapping.offset_of(fault.address)
            && self.stored.insert(offset / PAGE_BYTES)
        {
            let (name, vcpu) = mapping.thread(fault.tid);
            let touches = self.classes.of(offset);
            self.seen.stores += 1;
            self.note(What::FirstStore { offset, thread: fault.tid, name, vcpu, touches });
        }
        match &self.peers[index].mapping {
            Some(mapping) => mapping.let_store(fault.address).map_err(failed("let a store go")),
            None => Ok(()),
        }
    }

    /// Takes in what a peer says, or its end.
    fn hear(&mut self, index: usize) -> Result<(), StoresError> {
        match self.peers[index].receive() {
            Some((Message::Mapped { address, bytes, file_offset, user_mode_only }, Some(uffd))) => {
                if user_mode_only {
                    tracing::warn!(
                        "only stores in user mode can be seen, and a guest on KVM fails at its \
                         first one: sysctl vm.unprivileged_userfaultfd=1 or access to \
                         /dev/userfaultfd lets all be seen"
                    );
                }
                let pid = self.peers[index].pid();
                self.peers[index].mapping =
                    Some(Mapping::new(uffd, address, bytes, file_offset, pid));
                self.seen.mappings += 1;
                self.protect(Protection::Mapped)?;
            }
            Some((Message::Refused { step, errno }, _)) => {
                self.peers[index].done();
                let source = Errno::from_raw_os_error(errno);
                return Err(StoresError::Refused { step, source });
            }
            Some((Message::Flush, _)) => self.protect(Protection::Flush)?,
            Some((Message::Protect, _)) => self.protect(Protection::Control)?,
            // Its end, or nonsense.
            Some((Message::Mapped { .. }, None)) | None => {
                self.peers.swap_remove(index);
                return Ok(());
            }
        }
        self.peers[index].done();
        Ok(())
    }

    fn accept(&mut self, listener: &UnixListener) -> Result<(), StoresError> {
        match listener.accept() {
            Ok((stream, _)) => self.peers.extend(Peer::new(stream)),
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                return Err(failed("accept a process that maps the file")(errno));
            }
        }
        Ok(())
    }

    /// Makes the next store to every page a first one.
    fn protect(&mut self, cause: Protection) -> Result<(), StoresError> {
        for peer in &self.peers {
            if let Some(mapping) = &peer.mapping {
                mapping.protect().map_err(failed("protect the pages"))?;
            }
        }
        let stores = self.stored.len() as u64;
        self.stored.clear();
        self.note(What::Protected { cause, stores });
        if self.classes.stale() {
            self.read_layout();
        }
        Ok(())
    }

    fn read_layout(&mut self) {
        let (change, detail) = self.classes.read();
        self.note(What::Layout { change, detail, device_bytes: None });
    }

    fn note(&mut self, what: What) {
        self.seq += 1;
        (self.log)(Event { seq: self.seq, at: self.clock.now(), what });
    }
}

/// Who has something to say.
struct Ready {
    calling: bool,
    /// Indices of peers, ascending.
    speaking: Vec<usize>,
}
