//! The relay: hands a front-end's messages to the vhost-user library, and listens in.
//!
//! In: the front-end's socket. Out: the same messages, with their descriptors, on a socket of
//! ours; the back-end channel, if the front-end opens one.
//! Must not know: what any other message means, except that some bring guest memory, which
//! [`decoy`] may replace.
//!
//! The library accepts connections itself, so it can take neither a socket that is connected
//! already (`--fd`) nor say no to one; and it has no way to send CONFIG_CHANGE_MSG. Both are
//! needed, and only the control path passes here.

mod decoy;

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Bytes of a message header: request, flags, size (vhost-user.rst, "Message specification").
const HEADER_BYTES: usize = 12;
/// Longest payload that the library takes.
const MAX_PAYLOAD: usize = 4096;
/// Most descriptors in one message (VHOST_MEMORY_BASELINE_NREGIONS, plus room).
const MAX_FDS: usize = 32;
/// VHOST_USER_SET_MEM_TABLE.
const SET_MEM_TABLE: u32 = 5;
/// VHOST_USER_ADD_MEM_REG.
const ADD_MEM_REG: u32 = 37;
/// VHOST_USER_SET_BACKEND_REQ_FD.
const SET_BACKEND_REQ_FD: u32 = 21;
/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const BACKEND_CONFIG_CHANGE: u32 = 2;
/// Protocol version in the flags of every message.
const VERSION: u32 = 1;

/// A listener for the library, and the socket that it will accept from it.
pub(super) fn private_listener() -> io::Result<(UnixListener, UnixStream)> {
    use std::hash::{BuildHasher, Hasher};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    // An abstract name needs no directory; it is random, and taken for one connection.
    let random = std::hash::RandomState::new().build_hasher().finish();
    let name = format!("racegate-{}-{random:016x}", std::process::id());
    let address = SocketAddr::from_abstract_name(name)?;
    let listener = UnixListener::bind_addr(&address)?;
    let stream = UnixStream::connect_addr(&address)?;
    Ok((listener, stream))
}

/// Passes messages from the front-end to the library until one of them hangs up.
/// `back_channel` gets the front-end's socket for messages from us, if there is one. With
/// `spare_fuse`, guest memory that is a file of a FUSE file system is replaced by a decoy.
pub(super) fn forward(
    front_end: &UnixStream,
    library: &UnixStream,
    spare_fuse: bool,
    back_channel: impl Fn(UnixStream),
) {
    let listen_in = |request: u32, fds: &mut [OwnedFd]| {
        match (request, &*fds) {
            (SET_BACKEND_REQ_FD, [fd]) => {
                if let Ok(fd) = fd.try_clone() {
                    back_channel(fd.into());
                }
            }
            (SET_MEM_TABLE | ADD_MEM_REG, _) if spare_fuse => decoy::replace(fds)?,
            _ => {}
        }
        Ok(())
    };
    // However it ends, it ends for both: a library without a front-end stops.
    let _ = pass_messages(front_end, library, listen_in);
    let _ = library.shutdown(Shutdown::Both);
}

/// Passes the library's answers to the front-end until one of them hangs up.
pub(super) fn backward(library: &UnixStream, front_end: &UnixStream) {
    let _ = pass_messages(library, front_end, |_, _| Ok(()));
    let _ = front_end.shutdown(Shutdown::Both);
}

/// Passes whole messages on: there are peers that expect one in a single read.
fn pass_messages(
    from: &UnixStream,
    to: &UnixStream,
    listen_in: impl Fn(u32, &mut [OwnedFd]) -> io::Result<()>,
) -> io::Result<()> {
    let mut message = vec![0; HEADER_BYTES + MAX_PAYLOAD];
    loop {
        // Header first: descriptors come with a message's first byte, and never read beyond it.
        let mut fds = receive(from.as_fd(), &mut message[..HEADER_BYTES])?;
        let word = |at: usize| {
            u32::from_ne_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]])
        };
        let (request, size) = (word(0), word(8) as usize);
        if size > MAX_PAYLOAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut stream = from;
        stream.read_exact(&mut message[HEADER_BYTES..HEADER_BYTES + size])?;
        listen_in(request, &mut fds)?;
        send(to.as_fd(), &message[..HEADER_BYTES + size], &fds)?;
    }
}

/// Tells the front-end to read the configuration space again. It is not asked for a reply, so
/// this never waits; a front-end that does not read loses the message.
pub(crate) fn send_config_change(mut back_channel: &UnixStream) -> io::Result<()> {
    let mut message = [0; HEADER_BYTES];
    message[..4].copy_from_slice(&BACKEND_CONFIG_CHANGE.to_ne_bytes());
    message[4..8].copy_from_slice(&VERSION.to_ne_bytes());
    back_channel.set_nonblocking(true)?;
    back_channel.write_all(&message)
}

/// Fills `buf` and gives the descriptors that came with it.
pub(crate) fn receive(from: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<Vec<OwnedFd>> {
    let mut fds = Vec::new();
    let mut filled = 0;
    while filled < buf.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(&mut buf[filled..])];
        match recvmsg(from, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) if message.bytes == 0 => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(message) => filled += message.bytes,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
    }
    Ok(fds)
}

fn send(to: BorrowedFd<'_>, mut bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut fds = &fds[..];
    while !bytes.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(n) => {
                bytes = &bytes[n..];
                fds = &[];
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
