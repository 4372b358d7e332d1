//! Where the metadata is whose place follows from the superblock alone, by arithmetic:
//! superblocks, group descriptors, blocks reserved for descriptors.
//!
//! In: a checked superblock. Out: group arithmetic and [`Geometry::base_at`].
//! Must not know: descriptors' contents, bitmaps, inodes.

use crate::class::{Group, Home, Ino};

/// What is fixed while a file system is in use; two file systems with equal geometry have the
/// same blocks in the same places up to the contents of their descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// log2 of the block size in bytes, 10 to 16.
    pub(crate) block_bits: u32,
    pub(crate) blocks_count: u64,
    pub(crate) first_data_block: u64,
    pub(crate) blocks_per_group: u32,
    /// log2 of the blocks in a cluster; 0 without bigalloc.
    pub(crate) cluster_bits: u32,
    pub(crate) groups: u32,
    pub(crate) inodes_per_group: u32,
    pub(crate) inode_bytes: usize,
    pub(crate) desc_bytes: usize,
    pub(crate) descs_per_block: u32,
    /// Blocks of one copy of all descriptors.
    pub(crate) gdt_blocks: u32,
    pub(crate) reserved_gdt_blocks: u32,
    /// First meta block group, with `meta_bg`.
    pub(crate) first_meta_bg: Option<u32>,
    pub(crate) sparse_super: bool,
    /// `s_backup_bgs`, with `sparse_super2`; 0 is none.
    pub(crate) sparse_super2: Option<[u32; 2]>,
    /// `BLOCK_UNINIT`, `INODE_UNINIT` and `bg_itable_unused` count (`gdt_csum`, `metadata_csum`).
    pub(crate) uninit_groups: bool,
    pub(crate) mmp_block: Option<u64>,
    pub(crate) journal_inode: Option<Ino>,
    pub(crate) orphan_inode: Option<Ino>,
    /// Seed of metadata checksums, with `metadata_csum`.
    pub(crate) checksum_seed: Option<u32>,
    pub(crate) uuid: [u8; 16],
    /// compat, incompat and ro_compat, without the bits that a mount sets and clears.
    pub(crate) features: [u32; 3],
}

/// Metadata at the start of a group, as offsets in blocks from the group's first block.
struct Base {
    superblock: Option<u64>,
    gdt: (u64, u64),
    reserved: (u64, u64),
}

impl Geometry {
    pub(crate) fn block_bytes(&self) -> usize {
        1 << self.block_bits
    }

    /// Whether the block belongs to the file system.
    pub(crate) fn contains(&self, pblk: u64) -> bool {
        (self.first_data_block..self.blocks_count).contains(&pblk)
    }

    /// Whether all of the range belongs to the file system.
    pub(crate) fn contains_run(&self, pblk: u64, len: u64) -> bool {
        self.contains(pblk) && len <= self.blocks_count - pblk
    }

    /// The group of a block of the file system.
    pub(crate) fn group_of(&self, pblk: u64) -> Group {
        let (at, size) = (pblk - self.first_data_block, self.blocks_per_group);
        // It nearly always is, and every request of a disk comes through here.
        let group =
            if size.is_power_of_two() { at >> size.trailing_zeros() } else { at / u64::from(size) };
        group as u32
    }

    pub(crate) fn group_first(&self, group: Group) -> u64 {
        self.first_data_block + u64::from(group) * u64::from(self.blocks_per_group)
    }

    /// One past the last block of a group.
    pub(crate) fn group_end(&self, group: Group) -> u64 {
        (self.group_first(group) + u64::from(self.blocks_per_group)).min(self.blocks_count)
    }

    pub(crate) fn inodes_count(&self) -> u64 {
        u64::from(self.groups) * u64::from(self.inodes_per_group)
    }

    /// Blocks of one group's inode table.
    pub(crate) fn inode_table_blocks(&self) -> u32 {
        ((u64::from(self.inodes_per_group) * self.inode_bytes as u64)
            .div_ceil(self.block_bytes() as u64)) as u32
    }

    pub(crate) fn inodes_per_block(&self) -> u32 {
        (self.block_bytes() / self.inode_bytes) as u32
    }

    /// `ext4_bg_has_super`.
    fn has_superblock(&self, group: Group) -> bool {
        if group == 0 {
            return true;
        }
        if let Some(backups) = self.sparse_super2 {
            return backups.contains(&group);
        }
        let power_of = |base: u32| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        // Powers of odd numbers are odd.
        let odd = !group.is_multiple_of(2);
        !self.sparse_super || group == 1 || (odd && [3, 5, 7].into_iter().any(power_of))
    }

    fn base(&self, group: Group) -> Base {
        let has_superblock = self.has_superblock(group);
        // With 1 KiB blocks and bigalloc, block 0 belongs to group 0 and holds the boot sector.
        let shift = u64::from(group == 0 && self.block_bits == 10 && self.first_data_block == 0);
        let after = if has_superblock { shift + 1 } else { 0 };
        let in_meta_bg =
            self.first_meta_bg.is_some_and(|first| group / self.descs_per_block >= first);
        let (gdt, reserved) = if in_meta_bg {
            let place = group % self.descs_per_block;
            (u64::from(place <= 1 || place == self.descs_per_block - 1), 0)
        } else if has_superblock {
            let gdt = self.first_meta_bg.unwrap_or(self.gdt_blocks);
            (u64::from(gdt), u64::from(self.reserved_gdt_blocks))
        } else {
            (0, 0)
        };
        Base {
            superblock: has_superblock.then_some(shift),
            gdt: (after, after + gdt),
            reserved: (after + gdt, after + gdt + reserved),
        }
    }

    /// The class of a block from geometry alone, if it has one, and a block (exclusive) up to
    /// which the answer holds. The block must belong to the file system.
    pub(crate) fn base_at(&self, pblk: u64) -> (Option<Home>, u64) {
        let group = self.group_of(pblk);
        let first = self.group_first(group);
        let end = self.group_end(group);
        let base = self.base(group);
        let at = pblk - first;
        let until = |offset: u64| (first + offset).min(end);
        let backup = group != 0;
        if let Some(superblock) = base.superblock {
            if at < superblock {
                return (Some(Home::Unknown), until(superblock));
            }
            if at == superblock {
                return (Some(Home::Superblock { backup }), until(at + 1));
            }
        }
        if (base.gdt.0..base.gdt.1).contains(&at) {
            let meta = self.first_meta_bg.is_some_and(|meta| group / self.descs_per_block >= meta);
            let backup = if meta { !group.is_multiple_of(self.descs_per_block) } else { backup };
            return (Some(Home::GroupDescriptors { backup }), until(base.gdt.1));
        }
        if (base.reserved.0..base.reserved.1).contains(&at) {
            return (Some(Home::ReservedGdt), until(base.reserved.1));
        }
        let limit = match base.superblock {
            None if at < base.gdt.0 => until(base.gdt.0),
            _ => end,
        };
        (None, limit)
    }

    /// The place of block `index` of the primary descriptors, if the file system has it.
    pub(crate) fn gdt_block(&self, index: u32) -> Option<u64> {
        if index >= self.gdt_blocks {
            return None;
        }
        let pblk = if self.first_meta_bg.is_some_and(|first| index >= first) {
            let group = index.checked_mul(self.descs_per_block)?;
            self.group_first(group) + self.base(group).gdt.0
        } else {
            self.group_first(0) + self.base(0).gdt.0 + u64::from(index)
        };
        self.contains(pblk).then_some(pblk)
    }

    /// The index, in the primary descriptors, of the block at `pblk`.
    pub(crate) fn gdt_index(&self, pblk: u64) -> Option<u32> {
        if !self.contains(pblk) {
            return None;
        }
        let start = self.group_first(0) + self.base(0).gdt.0;
        let flat = pblk.checked_sub(start).and_then(|index| u32::try_from(index).ok());
        let meta = self.group_of(pblk) / self.descs_per_block;
        [flat, Some(meta)].into_iter().flatten().find(|index| self.gdt_block(*index) == Some(pblk))
    }

    /// The block that holds the primary superblock.
    pub(crate) fn superblock_block(&self) -> u64 {
        1024 >> self.block_bits
    }

    /// The inode numbers stored in block `index` of a group's inode table.
    pub(crate) fn inodes_of_table_block(&self, group: Group, index: u32) -> (Ino, Ino) {
        let per_block = u64::from(self.inodes_per_block());
        let first = u64::from(group) * u64::from(self.inodes_per_group);
        let start = u64::from(index) * per_block;
        let end = (start + per_block).min(u64::from(self.inodes_per_group)).max(start + 1);
        ((first + start + 1) as u32, (first + end) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::superblock::Superblock;
    use crate::superblock::tests::sample;

    fn geometry() -> Geometry {
        Superblock::parse(&sample(), 24_577 * 1024).unwrap().geometry
    }

    /// The class of each block from `first` on, as far as arithmetic goes.
    fn homes(geometry: &Geometry, first: u64, blocks: u64) -> Vec<Option<Home>> {
        let mut homes = Vec::new();
        let mut at = first;
        while at < first + blocks {
            let (home, end) = geometry.base_at(at);
            assert!(end > at);
            for _ in at..end.min(first + blocks) {
                homes.push(home);
            }
            at = end;
        }
        homes
    }

    #[test]
    fn backups_are_where_sparse_super_has_them() {
        let geometry = Geometry { groups: 130, ..geometry() };
        let groups: Vec<Group> = (0..130).filter(|group| geometry.has_superblock(*group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
        let all = Geometry { sparse_super: false, ..geometry.clone() };
        assert!((0..130).all(|group| all.has_superblock(group)));
        let two = Geometry { sparse_super2: Some([1, 129]), ..geometry };
        let groups: Vec<Group> = (0..130).filter(|group| two.has_superblock(*group)).collect();
        assert_eq!(groups, [0, 1, 129]);
    }

    #[test]
    fn a_group_starts_with_superblock_descriptors_and_reserve() {
        let start = homes(&geometry(), 8193, 10);
        let mut expected = vec![
            Some(Home::Superblock { backup: true }),
            Some(Home::GroupDescriptors { backup: true }),
        ];
        expected.extend([Some(Home::ReservedGdt); 7]);
        expected.push(None);
        assert_eq!(start, expected);
        assert_eq!(homes(&geometry(), 16_385, 3), [None; 3]);
    }

    #[test]
    fn meta_block_groups_hold_their_own_descriptors() {
        let geometry = Geometry {
            first_meta_bg: Some(0),
            descs_per_block: 16,
            groups: 40,
            gdt_blocks: 3,
            reserved_gdt_blocks: 0,
            blocks_count: 40 * 8192 + 1,
            ..geometry()
        };
        let descriptors = |group| {
            let first = geometry.group_first(group);
            let homes = homes(&geometry, first, 4);
            homes.iter().position(|home| matches!(home, Some(Home::GroupDescriptors { .. })))
        };
        assert_eq!(
            [0, 1, 2, 15, 16, 17, 31, 32].map(descriptors),
            [Some(1), Some(1), None, Some(0), Some(0), Some(0), Some(0), Some(0)]
        );
        let primary: Vec<_> = (0..3).map(|index| geometry.gdt_block(index)).collect();
        assert_eq!(primary, [Some(2), Some(16 * 8192 + 1), Some(32 * 8192 + 1)]);
        for index in 0..3 {
            let pblk = geometry.gdt_block(index).unwrap();
            assert_eq!(geometry.gdt_index(pblk), Some(index));
            assert_eq!(geometry.gdt_index(pblk + 8192), None);
        }
        assert_eq!(geometry.gdt_block(3), None);
    }
}
