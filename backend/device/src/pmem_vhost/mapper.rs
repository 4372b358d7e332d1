//! The mapper: asks the front-end to map the file into the guest (SHMEM_MAP).
//!
//! In: the back-end channel, and each memory table that lacks the region. Out: one request for
//! each such table.
//! Must not know: virtqueues, flushes.
//!
//! A request is sent from a thread of its own, and only after the front-end has sent a memory
//! table: QEMU 11.1 answers on the channel only when it is done with its own message, and ends
//! the connection if a map arrives before its device is complete. The mapping is gone after a
//! reset of the device; the next table lacks the region then.

use std::io;
use std::sync::{Condvar, Mutex, PoisonError};

use tracing::{debug, info, warn};
use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};
use vhost::vhost_user::{Backend, VhostUserFrontendReqHandler};

use super::Region;
use crate::blk::lock;

/// Id of the only shared memory region (VIRTIO_PMEM_SHMEM_REGION_ID).
const SHMEM_ID: u8 = 0;

#[derive(Default)]
struct State {
    channel: Option<Backend>,
    wanted: bool,
    over: bool,
}

/// The mapper.
#[derive(Default)]
pub(super) struct Mapper {
    state: Mutex<State>,
    changed: Condvar,
}

impl Mapper {
    pub(super) fn set_channel(&self, channel: Backend) {
        lock(&self.state).channel = Some(channel);
    }

    /// The front-end's memory table lacks the region.
    pub(super) fn want(&self) {
        let mut state = lock(&self.state);
        if state.channel.is_none() {
            warn!(
                "the front-end cannot map shared memory, so the guest gets none; use QEMU 11.1 or \
                 later (vhost-user-test-device-pci)"
            );
            return;
        }
        state.wanted = true;
        self.changed.notify_all();
    }

    /// No more requests; the channel must be shut down, too, to end one that is not answered.
    pub(super) fn end(&self) {
        lock(&self.state).over = true;
        self.changed.notify_all();
    }

    /// Sends requests until the end.
    pub(super) fn run(&self, region: &Region) {
        let mut state = lock(&self.state);
        while !state.over {
            let channel = state.channel.clone().filter(|_| state.wanted);
            let Some(channel) = channel else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.wanted = false;
            drop(state);
            match map(&channel, region) {
                Ok(()) => info!(bytes = region.bytes, "mapped into the guest"),
                Err(error) if lock(&self.state).over => debug!(%error, "map given up"),
                Err(error) => warn!(%error, "the front-end did not map the region"),
            }
            state = lock(&self.state);
        }
    }
}

fn map(channel: &Backend, region: &Region) -> io::Result<()> {
    let request = VhostUserMMap {
        shmid: SHMEM_ID,
        padding: [0; 7],
        fd_offset: 0,
        shm_offset: 0,
        len: region.bytes,
        flags: VhostUserMMapFlags::WRITABLE.bits(),
    };
    channel.shmem_map(&request, &region.file).map(drop)
}
