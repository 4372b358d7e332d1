//! The trees that inodes map their blocks with: which block is whose, and what follows when one
//! block of a tree changes.
//!
//! In: parsed inodes and the bytes of tree blocks, in any order. Out: claims and releases on
//! [`Runs`], and the tree blocks whose bytes are wanted. The work is proportional to the entries
//! that changed: each block of a tree makes its own claims.
//! Must not know: where bytes come from, block bitmaps.
//!
//! Depth strictly decreases from a block to its children, and a block is in one tree at most (the
//! last that named it), so there are no cycles whatever the bytes say.

use std::collections::{BTreeMap, BTreeSet};

use crate::class::Ino;
use crate::extent;
use crate::geometry::Geometry;
use crate::indirect;
use crate::inode::{Inode, Use};
use crate::mapping::{Child, Extent, Mapping, Tree};
use crate::runs::{Owner, Role, Runs, Source};

/// Inodes, blocks of trees and their entries kept at most, which is two million files of one extent
/// (about 240 MiB), and half a GiB in the worst case. The blocks of what is beyond them stay without
/// an owner.
const ENTRIES_MAX: usize = 1 << 22;

/// A block of a tree, named by its parent.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    ino: Ino,
    usage: Use,
    tree: Tree,
    generation: u32,
    depth: u16,
    lblk: u32,
    parent: Source,
    /// `None` until its bytes are known and sound.
    content: Option<Mapping>,
}

/// All trees of a file system.
#[derive(Debug, Default)]
pub(crate) struct Forest {
    inodes: BTreeMap<Ino, Inode>,
    nodes: BTreeMap<u64, Node>,
    /// References to extended attribute blocks, which inodes may share.
    xattrs: BTreeSet<(u64, Ino)>,
    /// Blocks that left a tree in this batch, for when they come back elsewhere in it.
    limbo: BTreeMap<u64, Node>,
    wanted: Vec<u64>,
    /// Nodes without content.
    unknown: usize,
    /// Entries of inodes and nodes.
    entries: usize,
    /// Something was left out.
    full: bool,
}

impl Forest {
    /// Replaces what is known of an inode; `None` when it owns nothing. Returns whether anything
    /// changed.
    pub(crate) fn set_inode(&mut self, runs: &mut Runs, ino: Ino, new: Option<Inode>) -> bool {
        let old = self.inodes.remove(&ino);
        if old == new {
            if let Some(inode) = new {
                self.inodes.insert(ino, inode);
            }
            return false;
        }
        let size = |inode: &Option<Inode>| inode.as_ref().map_or(0, |inode| inode.root.len());
        self.entries = self.entries.saturating_sub(size(&old));
        let more = size(&new) + usize::from(new.is_some());
        let new = new.filter(|_| self.count() + more <= ENTRIES_MAX);
        self.full |= new.is_none() && more > 0;
        self.entries += size(&new);
        let source = Source::inode(ino);
        let same_tree = match (&old, &new) {
            (Some(old), Some(new)) => {
                (old.usage, old.tree, old.generation) == (new.usage, new.tree, new.generation)
            }
            _ => false,
        };
        let empty = Mapping::default();
        let old_root = old.as_ref().map_or(&empty, |inode| &inode.root);
        let new_root = new.as_ref().map_or(&empty, |inode| &inode.root);
        let kept = if same_tree { old_root } else { &empty };
        if !same_tree {
            self.drop_mapping(runs, source, old_root);
        }
        if let Some(inode) = &new {
            let tree = Context::of_inode(ino, inode);
            self.replace(runs, source, &tree, kept, new_root);
        }
        let old_xattr = old.as_ref().and_then(|inode| inode.xattr_block);
        let new_xattr = new.as_ref().and_then(|inode| inode.xattr_block);
        if old_xattr != new_xattr {
            self.move_xattr(runs, ino, old_xattr, new_xattr);
        }
        if let Some(inode) = new {
            self.inodes.insert(ino, inode);
        }
        true
    }

    /// Whether the block is one of a tree.
    pub(crate) fn has_node(&self, pblk: u64) -> bool {
        self.nodes.contains_key(&pblk)
    }

    /// Takes the bytes of a tree block. Returns whether anything changed.
    pub(crate) fn set_node(
        &mut self,
        runs: &mut Runs,
        geometry: &Geometry,
        pblk: u64,
        bytes: &[u8],
    ) -> bool {
        let Some(node) = self.nodes.get_mut(&pblk) else {
            return false;
        };
        let new = node.parse(geometry, bytes);
        if node.content == new {
            return false;
        }
        if node.content.is_none() {
            self.unknown -= 1;
        }
        let old = node.content.take().unwrap_or_default();
        let context = Context::of_node(node);
        self.entries = self.entries.saturating_sub(old.len());
        let room = ENTRIES_MAX.saturating_sub(self.count());
        let fits = |mapping: &Mapping| mapping.len() <= room;
        self.full |= new.as_ref().is_some_and(|mapping| !fits(mapping));
        let new = new.map(|mapping| if fits(&mapping) { mapping } else { Mapping::default() });
        let empty = Mapping::default();
        self.replace(runs, Source::node(pblk), &context, &old, new.as_ref().unwrap_or(&empty));
        match &new {
            Some(mapping) => self.entries += mapping.len(),
            None => self.unknown += 1,
        }
        if let Some(node) = self.nodes.get_mut(&pblk) {
            node.content = new;
        }
        true
    }

    /// What counts towards the bound.
    fn count(&self) -> usize {
        self.entries + self.inodes.len() + self.nodes.len()
    }

    /// Whether something was left out, as it was too much: blocks in use may have an owner that is
    /// not known.
    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    /// Whether some tree blocks have no known content.
    pub(crate) fn has_unknown_nodes(&self) -> bool {
        self.unknown > 0
    }

    /// The next tree block whose bytes are not known.
    pub(crate) fn next_wanted(&mut self) -> Option<u64> {
        while let Some(pblk) = self.wanted.pop() {
            if self.nodes.get(&pblk).is_some_and(|node| node.content.is_none()) {
                return Some(pblk);
            }
        }
        None
    }

    /// Ends a batch: blocks that left their tree in it are forgotten.
    pub(crate) fn end_batch(&mut self) {
        self.limbo.clear();
    }

    fn replace(
        &mut self,
        runs: &mut Runs,
        source: Source,
        context: &Context,
        old: &Mapping,
        new: &Mapping,
    ) {
        let (gone, come) = differing(&old.extents, &new.extents);
        for extent in gone {
            runs.release(extent.pblk, extent.len.into(), source);
        }
        for extent in come {
            runs.claim(extent.pblk, extent.len.into(), context.owner(extent), source);
        }
        let (gone, come) = differing(&old.children, &new.children);
        for child in gone {
            self.detach(runs, source, child.pblk);
        }
        for child in come {
            self.attach(runs, source, context, *child);
        }
    }

    fn drop_mapping(&mut self, runs: &mut Runs, source: Source, mapping: &Mapping) {
        for extent in &mapping.extents {
            runs.release(extent.pblk, extent.len.into(), source);
        }
        for child in &mapping.children {
            self.detach(runs, source, child.pblk);
        }
    }

    fn attach(&mut self, runs: &mut Runs, parent: Source, context: &Context, child: Child) {
        let pblk = child.pblk;
        if self.is_above(parent, pblk) {
            return;
        }
        if self.count() >= ENTRIES_MAX {
            self.full = true;
            return;
        }
        if let Some(node) = self.nodes.get(&pblk) {
            let from = node.parent;
            self.detach(runs, from, pblk);
        }
        let mut node = Node {
            ino: context.ino,
            usage: context.usage,
            tree: context.tree,
            generation: context.generation,
            depth: child.depth,
            lblk: child.lblk,
            parent,
            content: None,
        };
        let owner = Owner { role: node.role(), ino: node.ino, lblk: 0 };
        runs.claim(pblk, 1, owner, Source::node(pblk));
        let known = self.limbo.remove(&pblk);
        let Some(known) = known.filter(|known| known.same_place(&node)) else {
            self.nodes.insert(pblk, node);
            self.unknown += 1;
            self.wanted.push(pblk);
            return;
        };
        let mapping = known.content.unwrap_or_default();
        self.entries += mapping.len();
        let below = Context::of_node(&node);
        node.content = Some(Mapping::default());
        self.nodes.insert(pblk, node);
        self.replace(runs, Source::node(pblk), &below, &Mapping::default(), &mapping);
        if let Some(node) = self.nodes.get_mut(&pblk) {
            node.content = Some(mapping);
        }
    }

    /// Takes a block out of its tree, if it is still its parent's.
    fn detach(&mut self, runs: &mut Runs, parent: Source, pblk: u64) {
        if self.nodes.get(&pblk).is_none_or(|node| node.parent != parent) {
            return;
        }
        let Some(node) = self.nodes.remove(&pblk) else {
            return;
        };
        runs.release(pblk, 1, Source::node(pblk));
        match &node.content {
            Some(content) => {
                self.entries = self.entries.saturating_sub(content.len());
                self.drop_mapping(runs, Source::node(pblk), content);
                self.limbo.insert(pblk, node);
            }
            None => self.unknown -= 1,
        }
    }

    /// Whether the block `pblk` is `source` or one of the blocks on the way up from it.
    fn is_above(&self, source: Source, pblk: u64) -> bool {
        let mut at = source;
        while let Some(block) = at.as_node() {
            if block == pblk {
                return true;
            }
            let Some(node) = self.nodes.get(&block) else {
                return false;
            };
            at = node.parent;
        }
        false
    }

    fn move_xattr(&mut self, runs: &mut Runs, ino: Ino, old: Option<u64>, new: Option<u64>) {
        if let Some(pblk) = old {
            self.xattrs.remove(&(pblk, ino));
            self.claim_xattr(runs, pblk);
        }
        if let Some(pblk) = new {
            self.xattrs.insert((pblk, ino));
            self.claim_xattr(runs, pblk);
        }
    }

    fn claim_xattr(&mut self, runs: &mut Runs, pblk: u64) {
        match self.xattrs.range((pblk, 0)..=(pblk, Ino::MAX)).next() {
            Some((_, ino)) => {
                let owner = Owner { role: Role::Xattr, ino: *ino, lblk: 0 };
                runs.claim(pblk, 1, owner, Source::XATTR);
            }
            None => runs.release(pblk, 1, Source::XATTR),
        }
    }

    /// Bytes on the heap, nearly: the trees' own entries, and what their containers add.
    pub(crate) fn heap_bytes(&self) -> usize {
        let mapping = |mapping: &Mapping| {
            mapping.extents.len() * size_of::<Extent>()
                + mapping.children.len() * size_of::<Child>()
        };
        let inodes: usize = self.inodes.values().map(|inode| mapping(&inode.root)).sum();
        let contents = self.nodes.values().filter_map(|node| node.content.as_ref());
        let nodes: usize = contents.map(mapping).sum();
        let entry = |size: usize, count: usize| (size + size / 2) * count;
        inodes
            + nodes
            + entry(size_of::<(Ino, Inode)>(), self.inodes.len())
            + entry(size_of::<(u64, Node)>(), self.nodes.len())
            + entry(size_of::<(u64, Ino)>(), self.xattrs.len())
            + self.wanted.capacity() * size_of::<u64>()
    }
}

impl Node {
    fn role(&self) -> Role {
        match self.tree {
            Tree::Extents => Role::ExtentNode { depth: self.depth },
            Tree::Indirect => Role::Indirect,
        }
    }

    fn parse(&self, geometry: &Geometry, bytes: &[u8]) -> Option<Mapping> {
        match self.tree {
            Tree::Extents => {
                let sound = geometry.checksum_seed.is_none_or(|seed| {
                    extent::checksum_fits(bytes, seed, self.ino, self.generation)
                });
                if sound { extent::parse(bytes, geometry, Some(self.depth)) } else { None }
            }
            Tree::Indirect => Some(indirect::parse(bytes, geometry, self.depth, self.lblk)),
        }
    }

    /// Whether the same bytes would mean the same at the other place.
    fn same_place(&self, other: &Node) -> bool {
        let key = |node: &Node| (node.ino, node.tree, node.generation, node.depth, node.lblk);
        self.usage == other.usage && key(self) == key(other)
    }
}

/// What the entries of a block inherit from its tree.
struct Context {
    ino: Ino,
    usage: Use,
    tree: Tree,
    generation: u32,
}

impl Context {
    fn of_inode(ino: Ino, inode: &Inode) -> Context {
        Context { ino, usage: inode.usage, tree: inode.tree, generation: inode.generation }
    }

    fn of_node(node: &Node) -> Context {
        Context { ino: node.ino, usage: node.usage, tree: node.tree, generation: node.generation }
    }

    fn owner(&self, extent: &Extent) -> Owner {
        let role = match self.usage {
            Use::Data | Use::Nothing => Role::Data(extent.state),
            Use::Directory => Role::Directory,
            Use::Xattr => Role::Xattr,
            Use::Journal => Role::Log,
            Use::OrphanFile => Role::OrphanFile,
            Use::Resize => Role::Indirect,
        };
        Owner { role, ino: self.ino, lblk: extent.lblk }
    }
}

/// The parts in which two lists differ, common start and end left out.
fn differing<'a, T: PartialEq>(old: &'a [T], new: &'a [T]) -> (&'a [T], &'a [T]) {
    let start = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (old, new) = (&old[start..], &new[start..]);
    let end = old.iter().rev().zip(new.iter().rev()).take_while(|(old, new)| old == new).count();
    (&old[..old.len() - end], &new[..new.len() - end])
}

impl Mapping {
    fn len(&self) -> usize {
        self.extents.len() + self.children.len()
    }
}

#[cfg(test)]
mod tests;
