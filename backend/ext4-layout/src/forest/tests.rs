//! Trees made by hand: growing, splitting, and those that no sound file system has.

use super::*;
use crate::class::Written;
use crate::superblock::Superblock;
use crate::superblock::tests::sample;

fn geometry() -> Geometry {
    Superblock::parse(&sample(), 24_577 * 1024).unwrap().geometry
}

fn extent(lblk: u32, pblk: u64, len: u32) -> Extent {
    Extent { lblk, len, pblk, state: Written::Written }
}

fn inode(root: Mapping) -> Inode {
    let (usage, tree) = (Use::Data, Tree::Extents);
    Inode { usage, tree, generation: 0, root, xattr_block: None }
}

fn leaf(extents: &[Extent]) -> Mapping {
    Mapping { extents: extents.into(), children: Box::default() }
}

fn index(children: &[(u64, u32)], depth: u16) -> Mapping {
    let child = |(pblk, lblk): &(u64, u32)| Child { pblk: *pblk, lblk: *lblk, depth };
    Mapping { extents: Box::default(), children: children.iter().map(child).collect() }
}

/// The bytes of an extent node of 1 KiB.
fn node(depth: u16, entries: &[(u32, u64, u16)]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    let header = [0xf30a, entries.len() as u16, 84, depth];
    for (at, half) in header.into_iter().enumerate() {
        bytes[at * 2..at * 2 + 2].copy_from_slice(&half.to_le_bytes());
    }
    for (entry, (lblk, pblk, len)) in bytes[12..].chunks_exact_mut(12).zip(entries) {
        entry[..4].copy_from_slice(&lblk.to_le_bytes());
        if depth == 0 {
            entry[4..6].copy_from_slice(&len.to_le_bytes());
            entry[8..12].copy_from_slice(&(*pblk as u32).to_le_bytes());
        } else {
            entry[4..8].copy_from_slice(&(*pblk as u32).to_le_bytes());
        }
    }
    bytes
}

struct Trees {
    forest: Forest,
    runs: Runs,
    geometry: Geometry,
}

impl Trees {
    fn new() -> Trees {
        let geometry = geometry();
        let runs = Runs::new(geometry.blocks_count);
        Trees { forest: Forest::default(), runs, geometry }
    }

    fn inode(&mut self, ino: Ino, inode: impl Into<Option<Inode>>) {
        self.forest.set_inode(&mut self.runs, ino, inode.into());
    }

    fn node(&mut self, pblk: u64, bytes: &[u8]) {
        self.forest.set_node(&mut self.runs, &self.geometry, pblk, bytes);
    }

    fn owner(&self, pblk: u64) -> Option<(Ino, Role, u32)> {
        let (owner, _) = self.runs.at(pblk, pblk + 1);
        owner.map(|owner| (owner.ino, owner.role, owner.lblk))
    }

    fn owned(&self) -> usize {
        (1..self.geometry.blocks_count).filter(|pblk| self.owner(*pblk).is_some()).count()
    }
}

const DATA: Role = Role::Data(Written::Written);

#[test]
fn a_root_that_moves_into_a_block_keeps_its_data() {
    let mut trees = Trees::new();
    trees.inode(12, inode(leaf(&[extent(0, 500, 4), extent(9, 600, 1)])));
    assert_eq!(trees.owner(503), Some((12, DATA, 3)));
    trees.inode(12, inode(index(&[(700, 0)], 0)));
    assert_eq!(trees.forest.next_wanted(), Some(700));
    trees.node(700, &node(0, &[(0, 500, 4), (9, 600, 1)]));
    trees.forest.end_batch();
    assert_eq!(trees.owner(503), Some((12, DATA, 3)));
    assert_eq!(trees.owner(700), Some((12, Role::ExtentNode { depth: 0 }, 0)));
    assert!(!trees.forest.has_unknown_nodes());
}

#[test]
fn a_tree_that_grows_keeps_leaves_that_are_not_written_again() {
    for root_first in [true, false] {
        let mut trees = Trees::new();
        trees.inode(12, inode(index(&[(700, 0), (701, 50)], 0)));
        trees.node(700, &node(0, &[(0, 500, 40)]));
        trees.node(701, &node(0, &[(50, 560, 32_769 - 32_768)]));
        trees.forest.end_batch();
        let grown = inode(index(&[(702, 0)], 1));
        let block = node(1, &[(0, 700, 0), (50, 701, 0)]);
        trees.inode(12, grown);
        if root_first {
            assert_eq!(trees.forest.next_wanted(), Some(702));
        }
        trees.node(702, &block);
        trees.forest.end_batch();
        assert!(!trees.forest.has_unknown_nodes());
        assert_eq!(trees.owner(539), Some((12, DATA, 39)));
        assert_eq!(trees.owner(560), Some((12, DATA, 50)));
        assert_eq!(trees.owned(), 40 + 1 + 3);
    }
}

#[test]
fn a_leaf_that_splits_loses_nothing_in_either_order() {
    for new_first in [true, false] {
        let mut trees = Trees::new();
        trees.inode(12, inode(index(&[(700, 0)], 0)));
        trees.node(700, &node(0, &[(0, 500, 10), (20, 520, 10)]));
        trees.forest.end_batch();
        trees.inode(12, inode(index(&[(700, 0), (701, 20)], 0)));
        let old = node(0, &[(0, 500, 10)]);
        let new = node(0, &[(20, 520, 10)]);
        for first in [new_first, !new_first] {
            if first {
                trees.node(701, &new);
            } else {
                trees.node(700, &old);
            }
        }
        assert_eq!(trees.owner(525), Some((12, DATA, 25)));
        assert_eq!(trees.owned(), 22);
    }
}

#[test]
fn a_block_that_names_itself_or_its_parents_is_no_cycle() {
    let mut trees = Trees::new();
    trees.inode(12, inode(index(&[(700, 0)], 2)));
    trees.node(700, &node(2, &[(0, 700, 0), (5, 701, 0)]));
    trees.node(701, &node(1, &[(5, 700, 0), (6, 701, 0), (7, 702, 0)]));
    trees.node(702, &node(0, &[(7, 500, 1)]));
    trees.forest.end_batch();
    assert_eq!(trees.owner(500), Some((12, DATA, 7)));
    assert_eq!(trees.owned(), 4);
    trees.inode(12, None);
    assert_eq!(trees.owned(), 0);
}

#[test]
fn a_block_in_two_trees_belongs_to_the_last_that_named_it() {
    let mut trees = Trees::new();
    for ino in [12, 13] {
        trees.inode(ino, inode(index(&[(700, 0)], 0)));
        trees.node(700, &node(0, &[(0, 500, 2)]));
        trees.forest.end_batch();
    }
    assert_eq!(trees.owner(500), Some((13, DATA, 0)));
    trees.inode(12, None);
    assert_eq!(trees.owner(500), Some((13, DATA, 0)));
    trees.inode(13, None);
    assert_eq!(trees.owned(), 0);
}

#[test]
fn shared_attribute_blocks_belong_to_the_lowest_inode() {
    let mut trees = Trees::new();
    let with = |xattr_block| {
        let inode = inode(Mapping::default());
        Inode { xattr_block, ..inode }
    };
    trees.inode(13, with(Some(900)));
    trees.inode(12, with(Some(900)));
    assert_eq!(trees.owner(900), Some((12, Role::Xattr, 0)));
    trees.inode(12, None);
    assert_eq!(trees.owner(900), Some((13, Role::Xattr, 0)));
    trees.inode(13, with(None));
    assert_eq!(trees.owned(), 0);
}
