//! A transaction whose commit record has not been stored yet.

use std::collections::BTreeMap;

use crate::jbd2::descriptor::Tag;

/// A block of the log that belongs to a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Descriptor,
    Copy(Tag),
    Revoke(Vec<u64>),
}

/// What is known of a transaction, by place in the log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transaction {
    pub(crate) pieces: BTreeMap<u32, Piece>,
    /// Blocks revoked in `pieces`.
    pub(crate) revoked: usize,
    /// The place of the commit record, once that is stored.
    pub(crate) commit: Option<u32>,
    /// Found when opening: its copies were not seen as they were stored.
    pub(crate) from_log: bool,
}

impl Transaction {
    /// Takes a revoke record, unless the transaction then has more than `most` blocks revoked;
    /// false if so.
    pub(crate) fn revoke(&mut self, index: u32, blocks: Vec<u64>, most: usize) -> bool {
        let room = most.checked_sub(self.revoked + blocks.len()).is_some();
        let blocks = if room { blocks } else { Vec::new() };
        self.revoked += blocks.len();
        if let Some(Piece::Revoke(old)) = self.pieces.insert(index, Piece::Revoke(blocks)) {
            self.revoked -= old.len();
        }
        room
    }
}
