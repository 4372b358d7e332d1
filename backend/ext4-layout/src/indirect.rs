//! Block maps of ext2 and ext3: the fifteen pointers in an inode and indirect blocks.
//!
//! In: little-endian 32-bit block numbers; 0 is a hole. Out: a [`Mapping`], consecutive pointers
//! joined.

use crate::class::Written;
use crate::geometry::Geometry;
use crate::mapping::{Child, Extent, Mapping};

const DIRECT: usize = 12;

fn pointers(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.chunks_exact(4).map(|raw| u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]))
}

/// Whether the block can be an indirect block: some pointers, all inside the file system.
pub(crate) fn looks_like_node(bytes: &[u8], geometry: &Geometry) -> bool {
    let mut some = false;
    let sound = pointers(bytes).all(|pointer| {
        some |= pointer != 0;
        pointer == 0 || geometry.contains(pointer.into())
    });
    sound && some
}

/// Parses `i_block` of an inode.
pub(crate) fn parse_root(i_block: &[u8], geometry: &Geometry) -> Mapping {
    let (direct, roots) = i_block.split_at(i_block.len().min(DIRECT * 4));
    let per_block = geometry.block_bytes() as u64 / 4;
    let firsts = [12, 12 + per_block, 12 + per_block + per_block * per_block];
    let children = pointers(roots).zip(firsts).zip(0..).filter_map(|((pointer, lblk), depth)| {
        let lblk = u32::try_from(lblk).ok()?;
        let pblk = u64::from(pointer);
        (pointer != 0 && geometry.contains(pblk)).then_some(Child { pblk, lblk, depth })
    });
    Mapping { extents: data(direct, geometry, 0), children: children.collect() }
}

/// Parses an indirect block; `depth` 0 points at data, `lblk` is the first logical block below it.
pub(crate) fn parse(bytes: &[u8], geometry: &Geometry, depth: u16, lblk: u32) -> Mapping {
    if depth == 0 {
        return Mapping { extents: data(bytes, geometry, lblk), children: Box::default() };
    }
    let span = (bytes.len() as u64 / 4).saturating_pow(depth.into());
    let children = pointers(bytes).zip(0_u64..).filter_map(|(pointer, index)| {
        let lblk = u32::try_from(u64::from(lblk).checked_add(index.checked_mul(span)?)?).ok()?;
        let pblk = u64::from(pointer);
        (pointer != 0 && geometry.contains(pblk)).then_some(Child { pblk, lblk, depth: depth - 1 })
    });
    Mapping { extents: Box::default(), children: children.collect() }
}

fn data(bytes: &[u8], geometry: &Geometry, first: u32) -> Box<[Extent]> {
    let mut extents: Vec<Extent> = Vec::new();
    for (pointer, index) in pointers(bytes).zip(0_u32..) {
        let Some(lblk) = first.checked_add(index) else {
            break;
        };
        let pblk = u64::from(pointer);
        if pointer == 0 || !geometry.contains(pblk) {
            continue;
        }
        match extents.last_mut() {
            Some(last)
                if last.pblk + u64::from(last.len) == pblk && last.lblk + last.len == lblk =>
            {
                last.len += 1;
            }
            _ => extents.push(Extent { lblk, len: 1, pblk, state: Written::Written }),
        }
    }
    extents.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::superblock::Superblock;
    use crate::superblock::tests::sample;

    #[test]
    fn pointers_join_and_children_know_their_logical_block() {
        let geometry = Superblock::parse(&sample(), 24_577 * 1024).unwrap().geometry;
        let mut i_block = [0_u32; 15];
        i_block[..5].copy_from_slice(&[100, 101, 0, 103, 999_999]);
        i_block[12..].copy_from_slice(&[200, 201, 202]);
        let raw: Vec<u8> = i_block.iter().flat_map(|pointer| pointer.to_le_bytes()).collect();
        let root = parse_root(&raw, &geometry);
        let extents: Vec<_> = root.extents.iter().map(|e| (e.lblk, e.pblk, e.len)).collect();
        assert_eq!(extents, [(0, 100, 2), (3, 103, 1)]);
        let children: Vec<_> = root.children.iter().map(|c| (c.pblk, c.lblk, c.depth)).collect();
        assert_eq!(children, [(200, 12, 0), (201, 268, 1), (202, 268 + 65_536, 2)]);

        let mut block = vec![0; 1024];
        block[8..12].copy_from_slice(&300_u32.to_le_bytes());
        let below = parse(&block, &geometry, 1, 268).children;
        assert_eq!((below[0].pblk, below[0].lblk, below[0].depth), (300, 268 + 2 * 256, 0));
        assert_eq!(parse(&block, &geometry, 0, u32::MAX).extents.len(), 0, "past the last lblk");
        assert!(looks_like_node(&block, &geometry));
        block[12] = 0xff;
        block[15] = 0xff;
        assert!(!looks_like_node(&block, &geometry));
    }
}
