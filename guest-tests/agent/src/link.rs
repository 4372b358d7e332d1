//! The link disk, as the guest uses it: O_DIRECT writes to the host, long polls from it.
//!
//! In: messages. Out: messages. A write returns when the host has it, so every message also
//! measures the way to the host and back.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Mutex, PoisonError};

use agent::wire::{self, ClockSpan, MAX_FRAME, TO_GUEST_SECTOR, TO_HOST_SECTOR, ToGuest, ToHost};
use anyhow::Context;
use rustix::fs::OFlags;

use crate::clock;

const SECTOR: u64 = 512;
/// Alignment that O_DIRECT accepts on every device.
const ALIGNMENT: usize = 4096;

/// The open link disk.
pub(crate) struct Link {
    disk: File,
    writer: Mutex<Writer>,
}

struct Writer {
    seq: u32,
    frame: Vec<u8>,
    transfer: Aligned,
}

impl Link {
    /// Opens `/dev/NAME`.
    pub(crate) fn open(name: &str) -> anyhow::Result<Link> {
        let path = format!("/dev/{name}");
        let disk = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::DIRECT.bits().cast_signed())
            .open(&path)
            .with_context(|| format!("opening the link disk {path}"))?;
        let writer =
            Writer { seq: 0, frame: Vec::with_capacity(MAX_FRAME), transfer: Aligned::new() };
        Ok(Link { disk, writer: Mutex::new(writer) })
    }

    /// Sends one message; returns the guest times around the transfer.
    pub(crate) fn send(&self, message: &ToHost) -> anyhow::Result<ClockSpan> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.send(&self.disk, message)
    }

    /// Like [`Link::send`], but gives up when another thread is sending: for a panicking thread,
    /// which may be that other thread itself.
    pub(crate) fn try_send(&self, message: &ToHost) {
        if let Ok(mut writer) = self.writer.try_lock() {
            let _ = writer.send(&self.disk, message);
        }
    }

    /// Waits for the answer to one poll; `None`: the host has nothing to say yet.
    pub(crate) fn poll(&self, buffer: &mut Aligned) -> Result<Option<ToGuest>, PollError> {
        let buffer = buffer.bytes(MAX_FRAME);
        self.disk.read_exact_at(buffer, TO_GUEST_SECTOR * SECTOR).map_err(PollError::Disk)?;
        wire::decode_message(buffer).map_err(PollError::Frame)
    }
}

impl Writer {
    fn send(&mut self, disk: &File, message: &ToHost) -> anyhow::Result<ClockSpan> {
        wire::encode_message(self.seq, message, &mut self.frame)?;
        self.seq = self.seq.wrapping_add(1);
        let transfer = self.transfer.bytes(self.frame.len());
        transfer.copy_from_slice(&self.frame);
        let before_ns = clock::now_ns();
        disk.write_all_at(transfer, TO_HOST_SECTOR * SECTOR).context("writing to the link disk")?;
        Ok(ClockSpan { before_ns, after_ns: clock::now_ns() })
    }
}

/// Why a poll brought no answer.
#[derive(Debug)]
pub(crate) enum PollError {
    /// The disk failed.
    Disk(io::Error),
    /// The answer is no frame, or no message.
    Frame(wire::FrameError),
}

/// A buffer that O_DIRECT accepts.
pub(crate) struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    /// Room for the longest frame.
    pub(crate) fn new() -> Aligned {
        Aligned::full_of(0, MAX_FRAME)
    }

    /// `room` bytes of that value.
    pub(crate) fn full_of(value: u8, room: usize) -> Aligned {
        let memory = vec![value; room + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Aligned { memory, start }
    }

    /// The first `len` bytes, at most all.
    pub(crate) fn bytes(&mut self, len: usize) -> &mut [u8] {
        let room = self.memory.len() - ALIGNMENT;
        &mut self.memory[self.start..][..len.min(room)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_are_aligned() {
        let mut buffer = Aligned::new();
        let bytes = buffer.bytes(MAX_FRAME);
        assert_eq!(bytes.as_ptr() as usize % ALIGNMENT, 0);
        assert_eq!(bytes.len(), MAX_FRAME);
    }
}
