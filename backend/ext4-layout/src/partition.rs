//! Partition tables, MBR and GPT: where file systems may start.
//!
//! In: the first sectors of a device. Out: partitions in the order of the table. Logical sectors
//! of 512 bytes; extended partitions of an MBR are not entered.

use crate::bytes::{u16_le, u32_le, u64_le};
use crate::map::{PARTITION_TABLE_SECTORS, SECTOR_BYTES};

/// Bytes from the start of the device that [`parse`] looks at.
pub(crate) const HEAD_BYTES: usize = (PARTITION_TABLE_SECTORS * SECTOR_BYTES) as usize;

const MBR_ENTRIES: usize = 0x1be;
const MBR_PROTECTIVE: u8 = 0xee;
const GPT_HEADER: usize = 512;

/// A partition, in sectors of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) first: u64,
    pub(crate) sectors: u64,
}

/// The partitions on a device of `device_sectors` that starts with `head`; none when there is no
/// table.
pub(crate) fn parse(head: &[u8], device_sectors: u64) -> Vec<Partition> {
    let partitions = if u16_le(head, 510) != Some(0xaa55) {
        Vec::new()
    } else if mbr(head).any(|(kind, _)| kind == MBR_PROTECTIVE) {
        gpt(head).unwrap_or_default()
    } else {
        mbr(head).map(|(_, partition)| partition).collect()
    };
    let inside = |partition: &Partition| {
        partition.first > 0
            && partition.sectors > 0
            && partition
                .first
                .checked_add(partition.sectors)
                .is_some_and(|end| end <= device_sectors)
    };
    partitions.into_iter().filter(inside).collect()
}

fn mbr(head: &[u8]) -> impl Iterator<Item = (u8, Partition)> + '_ {
    (0..4).filter_map(|index| {
        let entry = head.get(MBR_ENTRIES + index * 16..)?.get(..16)?;
        let first = u32_le(entry, 8)?.into();
        let sectors = u32_le(entry, 12)?.into();
        (entry[4] != 0).then_some((entry[4], Partition { first, sectors }))
    })
}

fn gpt(head: &[u8]) -> Option<Vec<Partition>> {
    let header = head.get(GPT_HEADER..)?;
    if header.get(..8)? != b"EFI PART" {
        return None;
    }
    let table = usize::try_from(u64_le(header, 72)?.checked_mul(SECTOR_BYTES)?).ok()?;
    let entry_bytes = usize::try_from(u32_le(header, 84)?).ok().filter(|bytes| *bytes >= 128)?;
    let count = u32_le(header, 80)? as usize;
    let entries = head.get(table..)?.chunks_exact(entry_bytes).take(count);
    let partition = |entry: &[u8]| {
        let first = u64_le(entry, 32)?;
        let sectors = u64_le(entry, 40)?.checked_sub(first)?.checked_add(1)?;
        let used = entry[..16].iter().any(|byte| *byte != 0);
        used.then_some(Partition { first, sectors })
    };
    Some(entries.filter_map(partition).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mbr_lists_its_primary_partitions() {
        let mut head = vec![0; HEAD_BYTES];
        head[MBR_ENTRIES + 4] = 0x83;
        head[MBR_ENTRIES + 8..MBR_ENTRIES + 12].copy_from_slice(&2048_u32.to_le_bytes());
        head[MBR_ENTRIES + 12..MBR_ENTRIES + 16].copy_from_slice(&4096_u32.to_le_bytes());
        assert_eq!(parse(&head, 10_000), []);
        head[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(parse(&head, 10_000), [Partition { first: 2048, sectors: 4096 }]);
        assert_eq!(parse(&head, 6143), []);
    }

    #[test]
    fn a_gpt_that_points_nowhere_has_no_partitions() {
        let mut head = vec![0; HEAD_BYTES];
        head[MBR_ENTRIES + 4] = MBR_PROTECTIVE;
        head[510..512].copy_from_slice(&[0x55, 0xaa]);
        head[512..520].copy_from_slice(b"EFI PART");
        head[512 + 72..512 + 80].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(parse(&head, 10_000), []);
    }
}
