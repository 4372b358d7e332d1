//! Regions of guest memory that reach past the end of their file.
//!
//! In: a message that brings guest memory, with its descriptors. Out: nothing, or why the
//! connection ends.
//! Must not know: what is done with the memory.
//!
//! Neither the library nor the kernel minds a mapping beyond the end of a file; whoever touches it
//! gets SIGBUS. A front-end must not be able to end the daemon, so such a region is refused. One
//! that shrinks its file later still can: that takes a front-end's own guest, and it has one file
//! for each of its daemons.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, fstat};

use super::{ADD_MEM_REG, SET_MEM_TABLE};

/// Bytes before the regions: their number, or nothing, and padding.
const BEFORE_BYTES: usize = 8;
/// Bytes of a region: guest address, size, front-end address, offset in the file.
const REGION_BYTES: usize = 32;

/// Looks at every region that comes with a descriptor.
pub(super) fn check(request: u32, payload: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    if request != SET_MEM_TABLE && request != ADD_MEM_REG {
        return Ok(());
    }
    let regions = payload.get(BEFORE_BYTES..).unwrap_or_default().chunks_exact(REGION_BYTES);
    for (region, fd) in regions.zip(fds) {
        let number = |at: usize| {
            let bytes = region[at..].first_chunk().copied().unwrap_or_default();
            u64::from_ne_bytes(bytes)
        };
        let (bytes, offset) = (number(8), number(24));
        let stat = fstat(fd)?;
        // Devices have no size; they map what they are asked for, or refuse.
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            continue;
        }
        let file = u64::try_from(stat.st_size).unwrap_or_default();
        if offset.checked_add(bytes).is_none_or(|end| end > file) {
            tracing::warn!(
                bytes,
                offset,
                file,
                "the front-end's memory reaches past the end of its file: hanging up"
            );
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    fn payload(regions: &[(u64, u64)]) -> Vec<u8> {
        let mut payload = vec![0; BEFORE_BYTES];
        for (bytes, offset) in regions {
            payload.extend([0, *bytes, 0, *offset].iter().flat_map(|number| number.to_ne_bytes()));
        }
        payload
    }

    fn fits(regions: &[(u64, u64)]) -> bool {
        let fds: Vec<OwnedFd> = regions
            .iter()
            .map(|_| {
                let memory = memfd_create("test", MemfdFlags::CLOEXEC).expect("memory");
                ftruncate(&memory, 0x1_0000).expect("its size");
                memory
            })
            .collect();
        let payload = payload(regions);
        let results = [SET_MEM_TABLE, ADD_MEM_REG].map(|of| check(of, &payload, &fds).is_ok());
        assert_eq!(results[0], results[1]);
        results[0]
    }

    /// Goal: exactly what lies within the file passes. Method: every pair of edges, against a sum
    /// in 128 bits.
    #[test]
    fn regions_at_every_edge() {
        let edges = [0, 1, 0xFFF, 0x1000, 0xFFFF, 0x1_0000, 0x1_0001, 1 << 32, 1 << 63];
        let edges = edges.into_iter().flat_map(|edge: u64| [edge, edge.wrapping_neg()]);
        for bytes in edges.clone() {
            for offset in edges.clone() {
                let inside = u128::from(bytes) + u128::from(offset) <= 0x1_0000;
                assert_eq!(fits(&[(bytes, offset)]), inside, "{bytes:#x} bytes at {offset:#x}");
            }
        }
    }

    #[test]
    fn one_bad_region_is_enough() {
        assert!(fits(&[(0x1000, 0), (0x1000, 0xF000)]));
        assert!(!fits(&[(0x1000, 0), (0x1000, 0xF001)]));
        // Of another message, or cut short: the library's business.
        assert!(check(1, &payload(&[(u64::MAX, 0)]), &[]).is_ok());
        assert!(check(SET_MEM_TABLE, &[1, 2, 3], &[]).is_ok());
    }
}
