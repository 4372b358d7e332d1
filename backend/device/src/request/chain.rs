//! A descriptor chain, walked once: its readable and its writable bytes (virtio 1.3, 2.7.5).
//!
//! In: a descriptor table and a head index. Out: two lists of segments, in order.
//! Must not know: what the bytes mean.
//!
//! Every way to arrange the bytes is accepted: any number of descriptors, of any size including
//! 0, in the table or in an indirect table.

use std::marker::PhantomData;
use std::ptr;

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::segments::{BadAddress, Segments, Snapshot};

/// Bytes of a descriptor.
const DESCRIPTOR_BYTES: usize = 16;

/// Longest chain; an indirect table may be larger than the queue, but not endless.
const MAX_DESCRIPTORS: usize = 4096;

/// A chain that cannot be answered: its queue is broken.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum BrokenChain {
    #[error("the descriptor table is outside the guest's memory")]
    Table(#[source] BadAddress),
    #[error("descriptor {index} is outside the table of {len}")]
    Index { index: u16, len: usize },
    #[error("the chain loops, or has more than {MAX_DESCRIPTORS} descriptors")]
    Endless,
    #[error("an indirect table where the driver did not negotiate any")]
    IndirectNotNegotiated,
    #[error("an indirect table within an indirect table")]
    IndirectNested,
    #[error("a descriptor that follows an indirect table")]
    IndirectNotLast,
    #[error("an indirect table of {0} bytes: no multiple of 16, or none")]
    IndirectLength(u32),
    #[error("a readable descriptor behind a writable one")]
    Order,
    #[error("more than 2^32 bytes")]
    Overlong,
    #[error("no writable byte for the status")]
    NoStatus,
    #[error("the status byte is outside the guest's memory")]
    StatusAddress(#[source] BadAddress),
}

/// A descriptor table in guest memory.
pub(crate) struct Table<'a> {
    at: *const u8,
    len: usize,
    /// What keeps it mapped.
    memory: PhantomData<&'a Snapshot>,
}

impl<'a> Table<'a> {
    /// The table of `len` descriptors at `addr`.
    pub(crate) fn new(
        memory: &'a Snapshot,
        addr: GuestAddress,
        len: usize,
    ) -> Result<Table<'a>, BrokenChain> {
        let bytes = len * DESCRIPTOR_BYTES;
        if let Some(at) = memory.host(addr, bytes) {
            // SAFETY: mapped for that many bytes as long as `memory` lives, as `host` says.
            return Ok(unsafe { Table::at(at, len) });
        }
        match memory.memory().get_slice(addr, bytes) {
            Ok(slice) => {
                let at = slice.ptr_guard().as_ptr();
                // SAFETY: the slice is that long, and mapped as long as `memory` lives.
                Ok(unsafe { Table::at(at, len) })
            }
            Err(_) => Err(BrokenChain::Table(BadAddress { addr: addr.0, len: bytes as u32 })),
        }
    }

    /// The table of `len` descriptors at a host address.
    ///
    /// # Safety
    /// The address must be readable for 16 * `len` bytes as long as `'a`.
    pub(crate) unsafe fn at(at: *const u8, len: usize) -> Table<'a> {
        Table { at, len, memory: PhantomData }
    }

    fn get(&self, index: u16) -> Result<Descriptor, BrokenChain> {
        if usize::from(index) >= self.len {
            return Err(BrokenChain::Index { index, len: self.len });
        }
        let mut raw = [0_u8; DESCRIPTOR_BYTES];
        // SAFETY: the index is inside the table. Indirect tables need no alignment; the driver
        // may change the bytes meanwhile: any mix is a descriptor.
        unsafe {
            let from = self.at.add(usize::from(index) * DESCRIPTOR_BYTES);
            ptr::copy_nonoverlapping(from, raw.as_mut_ptr(), DESCRIPTOR_BYTES);
        }
        let half = |at| u16::from_le_bytes([raw[at], raw[at + 1]]);
        let word = |at| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let addr = u64::from(word(0)) | u64::from(word(4)) << 32;
        Ok(Descriptor::new(addr, word(8), half(12), half(14)))
    }
}

/// The first bytes that the device reads, where a request says what it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Header {
    bytes: [u8; Header::BYTES],
    len: usize,
}

impl Header {
    /// Bytes of struct virtio_blk_req before the data; no header of a device here is longer.
    pub(crate) const BYTES: usize = 16;

    /// Those that the chain has.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// All of them, if the chain has as many.
    pub(crate) fn whole(&self) -> Option<&[u8; Header::BYTES]> {
        (self.len == Header::BYTES).then_some(&self.bytes)
    }

    /// Takes what is missing from the beginning of a range; gives how much that was.
    fn take(&mut self, memory: &Snapshot, addr: GuestAddress, len: u32) -> Result<u32, BadAddress> {
        let rest = self.bytes.get_mut(self.len..).unwrap_or_default();
        let missing = rest.len().min(len as usize);
        if missing > 0 && !memory.read(addr, &mut rest[..missing]) {
            return Err(BadAddress { addr: addr.0, len });
        }
        self.len += missing;
        Ok(missing as u32)
    }
}

/// A chain's bytes.
#[derive(Debug)]
pub(crate) struct Chain {
    /// What the device reads first.
    pub header: Header,
    /// What it reads after that.
    pub readable: Segments,
    /// What the device writes.
    pub writable: Segments,
    /// A range that is not in guest memory, and missing from the above.
    pub fault: Option<BadAddress>,
    /// It was at the end of the writable part, where the status byte is.
    pub status_lost: bool,
}

impl Chain {
    /// Walks the chain that starts at `head`: first through the ring's table, then, if its last
    /// descriptor refers to one, through an indirect table (2.7.5.3).
    pub(crate) fn walk(
        memory: &Snapshot,
        ring: &Table<'_>,
        head: u16,
        indirect_allowed: bool,
    ) -> Result<Chain, BrokenChain> {
        let mut walk = Walk {
            memory,
            chain: Chain {
                header: Header::default(),
                readable: Segments::nothing(),
                writable: Segments::nothing(),
                fault: None,
                status_lost: false,
            },
            seen_writable: false,
            bytes: 0,
        };
        if let Some(indirect) = walk.follow(ring, head)? {
            if !indirect_allowed {
                return Err(BrokenChain::IndirectNotNegotiated);
            }
            if indirect.has_next() {
                return Err(BrokenChain::IndirectNotLast);
            }
            let len = indirect.len() as usize;
            if len == 0 || !len.is_multiple_of(DESCRIPTOR_BYTES) {
                return Err(BrokenChain::IndirectLength(indirect.len()));
            }
            let table = Table::new(memory, indirect.addr(), len / DESCRIPTOR_BYTES)?;
            if walk.follow(&table, 0)?.is_some() {
                return Err(BrokenChain::IndirectNested);
            }
        }
        Ok(walk.chain)
    }
}

/// A chain being walked.
struct Walk<'a> {
    memory: &'a Snapshot,
    chain: Chain,
    seen_writable: bool,
    bytes: u32,
}

impl Walk<'_> {
    /// Follows a table from `index` to the end of the chain, or to a descriptor that refers to
    /// an indirect table.
    fn follow(
        &mut self,
        table: &Table<'_>,
        mut index: u16,
    ) -> Result<Option<Descriptor>, BrokenChain> {
        for _ in 0..table.len.min(MAX_DESCRIPTORS) {
            let descriptor = table.get(index)?;
            if descriptor.refers_to_indirect_table() {
                return Ok(Some(descriptor));
            }
            self.add(&descriptor)?;
            if !descriptor.has_next() {
                return Ok(None);
            }
            index = descriptor.next();
        }
        Err(BrokenChain::Endless)
    }

    fn add(&mut self, descriptor: &Descriptor) -> Result<(), BrokenChain> {
        let len = descriptor.len();
        self.bytes = self.bytes.checked_add(len).ok_or(BrokenChain::Overlong)?;
        if descriptor.is_write_only() {
            self.seen_writable = true;
        } else if self.seen_writable {
            return Err(BrokenChain::Order);
        }
        if len == 0 {
            return Ok(());
        }
        let (addr, chain) = (descriptor.addr(), &mut self.chain);
        let added = if descriptor.is_write_only() {
            let added = chain.writable.push_of(self.memory, addr, len);
            chain.status_lost = added.is_err();
            added
        } else {
            chain.header.take(self.memory, addr, len).and_then(|taken| {
                match addr.0.checked_add(u64::from(taken)) {
                    _ if taken == len => Ok(()),
                    Some(rest) => {
                        chain.readable.push_of(self.memory, GuestAddress(rest), len - taken)
                    }
                    None => Err(BadAddress { addr: addr.0, len }),
                }
            })
        };
        if let Err(bad) = added {
            chain.fault.get_or_insert(bad);
        }
        Ok(())
    }
}
