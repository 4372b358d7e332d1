//! Integers at byte offsets, little-endian (ext4) and big-endian (jbd2), and the checksum of both.
//!
//! In: a slice and an offset. Out: the value, or `None` where the slice ends before it.

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

pub(crate) fn u16_le(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

pub(crate) fn u32_le(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

pub(crate) fn u64_le(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

pub(crate) fn u16_be(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

pub(crate) fn u32_be(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// The kernel's `crc32c(seed, data)`: no inversion before or after, so that calls chain.
pub(crate) fn crc32c(seed: u32, data: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, data)
}

/// [`crc32c`] of `data` with the bytes of `hole` read as zero.
pub(crate) fn crc32c_with_hole(seed: u32, data: &[u8], hole: std::ops::Range<usize>) -> u32 {
    const ZEROES: [u8; 4] = [0; 4];
    let (start, end) = (hole.start.min(data.len()), hole.end.min(data.len()));
    let zeroes = ZEROES.get(..end - start).unwrap_or(&ZEROES);
    crc32c(crc32c(crc32c(seed, &data[..start]), zeroes), &data[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_past_the_end_is_none() {
        assert_eq!(u32_le(&[1, 0, 0], 0), None);
        assert_eq!(u32_le(&[1, 0, 0, 0], usize::MAX), None);
        assert_eq!(u16_be(&[1, 2, 3], 1), Some(0x0203));
    }

    #[test]
    fn checksums_chain_and_holes_read_as_zero() {
        // The check value of CRC-32C, which inverts at both ends.
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(crc32c(!0, b"1234"), b"56789"), crc32c(!0, b"123456789"));
        assert_eq!(crc32c_with_hole(7, &[1, 2, 9, 9, 3], 2..4), crc32c(7, &[1, 2, 0, 0, 3]));
    }
}
