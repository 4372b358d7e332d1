//! What a worker shares with its device and connection.
//!
//! In: what was negotiated, the disk, the engine, guest memory. Out: the same, to every worker.
//! Must not know: requests, rings.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

use crate::config::bit;
use crate::counters::Counters;
use crate::dirty_log::DirtyLog;
use crate::engine::Engine;
use crate::inflight::Area;
use crate::queue::Memory;
use crate::storage::Storage;

use super::Polling;

/// What the front-end and the driver agreed on, shared with the protocol thread.
#[derive(Debug, Default)]
pub(crate) struct Negotiated {
    /// Acknowledged virtio features.
    pub features: AtomicU64,
    /// Every write must be durable before it completes.
    write_through: AtomicBool,
    /// Writes are refused.
    read_only: AtomicBool,
}

impl Negotiated {
    pub(crate) fn set_write_through(&self, on: bool) {
        self.write_through.store(on, Ordering::Release);
    }

    pub(crate) fn set_read_only(&self, on: bool) {
        self.read_only.store(on, Ordering::Release);
    }

    pub(crate) fn read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    pub(super) fn write_through(&self) -> bool {
        self.write_through.load(Ordering::Acquire)
    }

    /// The front-end migrates its guest, and wants to know what is written to its memory.
    pub(super) fn logging(&self) -> bool {
        self.features.load(Ordering::Acquire) & VhostUserVirtioFeatures::LOG_ALL.bits() != 0
    }

    pub(super) fn indirect(&self) -> bool {
        self.features.load(Ordering::Acquire) & bit(VIRTIO_RING_F_INDIRECT_DESC) != 0
    }
}

/// What a worker shares with its device and connection.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub storage: Arc<dyn Storage>,
    pub engine: Option<Arc<Engine>>,
    /// What was done, queue by queue.
    pub counters: Arc<Counters>,
    pub negotiated: Arc<Negotiated>,
    pub memory: Memory,
    /// Where heads in flight are kept, if the front-end gave room for it; looked at when a ring
    /// starts.
    pub inflight: Arc<Mutex<Option<Arc<Area>>>>,
    /// Where pages that were written to are marked while [`Negotiated::logging`].
    pub dirty_log: Arc<Mutex<Option<Arc<DirtyLog>>>>,
    /// When workers look at their rings instead of sleeping.
    pub polling: Polling,
    /// The serial number, padded with zeroes.
    pub serial: [u8; crate::blk::SERIAL_BYTES],
}
