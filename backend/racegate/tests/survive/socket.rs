//! vhost-user messages by hand: what a front-end says, byte for byte.
//!
//! In: requests, payloads, descriptors. Out: replies; [`Gone`] when the daemon is.
//! Must not know: what a message leads to.

use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::support::PATIENCE;

pub(crate) const GET_FEATURES: u32 = 1;
pub(crate) const SET_FEATURES: u32 = 2;
pub(crate) const SET_OWNER: u32 = 3;
pub(crate) const SET_MEM_TABLE: u32 = 5;
pub(crate) const SET_VRING_NUM: u32 = 8;
pub(crate) const SET_VRING_ADDR: u32 = 9;
pub(crate) const SET_VRING_BASE: u32 = 10;
pub(crate) const GET_VRING_BASE: u32 = 11;
pub(crate) const SET_VRING_KICK: u32 = 12;
pub(crate) const SET_VRING_CALL: u32 = 13;
pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
pub(crate) const SET_VRING_ENABLE: u32 = 18;
pub(crate) const GET_INFLIGHT_FD: u32 = 31;
pub(crate) const SET_INFLIGHT_FD: u32 = 32;

const HEADER_BYTES: usize = 12;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// The daemon is not there, or not any more.
#[derive(Debug)]
pub(crate) struct Gone;

/// One connection to the daemon.
pub(crate) struct Socket(UnixStream);

impl Socket {
    pub(crate) fn connect(path: &Path) -> Result<Socket, Gone> {
        let stream = UnixStream::connect(path).map_err(|_| Gone)?;
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        Ok(Socket(stream))
    }

    /// Sends a request that asks for no reply.
    pub(crate) fn say(
        &self,
        request: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Gone> {
        self.send(request, VERSION, payload, fds)
    }

    /// Sends a request, and waits until it is acknowledged (REPLY_ACK).
    pub(crate) fn order(
        &self,
        request: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Gone> {
        self.send(request, VERSION | NEED_REPLY, payload, fds)?;
        let (payload, _) = self.reply(request)?;
        assert_eq!(payload, 0_u64.to_ne_bytes(), "request {request} is refused");
        Ok(())
    }

    /// Sends a request that is answered, and gives payload and descriptors of the answer.
    pub(crate) fn ask(
        &self,
        request: u32,
        payload: &[u8],
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), Gone> {
        self.send(request, VERSION, payload, &[])?;
        self.reply(request)
    }

    pub(crate) fn ask_number(&self, request: u32) -> Result<u64, Gone> {
        let (payload, _) = self.ask(request, &[])?;
        Ok(u64::from_ne_bytes(payload.try_into().expect("a number")))
    }

    fn send(
        &self,
        request: u32,
        flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Gone> {
        let header = [request, flags, payload.len() as u32].map(u32::to_ne_bytes).concat();
        let message = [&header, payload].concat();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let sent =
            sendmsg(self.0.as_fd(), &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL);
        // Messages are far shorter than the socket's buffer.
        if sent == Ok(message.len()) { Ok(()) } else { Err(Gone) }
    }

    fn reply(&self, request: u32) -> Result<(Vec<u8>, Vec<OwnedFd>), Gone> {
        let mut header = [0; HEADER_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(&mut header)];
        match recvmsg(self.0.as_fd(), &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) if message.bytes == HEADER_BYTES => {}
            Err(rustix::io::Errno::AGAIN) => panic!("request {request}: no reply, and no end"),
            Ok(_) | Err(_) => return Err(Gone),
        }
        let fds = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| header[at + i]));
        assert_eq!((word(0), word(4)), (request, VERSION | REPLY), "another reply");
        let mut payload = vec![0; word(8) as usize];
        (&self.0).read_exact(&mut payload).map_err(|_| Gone)?;
        Ok((payload, fds))
    }
}
