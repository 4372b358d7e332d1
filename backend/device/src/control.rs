//! The control server: operators and programs talk to a running backend over a Unix socket.
//!
//! In: connections, lines of [`pipeline::control`]. Out: answers, streams of events.
//! Must not know: what a command does (`commands`), how lines are cut (`client`).
//!
//! One thread serves every client without ever waiting for one: a client that does not read is
//! not read from, one that sends a line without end is dropped, and there is a limit to their
//! number. So no client can harm another, nor the guest.

mod client;
mod commands;

#[cfg(feature = "fuzzing")]
pub(crate) use client::Client as FuzzedClient;

pub use commands::{Front, Target};

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};

use crate::sandbox::{self, Role};
use crate::stop::Stop;
use client::Client;

/// Clients at once.
const CLIENTS_MAX: usize = 64;

/// A running control server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `target` to whoever connects to `listener`.
    ///
    /// # Errors
    /// When the system gives no thread or eventfd.
    pub fn start(listener: UnixListener, target: Target) -> io::Result<Server> {
        listener.set_nonblocking(true)?;
        let stop = Arc::new(Stop::new()?);
        let of_thread = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("rg-control".into()).spawn(move || {
            sandbox::narrow(Role::Control);
            run(&listener, &target, &of_thread);
        })?;
        Ok(Server { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.set();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the control thread panicked");
        }
    }
}

fn run(listener: &UnixListener, target: &Target, stop: &Stop) {
    let mut clients: Vec<Client> = Vec::new();
    // Off after accept failed for want of file descriptors, until a client leaves.
    let mut accepting = true;
    loop {
        let mut fds = Vec::with_capacity(2 + 2 * clients.len());
        fds.push(PollFd::new(stop, PollFlags::IN));
        let listening = if accepting { PollFlags::IN } else { PollFlags::empty() };
        fds.push(PollFd::new(listener, listening));
        for client in &clients {
            let (socket, subscription) = client.interest();
            fds.push(PollFd::from_borrowed_fd(client.as_fd(), socket));
            fds.push(PollFd::from_borrowed_fd(client.subscription_fd(), subscription));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "cannot wait for control clients: the control socket is dead");
                return;
            }
        }
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        if ready[0].contains(PollFlags::IN) {
            break;
        }
        let before = clients.len();
        let mut index = 0;
        clients.retain_mut(|client| {
            let stays = client.turn(ready[2 + 2 * index], target);
            index += 1;
            if !stays {
                client.leave(target);
            }
            stays
        });
        accepting |= clients.len() < before;
        if ready[1].contains(PollFlags::IN) {
            accepting = accept(listener, &mut clients);
        }
    }
    for client in &mut clients {
        client.last_words(target);
        client.leave(target);
    }
}

/// Takes in those who wait; `false`: accepting has to pause.
fn accept(listener: &UnixListener, clients: &mut Vec<Client>) -> bool {
    loop {
        match listener.accept() {
            Ok((socket, _)) => match Client::new(socket) {
                Ok(mut client) if clients.len() >= CLIENTS_MAX => client.refuse(CLIENTS_MAX),
                Ok(client) => clients.push(client),
                Err(error) => tracing::debug!(%error, "a control client left at once"),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                ) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control client");
                // With nobody here nobody will leave either: look again at once.
                return clients.is_empty();
            }
        }
    }
}
