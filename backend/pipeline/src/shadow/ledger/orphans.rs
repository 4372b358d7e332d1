//! The orphan list: inodes that may map more than their size says, until they are dealt with.
//!
//! In: superblocks, inodes and blocks of the orphan file, as committed. Out: whether an inode is on
//! the list. What was on it before the shadow looked is found again when it is written.

use std::collections::{BTreeMap, HashMap};

use ext4_layout::{Home, Ino};

use super::Case;
use crate::shadow::inode::{RawInode, word};

/// Entries remembered at most; beyond, every inode may be on the list.
const ORPHANS_MAX: usize = 1 << 16;

/// `s_last_orphan`, the links from inode to inode, and the orphan file (feature `orphan_file`).
#[derive(Clone, Debug, Default)]
pub(in crate::shadow) struct Orphans {
    head: Ino,
    next: HashMap<Ino, Ino>,
    blocks: HashMap<u64, Vec<Ino>>,
    /// There were too many to be remembered, or some were not seen.
    crowded: bool,
}

impl Orphans {
    /// The list as the transaction leaves it.
    pub(super) fn note(&mut self, case: &Case<'_>, blocks: &BTreeMap<u64, Box<[u8]>>) {
        let per_inode = case.facts.inode_bytes;
        if self.next.len() > ORPHANS_MAX || self.blocks.len() > ORPHANS_MAX {
            self.crowded = true;
            self.next.clear();
            self.blocks.clear();
        }
        for (pblk, bytes) in blocks {
            match case.new.block(*pblk, pblk.saturating_add(1)).0 {
                Ok(Home::Superblock { backup: false }) => {
                    let at = 1024 % case.facts.block_bytes;
                    self.note_head(bytes.get(at..).unwrap_or_default());
                }
                Ok(Home::InodeTable { first_inode, .. }) => {
                    for (raw, ino) in bytes.chunks_exact(per_inode).zip(first_inode..) {
                        match RawInode(raw).next_orphan() {
                            0 => drop(self.next.remove(&ino)),
                            next if u64::from(next) <= case.facts.inodes => {
                                self.next.insert(ino, next);
                            }
                            _ => drop(self.next.remove(&ino)),
                        }
                    }
                }
                Ok(Home::OrphanFile) => {
                    let body = bytes.get(..bytes.len().saturating_sub(8)).unwrap_or_default();
                    let inodes = body.chunks_exact(4).map(|raw| word(raw, 0));
                    let inodes = inodes.filter(|ino| *ino != 0).collect();
                    self.blocks.insert(*pblk, inodes);
                }
                _ => {}
            }
        }
    }

    /// Some changes were not seen: every inode may be on the list.
    pub(in crate::shadow) fn lose(&mut self) {
        self.crowded = true;
    }

    /// `s_last_orphan` of a superblock.
    pub(in crate::shadow) fn note_head(&mut self, superblock: &[u8]) {
        self.head = word(superblock, 0xe8);
    }

    /// Whether the inode is on the list.
    pub(super) fn has(&self, ino: Ino) -> bool {
        self.crowded
            || self.head == ino
            || self.next.contains_key(&ino)
            || self.next.values().any(|next| *next == ino)
            || self.blocks.values().any(|inodes| inodes.contains(&ino))
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.next.capacity() * 9
            + self.blocks.values().map(|inodes| inodes.capacity() * 4 + 40).sum::<usize>()
    }
}
