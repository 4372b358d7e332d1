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
    /// How often each inode is named by another one or by the orphan file.
    named: HashMap<Ino, u32>,
    /// Entries of `blocks`.
    in_blocks: usize,
    /// There were too many to be remembered, or some were not seen.
    crowded: bool,
}

impl Orphans {
    /// The list as the transaction leaves it.
    pub(super) fn note(&mut self, case: &Case<'_>, blocks: &BTreeMap<u64, Box<[u8]>>) {
        let per_inode = case.facts.inode_bytes;
        for (pblk, bytes) in blocks {
            match case.new.block(*pblk, pblk.saturating_add(1)).0 {
                Ok(Home::Superblock { backup: false }) => {
                    let at = 1024 % case.facts.block_bytes;
                    self.note_head(bytes.get(at..).unwrap_or_default());
                }
                Ok(Home::InodeTable { first_inode, .. }) => {
                    for (raw, ino) in bytes.chunks_exact(per_inode).zip(first_inode..) {
                        let next = RawInode(raw).next_orphan();
                        let next = (u64::from(next) <= case.facts.inodes).then_some(next);
                        self.link(ino, next.filter(|next| *next != 0));
                    }
                }
                Ok(Home::OrphanFile) => {
                    let body = bytes.get(..bytes.len().saturating_sub(8)).unwrap_or_default();
                    let inodes = body.chunks_exact(4).map(|raw| word(raw, 0));
                    self.fill(*pblk, inodes.filter(|ino| *ino != 0).collect());
                }
                _ => {}
            }
            if self.next.len() + self.in_blocks > ORPHANS_MAX {
                *self = Orphans { head: self.head, crowded: true, ..Orphans::default() };
            }
        }
    }

    /// The inode's link leads there now.
    fn link(&mut self, ino: Ino, next: Option<Ino>) {
        let old = match next {
            Some(next) => self.next.insert(ino, next),
            None if self.next.is_empty() => None,
            None => self.next.remove(&ino),
        };
        if old != next {
            if let Some(ino) = old {
                self.unname(ino);
            }
            if let Some(ino) = next {
                self.name(ino);
            }
        }
    }

    /// A block of the orphan file names these now.
    fn fill(&mut self, pblk: u64, inodes: Vec<Ino>) {
        for ino in &inodes {
            self.name(*ino);
        }
        self.in_blocks += inodes.len() + 1;
        if let Some(old) = self.blocks.insert(pblk, inodes) {
            self.in_blocks -= old.len() + 1;
            for ino in old {
                self.unname(ino);
            }
        }
    }

    fn name(&mut self, ino: Ino) {
        *self.named.entry(ino).or_default() += 1;
    }

    fn unname(&mut self, ino: Ino) {
        if let Some(count) = self.named.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                self.named.remove(&ino);
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
            || self.named.contains_key(&ino)
    }

    pub(super) fn heap_bytes(&self) -> usize {
        (self.next.capacity() + self.named.capacity()) * 9
            + self.blocks.capacity() * 33
            + self.in_blocks * 4
    }
}
