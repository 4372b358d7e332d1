//! Metadata whose place the group descriptors give: bitmaps and inode tables.
//!
//! In: the descriptors. Out: which of them a block belongs to. With `flex_bg` those of sixteen
//! groups lie in a row, so a row is one entry: 8192 groups make about 1500.

use std::collections::BTreeMap;

use crate::class::Group;
use crate::descriptor::Descriptor;
use crate::geometry::Geometry;

/// What a descriptor points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    BlockBitmap,
    InodeBitmap,
    InodeTable,
}

/// `count` parts of `len` blocks each, one after the other, of consecutive groups.
#[derive(Clone, Copy, Debug)]
struct Row {
    first: u64,
    part: Part,
    group: Group,
    count: u32,
    len: u32,
}

impl Row {
    fn end(&self) -> u64 {
        self.first + u64::from(self.count) * u64::from(self.len)
    }
}

/// A block of a bitmap or an inode table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) part: Part,
    pub(crate) group: Group,
    /// Block within the part.
    pub(crate) index: u32,
    /// One past the last block of the part.
    pub(crate) end: u64,
}

/// All bitmaps and inode tables, by block.
#[derive(Debug, Default)]
pub(crate) struct Placed {
    rows: Vec<Row>,
}

impl Placed {
    pub(crate) fn new(descriptors: &BTreeMap<Group, Descriptor>, geometry: &Geometry) -> Placed {
        let mut rows: Vec<Row> = Vec::new();
        let table_blocks = geometry.inode_table_blocks();
        for (group, descriptor) in descriptors {
            let group = *group;
            for (part, first, len) in [
                (Part::BlockBitmap, descriptor.block_bitmap, 1),
                (Part::InodeBitmap, descriptor.inode_bitmap, 1),
                (Part::InodeTable, descriptor.inode_table, table_blocks),
            ] {
                rows.push(Row { first, part, group, count: 1, len });
            }
        }
        rows.sort_unstable_by_key(|row| (row.first, row.part, row.group));
        rows.dedup_by(|next, row| {
            let continues = next.part == row.part
                && next.group == row.group + row.count
                && next.first == row.end();
            if continues {
                row.count += 1;
            }
            continues
        });
        rows.shrink_to_fit();
        Placed { rows }
    }

    /// The part that a block belongs to, or else the first block after it at which one begins.
    /// Where a damaged descriptor makes two overlap, the one that starts last has the block.
    pub(crate) fn at(&self, pblk: u64) -> Result<Place, u64> {
        let after = self.rows.partition_point(|row| row.first <= pblk);
        let next = self.rows.get(after).map_or(u64::MAX, |row| row.first);
        let row = after.checked_sub(1).and_then(|at| self.rows.get(at)).filter(|r| pblk < r.end());
        let row = row.ok_or(next)?;
        let offset = pblk - row.first;
        let number = offset / u64::from(row.len);
        Ok(Place {
            part: row.part,
            group: row.group + number as u32,
            index: (offset % u64::from(row.len)) as u32,
            end: next.min(row.first + (number + 1) * u64::from(row.len)),
        })
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Row>()
    }
}
