//! The vhost-user-blk device: what a program creates, serves and resizes.
//!
//! In: a storage, maybe an engine, a socket. Out: a disk for whatever front-end connects, one
//! after the other.
//! Must not know: command lines, rules, file systems.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use pipeline::traffic::Traffic;
use thiserror::Error;
use tracing::info;

use crate::control::Front;
use crate::counters::Counters;
use crate::engine::Engine;
use crate::front_end::each_front_end;
use crate::storage::{Storage, StorageError};

mod connection;
mod device_state;
mod intercept;

use connection::Connection;

pub use crate::front_end::{ServeError, Transport};
pub use crate::worker::Polling;

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
    /// Leave alone guest memory that is a file of a FUSE file system: for a disk of the process
    /// that serves that file, which must not map it.
    pub spare_fuse: bool,
    /// When queue threads look at their rings instead of sleeping.
    pub polling: Polling,
}

impl Default for DeviceOptions {
    fn default() -> DeviceOptions {
        DeviceOptions {
            num_queues: 4,
            queue_size: 256,
            serial: "racegate".into(),
            spare_fuse: false,
            polling: Polling::default(),
        }
    }
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

/// A vhost-user-blk device.
pub struct Device {
    options: DeviceOptions,
    storage: Arc<dyn Storage>,
    engine: Option<Arc<Engine>>,
    orders: Arc<Orders>,
    counters: Arc<Counters>,
    /// Who is connected, to be told of a new size.
    current: Mutex<Weak<Connection>>,
}

/// What the operator has ordered, whatever the guest says.
#[derive(Debug, Default)]
struct Orders {
    /// Every write is durable when it completes.
    write_through: AtomicBool,
    /// Writes are refused; changes only while no front-end is connected.
    read_only: AtomicBool,
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
        let (orders, current) = (Arc::default(), Mutex::new(Weak::new()));
        let counters = Arc::new(Counters::new(options.num_queues));
        Ok(Device { options, storage, engine, orders, counters, current })
    }

    /// Serves front-ends, one after the other, until `shutdown` is readable. On return nothing
    /// is in flight, parked requests were released, the storage is flushed.
    pub fn serve(&self, transport: Transport, shutdown: BorrowedFd<'_>) -> Result<(), ServeError> {
        let served =
            each_front_end(transport, shutdown, |stream| self.serve_front_end(stream, shutdown));
        let synced = self.storage.sync().map_err(ServeError::Sync);
        served.and(synced)
    }

    /// Serves one front-end until it goes away or `shutdown` is readable.
    fn serve_front_end(
        &self,
        front_end: &UnixStream,
        shutdown: BorrowedFd<'_>,
    ) -> Result<(), ServeError> {
        // Held while the orders of now become those of the connection.
        let mut current = lock(&self.current);
        let Device { options, storage, engine, orders, counters, .. } = self;
        let connection = Connection::new(options, storage, engine.as_ref(), orders, counters)?;
        *current = Arc::downgrade(&connection);
        drop(current);
        info!("front-end connected");
        let served = connection.serve(front_end, shutdown);
        if let Some(engine) = &self.engine {
            engine.disconnect();
        }
        connection.quiesce();
        info!("front-end disconnected");
        served
    }

    /// Changes the size of the disk and tells the guest (VHOST_USER_BACKEND_CONFIG_CHANGE_MSG).
    pub fn resize(&self, bytes: u64) -> Result<(), StorageError> {
        self.storage.resize(bytes)?;
        if let Some(connection) = lock(&self.current).upgrade() {
            connection.config_changed();
        }
        Ok(())
    }
}

impl Front for Device {
    fn traffic(&self) -> Option<Traffic> {
        Some(self.counters.traffic())
    }

    fn resize(&self, bytes: u64) -> Result<(), StorageError> {
        Device::resize(self, bytes)
    }

    /// The guest may ask for less than what is allowed here, never for more.
    fn set_write_cache(&self, on: bool) -> Result<(), StorageError> {
        self.orders.write_through.store(!on, Ordering::Release);
        if let Some(connection) = lock(&self.current).upgrade() {
            connection.cache_changed();
        }
        // From now on everything that completed is durable: also what was cached before.
        if on {
            Ok(())
        } else {
            self.storage.sync().map_err(|source| StorageError::Sync { source })
        }
    }

    fn set_read_only(&self, on: bool) -> Result<(), StorageError> {
        if !on && self.storage.read_only() {
            return Err(StorageError::Unsupported {
                what: "be written to: the program was started with --read-only",
            });
        }
        // Nobody can connect meanwhile.
        let current = lock(&self.current);
        if self.orders.read_only.load(Ordering::Acquire) != on && current.strong_count() > 0 {
            return Err(StorageError::Connected {
                found: if on { "writable" } else { "read-only" },
            });
        }
        self.orders.read_only.store(on, Ordering::Release);
        Ok(())
    }
}

/// The values behind these locks are whole at any time: a thread that died while it held one
/// left nothing half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
