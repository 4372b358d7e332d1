//! One client of the control socket.
//!
//! In: bytes, in any cut. Out: an answer for each line, then events if it asked for them.
//! Must not know: what a command does.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use pipeline::control::Response;
use rustix::event::PollFlags;

use super::commands::{Answer, Target};
use crate::sink::Subscription;

/// Longest line: rules with their histogram files.
const LINE_MAX: usize = 4 << 20;
/// Bytes read from one client before it is the next one's turn.
const READ_MAX: usize = 64 << 10;

/// A connection and what is under way on it.
pub(crate) struct Client {
    socket: UnixStream,
    /// Received, not yet answered.
    input: Vec<u8>,
    /// How much of `input` is known to hold no newline.
    searched: usize,
    /// To be sent; nothing more is read before it is gone.
    output: Vec<u8>,
    /// How much of `output` was sent.
    sent: usize,
    subscription: Option<Arc<Subscription>>,
    /// It sends nothing more.
    ended: bool,
    /// It is to be dropped once `output` is gone.
    closing: bool,
}

impl Client {
    pub(crate) fn new(socket: UnixStream) -> io::Result<Client> {
        socket.set_nonblocking(true)?;
        Ok(Client {
            socket,
            input: Vec::new(),
            searched: 0,
            output: Vec::new(),
            sent: 0,
            subscription: None,
            ended: false,
            closing: false,
        })
    }

    /// Says that there are too many, as far as the socket takes it at once.
    pub(super) fn refuse(&mut self, limit: usize) {
        let message = format!("{limit} clients are connected already: close one and try again");
        self.answer(&Response::Error { message });
        let _ = self.send();
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The subscription's file descriptor, or the socket's where there is none.
    pub(super) fn subscription_fd(&self) -> BorrowedFd<'_> {
        match &self.subscription {
            Some(subscription) => subscription.as_fd(),
            None => self.socket.as_fd(),
        }
    }

    /// What to wait for: on the socket, and on the subscription. The end of the connection is
    /// reported in any case.
    pub(super) fn interest(&self) -> (PollFlags, PollFlags) {
        if self.pending() {
            return (PollFlags::OUT, PollFlags::empty());
        }
        let socket = if self.ended { PollFlags::empty() } else { PollFlags::IN };
        let events = if self.subscription.is_some() { PollFlags::IN } else { PollFlags::empty() };
        (socket, events)
    }

    pub(crate) fn pending(&self) -> bool {
        self.sent < self.output.len()
    }

    /// Does what can be done without waiting; `false`: the client is gone.
    pub(crate) fn turn(&mut self, ready: PollFlags, target: &Target) -> bool {
        if ready.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) && self.ended {
            return false;
        }
        self.try_turn(ready, target).unwrap_or_else(|error| {
            tracing::debug!(%error, "a control client left");
            false
        })
    }

    fn try_turn(&mut self, ready: PollFlags, target: &Target) -> io::Result<bool> {
        if self.pending() && !self.send()? {
            return Ok(true);
        }
        if !self.closing && !self.ended && ready.intersects(PollFlags::IN | PollFlags::HUP) {
            self.receive()?;
        }
        while !self.pending() && !self.closing {
            let Some(line) = self.next_line() else { break };
            self.obey(&line, target);
            self.send()?;
        }
        if self.input.len() > LINE_MAX {
            let message = format!("a line has more than {LINE_MAX} bytes");
            self.answer(&Response::Error { message });
            self.closing = true;
            self.send()?;
        }
        if let Some(subscription) = &self.subscription
            && self.sent == self.output.len()
        {
            self.output.clear();
            self.sent = 0;
            subscription.take(&mut self.output);
            self.send()?;
        }
        let finished = self.closing || (self.ended && self.subscription.is_none());
        Ok(!finished || self.pending())
    }

    /// Reads what is there, up to a limit.
    fn receive(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        let mut left = READ_MAX;
        while left > 0 {
            match self.socket.read(&mut bytes) {
                Ok(0) => {
                    self.ended = true;
                    // The last line may lack its newline.
                    if !self.input.is_empty() {
                        self.input.push(b'\n');
                    }
                    break;
                }
                Ok(read) => {
                    self.input.extend_from_slice(&bytes[..read]);
                    left = left.saturating_sub(read);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn next_line(&mut self) -> Option<Vec<u8>> {
        let found = self.input[self.searched..].iter().position(|byte| *byte == b'\n');
        let Some(found) = found else {
            self.searched = self.input.len();
            return None;
        };
        let rest = self.input.split_off(self.searched + found + 1);
        let line = std::mem::replace(&mut self.input, rest);
        self.searched = 0;
        Some(line)
    }

    fn obey(&mut self, line: &[u8], target: &Target) {
        if line.trim_ascii().is_empty() {
            return;
        }
        match target.obey(line) {
            Answer::Response(response) => self.answer(&response),
            Answer::Subscribed(subscription) => {
                self.answer(&Response::Done);
                if let Some(before) = self.subscription.replace(subscription) {
                    target.unsubscribe(&before);
                }
            }
            Answer::Shutdown => {
                self.answer(&Response::Done);
                self.closing = true;
                // Before the end: whoever asked gets to know.
                let _ = self.send();
                target.shut_down();
            }
        }
    }

    fn answer(&mut self, response: &Response) {
        if let Err(error) = serde_json::to_writer(&mut self.output, response) {
            // No response holds a map with keys that are no strings, the one thing JSON lacks.
            tracing::error!(%error, "an answer has no JSON form");
        }
        self.output.push(b'\n');
    }

    /// Sends what the socket takes; `true`: all of it is sent.
    fn send(&mut self) -> io::Result<bool> {
        while self.pending() {
            match self.socket.write(&self.output[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(true)
    }

    /// The server ends: the events that are there, as far as the socket takes them at once.
    pub(super) fn last_words(&mut self, target: &Target) {
        if let Some(subscription) = &self.subscription {
            target.settle();
            if !self.pending() {
                self.output.clear();
                self.sent = 0;
                subscription.take(&mut self.output);
            }
        }
        let _ = self.send();
    }

    /// The connection is over.
    pub(crate) fn leave(&mut self, target: &Target) {
        if let Some(subscription) = self.subscription.take() {
            target.unsubscribe(&subscription);
        }
    }
}
