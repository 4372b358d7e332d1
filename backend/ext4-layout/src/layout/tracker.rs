//! What a layout keeps beside its map, and what blocks of metadata mean for both.
//!
//! In: blocks at their own place, in place or from a committed transaction. Out: changes of the
//! map, or that it can no longer follow.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::class::{Group, Home, Ino};
use crate::descriptor::Descriptor;
use crate::extent;
use crate::forest::Forest;
use crate::geometry::Geometry;
use crate::indirect;
use crate::inode::{GOOD_OLD_BYTES, Inode};
use crate::layout::candidates::Candidates;
use crate::layout::journal::Journal;
use crate::map::{FsMap, Spot};
use crate::superblock::{SUPERBLOCK_BYTES, Superblock, has_magic};

/// Levels of an extent tree: `EXT4_MAX_EXTENT_DEPTH` and the root.
const TREE_LEVELS: usize = 6;

/// What became of the map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) changed: bool,
    /// The storage must be read again.
    pub(crate) reopen: bool,
    /// The superblock is gone.
    pub(crate) gone: bool,
}

impl Effect {
    pub(crate) const CHANGED: Effect = Effect { changed: true, reopen: false, gone: false };
    pub(crate) const REOPEN: Effect = Effect { changed: false, reopen: true, gone: false };
    const GONE: Effect = Effect { changed: true, reopen: true, gone: true };

    fn changed(changed: bool) -> Effect {
        Effect { changed, ..Effect::default() }
    }
}

impl std::ops::BitOrAssign for Effect {
    fn bitor_assign(&mut self, other: Effect) {
        self.changed |= other.changed;
        self.reopen |= other.reopen;
        self.gone |= other.gone;
    }
}

/// A part of a block, from `offset` bytes into it on.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) pblk: u64,
    pub(crate) offset: usize,
    pub(crate) bytes: &'a [u8],
}

impl<'a> Part<'a> {
    /// The bytes, if they are all of the block.
    pub(crate) fn full(&self, block_bytes: usize) -> Option<&'a [u8]> {
        (self.bytes.len() == block_bytes).then_some(self.bytes)
    }
}

/// The owner's state of one file system.
#[derive(Debug)]
pub(crate) struct Tracker {
    /// The sound ones.
    descriptors: BTreeMap<Group, Descriptor>,
    forest: Forest,
    pub(crate) journal: Option<Journal>,
    candidates: Candidates,
    /// The primary superblock as last stored.
    superblock: [u8; SUPERBLOCK_BYTES],
    /// Bytes of the device that the file system may use.
    room_bytes: u64,
}

impl Tracker {
    pub(crate) fn new(
        descriptors: BTreeMap<Group, Descriptor>,
        forest: Forest,
        journal: Option<Journal>,
        superblock: &[u8; SUPERBLOCK_BYTES],
        room_bytes: u64,
    ) -> Tracker {
        let candidates = Candidates::default();
        Tracker { descriptors, forest, journal, candidates, superblock: *superblock, room_bytes }
    }

    /// Whether the bytes of a block decide anything about others.
    pub(crate) fn needs_bytes(fs: &FsMap, pblk: u64, block: &[u8]) -> bool {
        match fs.home(pblk) {
            Home::Superblock { backup: false }
            | Home::BlockBitmap { .. }
            | Home::InodeTable { .. }
            | Home::ExtentNode { .. }
            | Home::IndirectBlock { .. } => true,
            Home::GroupDescriptors { .. } => fs.geometry.gdt_index(pblk).is_some(),
            Home::Free | Home::Unknown => looks_like_node(block, &fs.geometry),
            _ => false,
        }
    }

    /// A transaction took effect: `blocks` hold these bytes now.
    pub(crate) fn commit(&mut self, fs: &mut FsMap, blocks: &BTreeMap<u64, Box<[u8]>>) -> Effect {
        let mut effect = Effect::default();
        for (pblk, bytes) in blocks {
            effect |= self.take_placed(fs, Part { pblk: *pblk, offset: 0, bytes });
        }
        // A tree that grew or shrank takes its blocks in again with what they held before: those
        // that the transaction changed as well are told once more, level by level.
        for _ in 0..TREE_LEVELS {
            let mut changed = Effect::default();
            for (pblk, bytes) in blocks {
                changed |= self.take_node(fs, *pblk, bytes);
            }
            changed |= self.follow(fs, |pblk| blocks.get(&pblk).cloned());
            effect |= changed;
            if changed == Effect::default() {
                break;
            }
        }
        self.end(fs);
        effect
    }

    /// A write at a block's own place is stored.
    pub(crate) fn take(&mut self, fs: &mut FsMap, part: Part<'_>) -> Effect {
        let full = part.full(fs.geometry.block_bytes());
        let superblock = part.pblk == fs.geometry.superblock_block();
        if let Some(journal) = &mut self.journal
            && journal.covers(part.pblk, full)
            && !superblock
        {
            return Effect::default();
        }
        let mut effect = self.take_placed(fs, part);
        if self.forest.has_node(part.pblk) {
            effect |= match full {
                Some(block) => self.take_node(fs, part.pblk, block),
                // The rest of the node is not kept here.
                None => Effect::REOPEN,
            };
        } else if fs.any_write_counts() {
            self.candidates.forget(part.pblk);
            if let Some(block) = full.filter(|block| looks_like_node(block, &fs.geometry)) {
                self.candidates.keep(part.pblk, block);
            }
        }
        effect
    }

    /// Ends a write: trees that grew are followed to blocks seen earlier.
    pub(crate) fn end_write(&mut self, fs: &mut FsMap) -> Effect {
        let effect = self.follow(fs, |_| None);
        self.end(fs);
        effect
    }

    /// Blocks of the range hold nothing that was seen earlier.
    pub(crate) fn forget(&mut self, from: u64, to: u64) {
        self.candidates.forget_range(from, to);
    }

    /// Takes in blocks that trees have newly named.
    fn follow(&mut self, fs: &mut FsMap, fetch: impl Fn(u64) -> Option<Box<[u8]>>) -> Effect {
        let mut effect = Effect::default();
        while let Some(pblk) = self.forest.next_wanted() {
            let kept = self.candidates.take(pblk);
            match fetch(pblk).or(kept) {
                Some(block) => effect |= self.take_node(fs, pblk, &block),
                None => effect.reopen = true,
            }
        }
        effect
    }

    fn end(&mut self, fs: &mut FsMap) {
        self.forest.end_batch();
        fs.restless = self.forest.has_unknown_nodes();
        fs.full = self.forest.is_full();
    }

    fn take_node(&mut self, fs: &mut FsMap, pblk: u64, block: &[u8]) -> Effect {
        if !self.forest.has_node(pblk) {
            return Effect::default();
        }
        let geometry = Arc::clone(&fs.geometry);
        Effect::changed(self.forest.set_node(&mut fs.runs, &geometry, pblk, block))
    }

    /// Metadata whose place is known without looking at inodes.
    fn take_placed(&mut self, fs: &mut FsMap, part: Part<'_>) -> Effect {
        let (Spot::Home(home), _) = fs.at(part.pblk, part.pblk.saturating_add(1)) else {
            return Effect::default();
        };
        match home {
            Home::Superblock { backup: false } => self.take_superblock(fs, part),
            Home::GroupDescriptors { .. } => match fs.geometry.gdt_index(part.pblk) {
                Some(index) => self.take_descriptors(fs, index, part),
                None => Effect::default(),
            },
            Home::BlockBitmap { group } => {
                let uninit = self.descriptors.get(&group).is_none_or(|found| found.block_uninit);
                let changed = !uninit && fs.bitmaps.patch(group, part.offset, part.bytes);
                self.note_bitmap(group, part, uninit);
                Effect::changed(changed)
            }
            Home::InodeTable { group, first_inode, .. } => {
                self.take_inodes(fs, group, first_inode, part)
            }
            _ => Effect::default(),
        }
    }

    /// A bitmap that its descriptor calls uninitialised: the descriptor may say otherwise later.
    fn note_bitmap(&mut self, group: Group, part: Part<'_>, uninit: bool) {
        if uninit && self.descriptors.contains_key(&group) {
            self.candidates.keep(part.pblk, part.bytes);
        }
    }

    fn take_superblock(&mut self, fs: &FsMap, part: Part<'_>) -> Effect {
        let start = 1024 % fs.geometry.block_bytes();
        let (from, to) = (part.offset.max(start), part.offset + part.bytes.len());
        let to = to.min(start + SUPERBLOCK_BYTES);
        if from >= to {
            return Effect::default();
        }
        let new = &part.bytes[from - part.offset..to - part.offset];
        self.superblock[from - start..to - start].copy_from_slice(new);
        if !has_magic(&self.superblock) {
            return Effect::GONE;
        }
        match Superblock::parse(&self.superblock, self.room_bytes) {
            Ok(new) if new.geometry == *fs.geometry => Effect::default(),
            Ok(_) => Effect::REOPEN,
            // Torn, or on its way to something else: the old one stands until a sound one comes.
            Err(_) => Effect::default(),
        }
    }

    fn take_descriptors(&mut self, fs: &mut FsMap, index: u32, part: Part<'_>) -> Effect {
        let geometry = Arc::clone(&fs.geometry);
        let bytes = geometry.desc_bytes;
        let skipped = part.offset.div_ceil(bytes);
        let Some(aligned) = part.bytes.get(skipped * bytes - part.offset..) else {
            return Effect::default();
        };
        let first = index * geometry.descs_per_block + skipped as u32;
        let mut effect = Effect::default();
        for (raw, group) in aligned.chunks_exact(bytes).zip(first..geometry.groups) {
            let new = Descriptor::parse(raw, &geometry, group);
            let old = match new {
                Some(new) => self.descriptors.insert(group, new),
                None => self.descriptors.remove(&group),
            };
            effect |= match (old, new) {
                (Some(old), Some(new)) if old.same_places(&new) => {
                    self.flags_changed(fs, group, old, new)
                }
                (None, None) => Effect::default(),
                // Other places, or a descriptor that became usable or ceased to be.
                _ => Effect::REOPEN,
            };
        }
        effect
    }

    fn flags_changed(
        &mut self,
        fs: &mut FsMap,
        group: Group,
        old: Descriptor,
        new: Descriptor,
    ) -> Effect {
        match (old.block_uninit, new.block_uninit) {
            (false, true) => {
                fs.bitmaps.clear(group);
                Effect::CHANGED
            }
            (true, false) => match self.candidates.take(new.block_bitmap) {
                Some(bitmap) => Effect::changed(fs.bitmaps.patch(group, 0, &bitmap)),
                // The bitmap comes later in the same transaction or write, or was on disk before.
                None => Effect::default(),
            },
            _ => Effect::default(),
        }
    }

    fn take_inodes(
        &mut self,
        fs: &mut FsMap,
        group: Group,
        first_inode: Ino,
        part: Part<'_>,
    ) -> Effect {
        let geometry = Arc::clone(&fs.geometry);
        let bytes = geometry.inode_bytes;
        let mut changed = false;
        let end = (group + 1).saturating_mul(geometry.inodes_per_group);
        let skipped = part.offset.div_ceil(bytes);
        let mut at = skipped * bytes - part.offset;
        let mut ino = first_inode.saturating_add(skipped as Ino);
        while let Some(raw) = part.bytes.get(at..).filter(|raw| raw.len() >= GOOD_OLD_BYTES) {
            if ino > end {
                break;
            }
            let inode = Inode::parse(&raw[..raw.len().min(bytes)], &geometry, ino);
            changed |= self.forest.set_inode(&mut fs.runs, ino, inode);
            at += bytes;
            ino += 1;
        }
        Effect::changed(changed)
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        // A node of the map is between half full and full.
        self.descriptors.len() * size_of::<(Group, Descriptor)>() * 3 / 2
            + self.forest.heap_bytes()
            + self.candidates.heap_bytes()
            + self.journal.as_ref().map_or(0, Journal::heap_bytes)
    }
}

fn looks_like_node(block: &[u8], geometry: &Geometry) -> bool {
    extent::looks_like_node(block) || indirect::looks_like_node(block, geometry)
}
