//! Goal: no sum or product of what a driver says is ever wrong, above all at the ends of its
//! types: a request that is let through lies on the disk and in the guest's memory.
//! Method: every value near each place where something could wrap, with every other such value,
//! against sums in 128 bits.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::segments::Snapshot;

/// Values near `of`, on both sides, as far as there are any.
fn near(of: u64) -> impl Iterator<Item = u64> {
    (-3_i64..=3).filter_map(move |step| of.checked_add_signed(step))
}

/// Sectors whose byte wraps at 2^64, among others.
const SECTORS: [u64; 9] =
    [0, 8, 4096, 1 << 32, (1 << 55) - 8, 1 << 55, 1 << 63, (1 << 63) + (1 << 54), u64::MAX];

#[test]
fn sectors_that_are_let_through_are_on_the_disk() {
    let mut passed = 0;
    for capacity_sectors in [0, 1, 4096, 1 << 32, u64::MAX >> 9] {
        let limits = Limits { capacity_sectors, read_only: false, can_discard: true };
        let firsts = SECTORS.into_iter().chain([capacity_sectors]).flat_map(near);
        for sector in firsts {
            let lens = [0, 8, u64::from(MAX_RANGE_SECTORS), u32::MAX.into(), 1 << 55, u64::MAX];
            // Those that end at the end of the disk, too.
            let to_end = capacity_sectors.wrapping_sub(sector);
            for sectors in lens.into_iter().chain([to_end]).flat_map(near) {
                let end = u128::from(sector) + u128::from(sectors);
                let found = check_sectors(sector, sectors, limits);
                assert_eq!(found.is_ok(), end <= capacity_sectors.into(), "{sector}+{sectors}");
                if found.is_ok() {
                    passed += 1;
                    // What the worker makes of them.
                    assert!(end * u128::from(SECTOR_BYTES) <= u128::from(u64::MAX));
                }
            }
        }
    }
    assert!(passed > 100, "{passed}");
}

/// The regions of a memory: two that touch, one apart, one at the end of the address space.
const REGIONS: [(u64, usize); 4] =
    [(0, 0x2_0000), (0x2_0000, 0x1_0000), (0x10_0000, 0x1_0000), (u64::MAX - 0xFFFF, 0xF000)];

/// Whether every byte is in some region; looks at one piece after the other.
fn is_memory(addr: u64, len: u32) -> bool {
    let (mut at, end) = (u128::from(addr), u128::from(addr) + u128::from(len));
    while at < end {
        let holds = |(start, len): &(u64, usize)| {
            let start = u128::from(*start);
            (start..start + *len as u128).contains(&at)
        };
        let Some((start, len)) = REGIONS.iter().find(|region| holds(region)) else {
            return false;
        };
        at = u128::from(*start) + *len as u128;
    }
    true
}

#[test]
fn addresses_that_are_let_through_are_memory() {
    let ranges = REGIONS.map(|(start, len)| (GuestAddress(start), len));
    let memory = Snapshot::new(Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory")));
    let edges = REGIONS.iter().flat_map(|(start, len)| [*start, start + *len as u64]);
    let edges: Vec<u64> = edges.chain([1 << 32, 1 << 63, u64::MAX]).flat_map(near).collect();
    let (mut passed, mut refused) = (0, 0);
    for addr in &edges {
        // Up to each edge, and lengths at the ends of the type.
        let to_edges = edges.iter().filter_map(|edge| u32::try_from(edge.wrapping_sub(*addr)).ok());
        for len in to_edges.chain([0, 1, 512, 1 << 31, u32::MAX - 1, u32::MAX]) {
            let mut segments = Segments::guest(&memory);
            let found = segments.push(GuestAddress(*addr), len);
            assert_eq!(found.is_ok(), is_memory(*addr, len), "{addr:#x}+{len:#x}");
            let told: u64 = segments.iovecs().iter().map(|run| run.iov_len as u64).sum();
            assert_eq!(told, segments.len());
            assert_eq!(segments.len(), if found.is_ok() { len.into() } else { 0 });
            if found.is_ok() { passed += 1 } else { refused += 1 }
        }
    }
    assert!(passed > 400 && refused > 400, "{passed}, {refused}");
}

/// Goal: a request is counted with the bytes that it moves, however many ranges it has.
#[test]
fn bytes_of_ranges_do_not_wrap() {
    let range = Range { sector: 0, sectors: u32::MAX, unmap: false };
    let most: SmallVec<[Range; 1]> = std::iter::repeat_n(range, MAX_RANGES as usize).collect();
    let bytes = u128::from(u32::MAX) * u128::from(SECTOR_BYTES) * u128::from(MAX_RANGES);
    let (op, moved) = Verb::Discard(most).moves();
    assert_eq!((op, u128::from(moved)), (Some(Op::Discard), bytes));
}
