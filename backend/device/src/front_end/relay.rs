//! The relay: hands a front-end's messages to the vhost-user library, and listens in.
//!
//! In: the front-end's socket. Out: the same messages, with their descriptors, on a socket of
//! ours, but for those that the back-end answers itself; the back-end channel, if the front-end
//! opens one.
//! Must not know: what any other message means, except that some bring guest memory, which
//! [`decoy`] may replace and [`regions`] may refuse.
//!
//! The library accepts connections itself, so it can take neither a socket that is connected
//! already (`--fd`) nor say no to one; it has no way to send CONFIG_CHANGE_MSG, and refuses
//! INFLIGHT_SHMFD. All of that is needed, and only the control path passes here.
//!
//! An answer of the back-end's own must not overtake those that the library still owes. So the
//! library gets a GET_FEATURES in place of the message, and its reply is replaced by the answer.

mod decoy;
mod regions;

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Mutex;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::blk::lock;

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
/// VHOST_USER_GET_FEATURES.
const GET_FEATURES: u32 = 1;
/// Protocol version in the flags of every message.
const VERSION: u32 = 1;
/// In the flags of a message: it is a reply.
const REPLY: u32 = 1 << 2;

/// A message of the front-end.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub request: u32,
    pub flags: u32,
    pub payload: &'a [u8],
}

/// An answer to a message that the library does not see.
#[derive(Debug)]
pub(crate) struct Answer {
    pub payload: Vec<u8>,
    pub fd: Option<OwnedFd>,
}

impl Answer {
    /// A payload of one number (of an acknowledgement: 0 for success).
    pub(crate) fn number(number: u64) -> Answer {
        Answer { payload: number.to_ne_bytes().to_vec(), fd: None }
    }
}

/// What becomes of a message.
#[derive(Debug)]
pub(crate) enum Fate {
    /// The library gets it.
    Pass,
    /// It had its effect, and asks for no reply.
    Done,
    /// It had its effect, and gets this reply.
    Answer(Answer),
}

/// What becomes of the library's replies to GET_FEATURES, in their order: `None` goes to the
/// front-end, which asked; the others are replaced by the answer to that request.
#[derive(Debug, Default)]
pub(super) struct Owed(Mutex<VecDeque<Option<(u32, Answer)>>>);

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

/// Passes messages from the front-end to the library until one of them hangs up, but for those
/// that `intercept` keeps. `back_channel` gets the front-end's socket for messages from us, if
/// there is one. With `spare_fuse`, guest memory that is a file of a FUSE file system is replaced
/// by a decoy.
pub(super) fn forward(
    front_end: &UnixStream,
    library: &UnixStream,
    owed: &Owed,
    spare_fuse: bool,
    intercept: impl Fn(&Message<'_>, &mut Vec<OwnedFd>) -> io::Result<Fate>,
    back_channel: impl Fn(UnixStream),
) {
    let listen_in = |message: &mut Vec<u8>, fds: &mut Vec<OwnedFd>| {
        let (request, flags) = (word(message, 0), word(message, 4));
        match (request, &fds[..]) {
            (GET_FEATURES, _) => lock(&owed.0).push_back(None),
            (SET_BACKEND_REQ_FD, [fd]) => {
                if let Ok(fd) = fd.try_clone() {
                    back_channel(fd.into());
                }
            }
            (SET_MEM_TABLE | ADD_MEM_REG, _) if spare_fuse => decoy::replace(fds)?,
            _ => {}
        }
        let payload = &message[HEADER_BYTES..];
        regions::check(request, payload, fds)?;
        match intercept(&Message { request, flags, payload }, fds)? {
            Fate::Pass => Ok(true),
            Fate::Done => Ok(false),
            Fate::Answer(answer) => {
                lock(&owed.0).push_back(Some((request, answer)));
                write_message(message, GET_FEATURES, VERSION, &[]);
                fds.clear();
                Ok(true)
            }
        }
    };
    // However it ends, it ends for both: a library without a front-end stops.
    let _ = pass_messages(front_end, library, listen_in);
    let _ = library.shutdown(Shutdown::Both);
}

/// Passes the library's answers to the front-end until one of them hangs up.
pub(super) fn backward(library: &UnixStream, front_end: &UnixStream, owed: &Owed) {
    let replace = |message: &mut Vec<u8>, fds: &mut Vec<OwnedFd>| {
        if word(message, 0) == GET_FEATURES
            && let Some(Some((request, answer))) = lock(&owed.0).pop_front()
        {
            write_message(message, request, VERSION | REPLY, &answer.payload);
            *fds = answer.fd.into_iter().collect();
        }
        Ok(true)
    };
    let _ = pass_messages(library, front_end, replace);
    let _ = front_end.shutdown(Shutdown::Both);
}

fn word(message: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]])
}

fn write_message(to: &mut Vec<u8>, request: u32, flags: u32, payload: &[u8]) {
    to.clear();
    for word in [request, flags, payload.len() as u32] {
        to.extend(word.to_ne_bytes());
    }
    to.extend(payload);
}

/// Passes whole messages on: there are peers that expect one in a single read. `look` may change
/// a message, and keeps it with `false`.
fn pass_messages(
    from: &UnixStream,
    to: &UnixStream,
    look: impl Fn(&mut Vec<u8>, &mut Vec<OwnedFd>) -> io::Result<bool>,
) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER_BYTES + MAX_PAYLOAD);
    loop {
        // Header first: descriptors come with a message's first byte, and never read beyond it.
        message.resize(HEADER_BYTES, 0);
        let mut fds = receive(from.as_fd(), &mut message)?;
        let size = word(&message, 8) as usize;
        if size > MAX_PAYLOAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        message.resize(HEADER_BYTES + size, 0);
        let mut stream = from;
        stream.read_exact(&mut message[HEADER_BYTES..])?;
        if look(&mut message, &mut fds)? {
            send(to.as_fd(), &message, &fds)?;
        }
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
