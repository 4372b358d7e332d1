//! What a virtio-blk device offers: feature bits and configuration space (virtio 1.3, 5.2.3-4).
//!
//! In: the storage's properties, the number and size of queues. Out: bits and bytes.
//! Must not know: connections, requests.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::storage::Storage;

/// Bytes of the configuration space up to and with `write_zeroes_may_unmap` and its padding.
pub(crate) const CONFIG_BYTES: usize = 60;

/// Offset of the byte that turns the write cache on and off.
pub(crate) const WRITEBACK_OFFSET: u32 = 32;

/// Most data segments of a request, unless the queue is shorter.
const SEG_MAX: u32 = 254;

/// Most bytes of one data segment.
const SIZE_MAX: u32 = 256 << 10;

/// Most bytes of data of one request: what the two above allow, rounded up.
pub(crate) const MAX_DATA_BYTES: u64 = 64 << 20;

/// Most ranges of one discard or write-zeroes request.
pub(crate) const MAX_RANGES: u32 = 32;

/// Most sectors of one such range.
pub(crate) const MAX_RANGE_SECTORS: u32 = 1 << 22;

/// What the layout of ext4 and of every modern disk likes best, in bytes.
const PHYSICAL_BLOCK: u32 = 4096;

pub(crate) const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// The virtio feature bits that a device over `storage` offers.
pub(crate) fn features(storage: &dyn Storage, read_only: bool) -> u64 {
    // Never IN_ORDER (a held request must not hold up others), never NOTIFICATION_DATA, and
    // split rings only.
    let mut features = bit(VIRTIO_F_VERSION_1)
        | bit(VIRTIO_RING_F_EVENT_IDX)
        | bit(VIRTIO_RING_F_INDIRECT_DESC)
        | bit(VIRTIO_BLK_F_SIZE_MAX)
        | bit(VIRTIO_BLK_F_SEG_MAX)
        | bit(VIRTIO_BLK_F_BLK_SIZE)
        | bit(VIRTIO_BLK_F_TOPOLOGY)
        | bit(VIRTIO_BLK_F_MQ)
        | bit(VIRTIO_BLK_F_FLUSH)
        | bit(VIRTIO_BLK_F_CONFIG_WCE);
    if read_only {
        features |= bit(VIRTIO_BLK_F_RO);
    } else if storage.can_discard() {
        features |= bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES);
    }
    features
}

/// Whether completed writes may sit in a cache (virtio 1.3, 5.2.5.2): the driver must be able to
/// flush it, and must not have turned it off.
pub(crate) fn is_writeback(acked: u64, writeback: bool) -> bool {
    acked & bit(VIRTIO_BLK_F_FLUSH) != 0 && (acked & bit(VIRTIO_BLK_F_CONFIG_WCE) == 0 || writeback)
}

/// What may change about a device while its program runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Modes {
    pub read_only: bool,
    /// The `writeback` byte.
    pub writeback: bool,
}

/// The configuration space, in the order of struct virtio_blk_config.
pub(crate) fn config_space(
    storage: &dyn Storage,
    num_queues: u16,
    queue_size: u16,
    Modes { read_only, writeback }: Modes,
) -> [u8; CONFIG_BYTES] {
    let block_size = storage.block_size();
    let physical_block_exp = (PHYSICAL_BLOCK / block_size).max(1).ilog2() as u8;
    // One descriptor for the header, one for the status.
    let seg_max = u32::from(queue_size).saturating_sub(2).clamp(1, SEG_MAX);
    let discard = u32::from(!read_only && storage.can_discard());
    let mut space = [0; CONFIG_BYTES];
    let mut put = |offset: usize, bytes: &[u8]| {
        space[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &storage.capacity_sectors().to_le_bytes());
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &seg_max.to_le_bytes());
    // 16: geometry, not offered.
    put(20, &block_size.to_le_bytes());
    put(24, &[physical_block_exp, 0]);
    put(26, &(1_u16 << physical_block_exp).to_le_bytes());
    put(WRITEBACK_OFFSET as usize, &[u8::from(writeback)]);
    put(34, &num_queues.to_le_bytes());
    put(36, &(discard * MAX_RANGE_SECTORS).to_le_bytes());
    put(40, &(discard * MAX_RANGES).to_le_bytes());
    put(44, &(discard * PHYSICAL_BLOCK / 512).to_le_bytes());
    put(48, &(discard * MAX_RANGE_SECTORS).to_le_bytes());
    put(52, &(discard * MAX_RANGES).to_le_bytes());
    put(56, &[discard as u8]);
    space
}
