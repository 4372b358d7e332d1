//! Messages of the front-end that the vhost-user library cannot carry out, or not well: the
//! in-flight area and the dirty log.
//!
//! In: messages on their way to the library. Out: their effect on the connection, and answers.
//! Must not know: how messages travel.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::warn;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::connection::Connection;
use super::lock;
use crate::dirty_log::DirtyLog;
use crate::front_end::{Answer, Fate, Message};
use crate::inflight::{Area, Description};

/// VHOST_USER_SET_LOG_BASE.
const SET_LOG_BASE: u32 = 6;
/// VHOST_USER_SET_PROTOCOL_FEATURES.
const SET_PROTOCOL_FEATURES: u32 = 16;
/// VHOST_USER_GET_INFLIGHT_FD.
const GET_INFLIGHT_FD: u32 = 31;
/// VHOST_USER_SET_INFLIGHT_FD.
const SET_INFLIGHT_FD: u32 = 32;
/// In the flags of a message: the sender waits for a reply.
const NEED_REPLY: u32 = 1 << 3;
/// Largest virtqueue (virtio 1.3, 2.7).
const LARGEST_QUEUE: u16 = 1 << 15;

/// What becomes of a message.
///
/// # Errors
/// The front-end says nonsense: the connection ends.
pub(super) fn intercept(
    connection: &Connection,
    message: &Message<'_>,
    fds: &mut Vec<OwnedFd>,
) -> io::Result<Fate> {
    let acked = |feature: VhostUserProtocolFeatures| {
        connection.protocol_acked.load(Ordering::Relaxed) & feature.bits() != 0
    };
    match message.request {
        SET_PROTOCOL_FEATURES => {
            let value = message.payload.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
            connection.protocol_acked.store(u64::from_ne_bytes(*value), Ordering::Relaxed);
            Ok(Fate::Pass)
        }
        GET_INFLIGHT_FD if acked(VhostUserProtocolFeatures::INFLIGHT_SHMFD) => {
            give_area(connection, message)
        }
        SET_INFLIGHT_FD if acked(VhostUserProtocolFeatures::INFLIGHT_SHMFD) => {
            let reply =
                message.flags & NEED_REPLY != 0 && acked(VhostUserProtocolFeatures::REPLY_ACK);
            match take_area(connection, message, fds) {
                Ok(()) if reply => Ok(Fate::Answer(Answer::number(0))),
                Ok(()) => Ok(Fate::Done),
                Err(_) if reply => Ok(Fate::Answer(Answer::number(1))),
                Err(error) => Err(error),
            }
        }
        SET_LOG_BASE if acked(VhostUserProtocolFeatures::LOG_SHMFD) => {
            take_log(connection, message, fds)?;
            // QEMU reads any payload, cloud-hypervisor its own.
            Ok(Fate::Answer(Answer { payload: message.payload.to_vec(), fd: None }))
        }
        _ => Ok(Fate::Pass),
    }
}

fn describe(message: &Message<'_>) -> io::Result<Description> {
    Description::parse(message.payload).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A new area, made to measure; none if the system gives none.
fn give_area(connection: &Connection, message: &Message<'_>) -> io::Result<Fate> {
    let asked = describe(message)?;
    let fits = (1..=connection.num_queues).contains(&asked.num_queues)
        && (1..=LARGEST_QUEUE).contains(&asked.queue_size);
    if !fits {
        warn!(?asked, "the front-end asks for an in-flight area that no device of this kind has");
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Fate::Answer(match Area::create(asked.num_queues, asked.queue_size) {
        Ok((fd, shape)) => Answer { payload: shape.to_bytes().to_vec(), fd: Some(fd) },
        Err(error) => {
            warn!(%error, "no in-flight area: requests are lost if the daemon dies");
            Answer { payload: Description { mmap_size: 0, ..asked }.to_bytes().to_vec(), fd: None }
        }
    }))
}

/// The area that the front-end keeps, new or from an earlier connection.
fn take_area(
    connection: &Connection,
    message: &Message<'_>,
    fds: &mut Vec<OwnedFd>,
) -> io::Result<()> {
    let shape = describe(message)?;
    let fd = fds.pop().ok_or(io::ErrorKind::InvalidData)?;
    match Area::open(&fd, shape, connection.num_queues, LARGEST_QUEUE) {
        Ok(area) => {
            if let Some(writeback) = area.writeback() {
                connection.restore_writeback(writeback);
            }
            *lock(&connection.inflight) = Some(Arc::new(area));
            Ok(())
        }
        Err(error) => {
            warn!(%error, "the front-end's in-flight area is not one");
            Err(io::ErrorKind::InvalidData.into())
        }
    }
}

fn take_log(
    connection: &Connection,
    message: &Message<'_>,
    fds: &mut Vec<OwnedFd>,
) -> io::Result<()> {
    let (bytes, rest) = message.payload.split_first_chunk().ok_or(io::ErrorKind::InvalidData)?;
    let offset = rest.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
    let file = File::from(fds.pop().ok_or(io::ErrorKind::InvalidData)?);
    let log = DirtyLog::open(&file, u64::from_ne_bytes(*bytes), u64::from_ne_bytes(*offset))?;
    *lock(&connection.dirty_log) = Some(Arc::new(log));
    Ok(())
}
