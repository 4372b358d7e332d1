//! Building a layout from a device.
//!
//! In: bytes of the device. Out: the map and what is needed to keep it current. Damage to a
//! descriptor, a bitmap or an inode costs the labels that depend on it; only a superblock that
//! cannot be used is an error.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::bits::Bitmaps;
use crate::class::{Group, Ino};
use crate::descriptor::Descriptor;
use crate::error::OpenError;
use crate::forest::Forest;
use crate::geometry::Geometry;
use crate::inode::Inode;
use crate::layout::disk::Disk;
use crate::layout::journal::Journal;
use crate::layout::replay;
use crate::layout::tracker::Tracker;
use crate::map::{FsMap, LayoutMap, SECTOR_BYTES};
use crate::partition::{self, Partition};
use crate::placed::Placed;
use crate::reader::ReadAt;
use crate::runs::Runs;
use crate::superblock::{SUPERBLOCK_BYTES, Superblock, has_magic};

/// Bytes of an inode table read at once.
const TABLE_CHUNK_BYTES: usize = 256 << 10;

/// A file system that was found.
pub(crate) struct Opened {
    pub(crate) map: LayoutMap,
    pub(crate) tracker: Tracker,
    pub(crate) bytes_read: u64,
}

/// Where a file system starts, in sectors, with its superblock as stored and parsed.
struct Found {
    base_sector: u64,
    raw: [u8; SUPERBLOCK_BYTES],
    superblock: Superblock,
}

/// The partitions of a device; none when it has no table.
pub(crate) fn partitions(
    dev: &mut dyn ReadAt,
    device_bytes: u64,
) -> Result<Vec<Partition>, OpenError> {
    let len = usize::try_from(device_bytes).unwrap_or(usize::MAX).min(partition::HEAD_BYTES);
    let mut head = vec![0; len];
    dev.read_at(0, &mut head)?;
    Ok(partition::parse(&head, device_bytes / SECTOR_BYTES))
}

/// Opens the file system on the whole device, or else the first in `partitions`.
pub(crate) fn open(
    dev: &mut dyn ReadAt,
    device_bytes: u64,
    partitions: &[Partition],
) -> Result<Opened, OpenError> {
    let Found { base_sector, raw, superblock } = find(dev, device_bytes, partitions)?;
    let base_bytes = base_sector * SECTOR_BYTES;
    let mut disk = Disk::new(dev, base_bytes, superblock.geometry.block_bytes());

    let mut geometry = superblock.geometry;
    let mut raw = raw;
    let mut journal = None;
    let mut log = None;
    if let Some(ino) = geometry.journal_inode {
        let replay = replay::read(&mut disk, &geometry, ino, superblock.needs_recovery)?;
        log.clone_from(&replay.log);
        disk.overlay(replay.copies.clone());
        journal = Some(Journal::new(replay));
        // The log may hold a newer superblock: the file system was being resized.
        let block = disk.block(geometry.superblock_block())?;
        let at = 1024 % geometry.block_bytes();
        let room = device_bytes - base_bytes;
        if let Ok(newer) = Superblock::parse(&block[at..], room)
            && newer.geometry.block_bits == geometry.block_bits
        {
            raw.copy_from_slice(&block[at..at + SUPERBLOCK_BYTES]);
            geometry = newer.geometry;
        }
    }

    let descriptors = read_descriptors(&mut disk, &geometry)?;
    let bitmaps = read_bitmaps(&mut disk, &geometry, &descriptors)?;
    let mut runs = Runs::new(geometry.blocks_count);
    let mut forest = Forest::default();
    for (group, descriptor) in &descriptors {
        read_inodes(&mut disk, &geometry, *group, descriptor, &mut |ino, inode| {
            forest.set_inode(&mut runs, ino, inode);
        })?;
    }
    while let Some(pblk) = forest.next_wanted() {
        let block = disk.block(pblk)?;
        forest.set_node(&mut runs, &geometry, pblk, &block);
    }
    forest.end_batch();

    let bytes_read = disk.bytes_read;
    let fs = FsMap {
        placed: Arc::new(Placed::new(&descriptors, &geometry)),
        geometry: Arc::new(geometry),
        bitmaps,
        runs,
        log,
        restless: forest.has_unknown_nodes(),
        full: forest.is_full(),
    };
    let map = LayoutMap {
        device_sectors: device_bytes / SECTOR_BYTES,
        base_sector,
        partitions: partitions.iter().map(|partition| partition.first).collect(),
        fs: Some(fs),
    };
    let tracker = Tracker::new(descriptors, forest, journal, &raw, device_bytes - base_bytes);
    Ok(Opened { map, tracker, bytes_read })
}

fn find(
    dev: &mut dyn ReadAt,
    device_bytes: u64,
    partitions: &[Partition],
) -> Result<Found, OpenError> {
    let device_sectors = device_bytes / SECTOR_BYTES;
    let whole = Partition { first: 0, sectors: device_sectors };
    for place in std::iter::once(&whole).chain(partitions) {
        if place.sectors < 4 {
            continue;
        }
        let mut raw = [0; SUPERBLOCK_BYTES];
        dev.read_at(place.first * SECTOR_BYTES + 1024, &mut raw)?;
        if has_magic(&raw) {
            let superblock = Superblock::parse(&raw, place.sectors * SECTOR_BYTES)?;
            return Ok(Found { base_sector: place.first, raw, superblock });
        }
    }
    Err(OpenError::NotExt4 {
        looked_at: if partitions.is_empty() {
            "no superblock at byte 1024, and no partition table"
        } else {
            "no superblock at byte 1024 of the device or of its partitions"
        },
    })
}

/// Those that are sound: a superblock may promise a million groups and have none.
fn read_descriptors(
    disk: &mut Disk<'_>,
    geometry: &Geometry,
) -> Result<BTreeMap<Group, Descriptor>, OpenError> {
    let mut descriptors = BTreeMap::new();
    for index in 0..geometry.gdt_blocks {
        let first = index * geometry.descs_per_block;
        let groups = first..geometry.groups.min(first.saturating_add(geometry.descs_per_block));
        let block = match geometry.gdt_block(index) {
            Some(pblk) => disk.block(pblk)?,
            None => vec![0; geometry.block_bytes()],
        };
        let raw = block.chunks_exact(geometry.desc_bytes);
        descriptors.extend(groups.zip(raw).filter_map(|(group, raw)| {
            Descriptor::parse(raw, geometry, group).map(|found| (group, found))
        }));
    }
    Ok(descriptors)
}

fn read_bitmaps(
    disk: &mut Disk<'_>,
    geometry: &Geometry,
    descriptors: &BTreeMap<Group, Descriptor>,
) -> Result<Bitmaps, OpenError> {
    let mut bitmaps =
        Bitmaps::new(geometry.groups, geometry.blocks_per_group >> geometry.cluster_bits);
    for group in 0..geometry.groups {
        match descriptors.get(&group) {
            None => bitmaps.fill(group),
            Some(descriptor) if descriptor.block_uninit => {}
            Some(descriptor) => {
                let block = disk.block(descriptor.block_bitmap)?;
                bitmaps.patch(group, 0, &block);
            }
        }
    }
    Ok(bitmaps)
}

/// Calls `found` for the inodes of a group that own blocks.
fn read_inodes(
    disk: &mut Disk<'_>,
    geometry: &Geometry,
    group: Group,
    descriptor: &Descriptor,
    found: &mut impl FnMut(Ino, Option<Inode>),
) -> Result<(), OpenError> {
    let blocks = descriptor.inodes_used.div_ceil(geometry.inodes_per_block());
    if blocks == 0 {
        return Ok(());
    }
    // Without uninitialised groups every table is full length: the inode bitmap says which of
    // its blocks are worth reading.
    let in_use =
        if geometry.uninit_groups { None } else { Some(disk.block(descriptor.inode_bitmap)?) };
    let per_block = geometry.inodes_per_block() as usize;
    let worth = |block: u32| {
        in_use.as_ref().is_none_or(|bits| {
            let first = block as usize * per_block;
            (first..first + per_block)
                .any(|inode| bits.get(inode / 8).is_some_and(|byte| byte >> (inode % 8) & 1 == 1))
        })
    };
    let chunk_blocks = (TABLE_CHUNK_BYTES / geometry.block_bytes()) as u32;
    let mut chunk = Vec::new();
    let mut at = 0;
    while at < blocks {
        if !worth(at) {
            at += 1;
            continue;
        }
        let end = (at..blocks.min(at + chunk_blocks)).find(|block| !worth(*block));
        let end = end.unwrap_or(blocks.min(at + chunk_blocks));
        chunk.resize((end - at) as usize * geometry.block_bytes(), 0);
        disk.blocks(descriptor.inode_table + u64::from(at), &mut chunk)?;
        for (index, block) in (at..end).zip(chunk.chunks_exact(geometry.block_bytes())) {
            let (first, last) = geometry.inodes_of_table_block(group, index);
            for (ino, raw) in (first..=last).zip(block.chunks_exact(geometry.inode_bytes)) {
                if let Some(inode) = Inode::parse(raw, geometry, ino) {
                    found(ino, Some(inode));
                }
            }
        }
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::reader::{ReadAt, ReadError};
    use crate::superblock::tests::sample;
    use crate::{Layout, class::Kind};

    /// A superblock, and zeroes.
    struct Bare(Vec<u8>);

    impl ReadAt for Bare {
        fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
            buf.fill(0);
            for (at, byte) in (offset..).zip(buf) {
                let field = at.checked_sub(1024).and_then(|at| self.0.get(at as usize));
                *byte = field.copied().unwrap_or(0);
            }
            Ok(())
        }
    }

    /// Goal: what a superblock promises costs nothing before it is there: a million groups
    /// without a sound descriptor.
    #[test]
    fn promised_groups_cost_little() {
        let mut raw = sample();
        for (at, value) in
            [(0x0, 1 << 23), (0x4, 1 << 28), (0x20, 256), (0x24, 256), (0x28, 8_u32), (0x5c, 0)]
        {
            raw[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let layout = Layout::open(&mut Bare(raw), 1 << 40).expect("a layout");
        let map = layout.map();
        assert_eq!(map.group_count(), Some(1 << 20));
        assert_eq!(map.kinds(1 << 28, 8), Kind::Unknown.bit(), "in use, by nobody knows whom");
        let bytes = layout.heap_bytes();
        assert!(bytes < 12 << 20, "{bytes} bytes");
    }
}
