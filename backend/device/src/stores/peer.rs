//! A process that maps the watched file, or an operator.
//!
//! In: its connection. Out: what it says; its memory protected and let go.
//! Must not know: the log, the layout.

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use store_shim::uffd::Uffd;
use store_shim::wire::{DONE, MESSAGE_BYTES, Message};

use super::PAGE_BYTES;
use crate::front_end::receive_with_fds;

/// How long the rest of a message may take once its first byte is there.
const MESSAGE_LIMIT: Duration = Duration::from_secs(1);

/// A connection.
pub(super) struct Peer {
    pub(super) stream: UnixStream,
    /// What it has mapped, if it has said so.
    pub(super) mapping: Option<Mapping>,
}

impl Peer {
    pub(super) fn new(stream: UnixStream) -> Option<Peer> {
        stream.set_read_timeout(Some(MESSAGE_LIMIT)).ok()?;
        Some(Peer { stream, mapping: None })
    }

    /// Its next message with the userfaultfd that came along; `None` if it has ended or says what
    /// is no message.
    pub(super) fn receive(&self) -> Option<(Message, Option<OwnedFd>)> {
        let mut bytes = [0; MESSAGE_BYTES];
        let mut fds = receive_with_fds(self.stream.as_fd(), &mut bytes).ok()?;
        Some((Message::decode(&bytes)?, fds.pop()))
    }

    /// Tells it that its message has been acted upon.
    pub(super) fn done(&mut self) {
        // Whoever does not wait for the answer has ended, which is heard of next.
        let _ = self.stream.write_all(&[DONE]);
    }

    /// Its process id, if the system says it.
    pub(super) fn pid(&self) -> Option<i32> {
        Some(socket_peercred(&self.stream).ok()?.pid.as_raw_nonzero().get())
    }
}

/// Memory of another process that shows the file.
pub(super) struct Mapping {
    pub(super) uffd: Uffd,
    address: u64,
    bytes: u64,
    file_offset: u64,
    pid: Option<i32>,
    /// Name and virtual processor of the threads that have stored.
    threads: HashMap<u32, (Option<Arc<str>>, Option<u32>)>,
}

impl Mapping {
    pub(super) fn new(
        uffd: OwnedFd,
        address: u64,
        bytes: u64,
        file_offset: u64,
        pid: Option<i32>,
    ) -> Mapping {
        let uffd = Uffd::from(uffd);
        Mapping { uffd, address, bytes, file_offset, pid, threads: HashMap::new() }
    }

    /// Which byte of the file is at an address of the process.
    pub(super) fn offset_of(&self, address: u64) -> Option<u64> {
        let within = address.checked_sub(self.address).filter(|within| *within < self.bytes)?;
        self.file_offset.checked_add(within)
    }

    /// Protects every page.
    pub(super) fn protect(&self) -> rustix::io::Result<()> {
        or_gone(self.uffd.protect(self.address, self.bytes))
    }

    /// Lets the store to that address go, and all later ones to its page.
    pub(super) fn let_store(&self, address: u64) -> rustix::io::Result<()> {
        or_gone(self.uffd.let_store(address & !(PAGE_BYTES - 1), PAGE_BYTES))
    }

    /// Name of a thread, and which virtual processor it is.
    pub(super) fn thread(&mut self, tid: u32) -> (Option<Arc<str>>, Option<u32>) {
        let pid = self.pid;
        let known = self.threads.entry(tid).or_insert_with(|| {
            let name = pid.and_then(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm")).ok()
            });
            let name = name.as_deref().map(str::trim_end);
            (name.map(Arc::from), name.and_then(vcpu))
        });
        known.clone()
    }
}

/// A process that ends, or unmaps the memory, has no more stores to show.
fn or_gone(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::SRCH | Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// The virtual processor whose thread QEMU calls so (`-name debug-threads=on`): `CPU 1/TCG`,
/// `CPU 0/KVM`.
fn vcpu(name: &str) -> Option<u32> {
    name.strip_prefix("CPU ")?.split_once('/')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::vcpu;

    #[test]
    fn names_of_qemus_threads() {
        assert_eq!(vcpu("CPU 0/KVM"), Some(0));
        assert_eq!(vcpu("CPU 12/TCG"), Some(12));
        for other in ["qemu-system-x86", "worker", "CPU", "CPU 1", "CPU x/TCG"] {
            assert_eq!(vcpu(other), None, "{other}");
        }
    }
}
