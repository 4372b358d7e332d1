//! Front-ends: how they reach a device, one after the other, and one conversation with each.
//!
//! In: a socket, a back-end for the vhost-user library. Out: the library's calls to that
//! back-end, until the front-end hangs up or the program is to end.
//! Must not know: what kind of device it is.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use thiserror::Error;
use tracing::{debug, warn};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon};
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::blk::lock;
use crate::queue::{Memory, Vring};
use crate::sandbox::{self, Role};
use crate::storage::StorageError;

mod relay;

pub(crate) use relay::{Answer, Fate, Message, receive as receive_with_fds, send_config_change};

/// How front-ends reach the device.
#[derive(Debug)]
pub enum Transport {
    /// Front-ends connect to it, one after the other; the program that bound it unlinks it.
    Listener(UnixListener),
    /// One front-end is connected already; serving ends with it.
    Connected(UnixStream),
}

/// Why serving ended other than by shutdown.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Waiting for or accepting front-ends failed.
    #[error("cannot wait for front-ends on the socket")]
    Socket(#[source] io::Error),
    /// Threads, eventfds or rings for a front-end could not be had.
    #[error("cannot set up a connection")]
    Setup(#[source] io::Error),
    /// The storage gave no channel.
    #[error("cannot open a channel to the storage")]
    Channel(#[source] StorageError),
    /// The storage could not be flushed at the end.
    #[error("cannot flush the storage")]
    Sync(#[source] Errno),
}

/// Calls `serve` with each front-end that connects, until `shutdown` is readable; with a
/// connected one once.
pub(crate) fn each_front_end(
    transport: Transport,
    shutdown: BorrowedFd<'_>,
    serve: impl Fn(&UnixStream) -> Result<(), ServeError>,
) -> Result<(), ServeError> {
    let listener = match transport {
        Transport::Listener(listener) => listener,
        Transport::Connected(stream) => return serve(&stream),
    };
    listener.set_nonblocking(true).map_err(ServeError::Socket)?;
    while wait_for(listener.as_fd(), shutdown).map_err(ServeError::Socket)? {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).map_err(ServeError::Socket)?;
                serve(&stream)?;
            }
            // It went away again before we looked.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::Interrupted
                        | io::ErrorKind::ConnectionAborted
                ) => {}
            Err(e) => return Err(ServeError::Socket(e)),
        }
    }
    Ok(())
}

/// True when `fd` is readable, false when `shutdown` is.
fn wait_for(fd: BorrowedFd<'_>, shutdown: BorrowedFd<'_>) -> io::Result<bool> {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(fd, PollFlags::IN),
            PollFd::from_borrowed_fd(shutdown, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) if !fds[1].revents().is_empty() => return Ok(false),
            Ok(_) if !fds[0].revents().is_empty() => return Ok(true),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A back-end for the library, with what the library gives to it and never takes back.
pub(crate) trait BackEnd: VhostUserBackend<Bitmap = (), Vring = Vring> {
    /// Eventfds from [`ExitEvents::make`].
    fn exit_events(&self) -> &ExitEvents;

    /// The front-end opened a channel for messages from us.
    fn back_channel(&self, channel: UnixStream);

    /// Sees every message before the library does, and may keep it.
    ///
    /// # Errors
    /// The front-end says nonsense: the connection ends.
    fn intercept(&self, message: &Message<'_>, fds: &mut Vec<OwnedFd>) -> io::Result<Fate> {
        let _ = (message, fds);
        Ok(Fate::Pass)
    }

    /// Whether guest memory that is a file of a FUSE file system is to be left alone.
    fn spare_fuse(&self) -> bool {
        false
    }

    /// Descriptors that wake queue threads beyond their kicks.
    fn register_events<B: BackEnd + 'static>(
        &self,
        daemon: &VhostUserDaemon<Arc<B>>,
    ) -> io::Result<()> {
        let _ = daemon;
        Ok(())
    }
}

/// Speaks with one front-end until it hangs up or `shutdown` is readable; the queue threads have
/// ended on return.
pub(crate) fn converse<B: BackEnd + 'static>(
    back_end: &Arc<B>,
    memory: &Memory,
    front_end: &UnixStream,
    shutdown: BorrowedFd<'_>,
) -> Result<(), ServeError> {
    let setup = |e: vhost_user_backend::Error| ServeError::Setup(io::Error::other(e.to_string()));
    let mut daemon = VhostUserDaemon::new("vhost-user".into(), back_end.clone(), memory.clone())
        .map_err(setup)?;
    back_end.register_events(&daemon).map_err(ServeError::Setup)?;
    let (listener, library) = relay::private_listener().map_err(ServeError::Setup)?;
    daemon.start(&mut listener.into()).map_err(setup)?;
    let owed = relay::Owed::default();
    let over =
        eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| ServeError::Setup(errno.into()))?;

    let ended = thread::scope(|scope| {
        scope.spawn(|| {
            sandbox::narrow(Role::Relay);
            // An error means that there is no more to wait for.
            if !matches!(wait_for(over.as_fd(), shutdown), Ok(true)) {
                let _ = front_end.shutdown(Shutdown::Both);
            }
        });
        scope.spawn(|| {
            sandbox::narrow(Role::Relay);
            relay::forward(
                front_end,
                &library,
                &owed,
                back_end.spare_fuse(),
                |message, fds| back_end.intercept(message, fds),
                |channel| back_end.back_channel(channel),
            );
        });
        scope.spawn(|| {
            sandbox::narrow(Role::Relay);
            relay::backward(&library, front_end, &owed);
        });
        let ended = daemon.wait();
        let _ = front_end.shutdown(Shutdown::Both);
        let _ = library.shutdown(Shutdown::Both);
        let _ = rustix::io::write(&over, &1_u64.to_ne_bytes());
        ended
    });
    match ended {
        Ok(()) => {}
        // A front-end that says nonsense is its own problem: the next one may do better.
        Err(error) => debug!(%error, "vhost-user connection ended"),
    }
    // Ends and joins the queue threads.
    drop(daemon);
    back_end.exit_events().close();
    Ok(())
}

/// Eventfds that the library registers and forgets; closed when it is gone.
#[derive(Debug, Default)]
pub(crate) struct ExitEvents(Mutex<Vec<RawFd>>);

impl ExitEvents {
    /// What `VhostUserBackend::exit_event` gives to a queue thread.
    pub(crate) fn make(&self) -> Option<(EventConsumer, EventNotifier)> {
        match new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC) {
            Ok((consumer, notifier)) => {
                lock(&self.0).push(consumer.as_raw_fd());
                Some((consumer, notifier))
            }
            Err(error) => {
                warn!(%error, "no eventfd to end a queue thread with");
                None
            }
        }
    }

    fn close(&self) {
        for fd in lock(&self.0).drain(..) {
            // SAFETY: `make` gave this descriptor to the library, which takes it out of its owner
            // (into_raw_fd), adds it to an epoll set and never closes it; the library's objects
            // are gone.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}
