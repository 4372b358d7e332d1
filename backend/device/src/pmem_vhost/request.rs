//! A request of a virtio-pmem driver (virtio 1.3, 5.19.6): four readable bytes that say "flush",
//! four writable ones for the answer.
//!
//! In: a walked chain. Out: where the answer goes, and whether there is something to do.
//! Must not know: files, threads.

use thiserror::Error;

use crate::request::{BrokenChain, Chain};
use crate::segments::{BadAddress, Segments};

/// VIRTIO_PMEM_REQ_TYPE_FLUSH.
const FLUSH: u32 = 0;
/// VIRTIO_PMEM_RESP_TYPE_OK.
const OK: u32 = 0;
/// VIRTIO_PMEM_RESP_TYPE_EIO.
const EIO: u32 = 1;
/// Bytes of a request's type, and of an answer.
pub(super) const WORD_BYTES: u32 = 4;

/// A chain that cannot be answered: its queue is broken.
#[derive(Debug, Error)]
pub(super) enum BrokenRequest {
    #[error("its descriptors are wrong")]
    Chain(#[from] BrokenChain),
    #[error("it is not all in guest memory")]
    Address(#[from] BadAddress),
    #[error("{bytes} writable bytes: an answer has 4")]
    NoAnswer { bytes: u64 },
}

/// A request.
#[derive(Debug)]
pub(super) struct Request {
    /// Whether it asks for a flush; everything else is answered with an error.
    pub(super) is_flush: bool,
    pub(super) answer: Answer,
}

/// The place of an answer.
#[derive(Debug)]
pub(super) struct Answer(Segments);

impl Answer {
    /// Writes it, once: the place is given up.
    pub(super) fn write(self, ok: bool) {
        let code = if ok { OK } else { EIO };
        self.0.write(0, &code.to_le_bytes());
    }
}

/// Reads a chain. Descriptors may cut it anywhere, and bytes may follow.
pub(super) fn parse(chain: Chain) -> Result<Request, BrokenRequest> {
    if let Some(fault) = chain.fault {
        return Err(fault.into());
    }
    if chain.writable.len() < u64::from(WORD_BYTES) {
        return Err(BrokenRequest::NoAnswer { bytes: chain.writable.len() });
    }
    let is_flush = chain.header.bytes().starts_with(&FLUSH.to_le_bytes());
    Ok(Request { is_flush, answer: Answer(chain.writable) })
}
