//! Blocks of a log made by hand, in each format of tags.

use super::superblock::JournalSuperblock;
use super::*;
use crate::bytes::crc32c;

const SEED: u32 = 0x1234_5678;

fn format(checksums: Checksums, wide: bool) -> Format {
    Format { wide, checksums }
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 1024];
    for (at, word) in [MAGIC, kind, 7].into_iter().enumerate() {
        block[at * 4..at * 4 + 4].copy_from_slice(&word.to_be_bytes());
    }
    block[12..12 + body.len()].copy_from_slice(body);
    block
}

fn with_tail(mut block: Vec<u8>) -> Vec<u8> {
    let sum = crc32c(SEED, &block);
    block[1020..].copy_from_slice(&sum.to_be_bytes());
    block
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

#[test]
fn headers_need_the_magic_number_and_a_known_type() {
    assert_eq!(header(&block(5, &[])), Some((BlockType::Revoke, 7)));
    assert_eq!(header(&block(6, &[])), None);
    assert_eq!(header(&[0; 1024]), None);
    assert_eq!(header(&MAGIC.to_be_bytes()), None);
}

#[test]
fn tags_of_every_format() {
    // The first tag has a UUID after it; the last is escaped.
    let uuid = [0xaa; 16];
    let old = |wide: bool| {
        let high = if wide { words(&[1]) } else { vec![] };
        [words(&[100, 0]), high.clone(), uuid.to_vec(), words(&[101, 2]), high.clone()]
            .into_iter()
            .chain([words(&[102, 2 | 8 | 1]), high])
            .flatten()
            .collect::<Vec<u8>>()
    };
    for (wide, high) in [(false, 0), (true, 1 << 32)] {
        let tags = descriptor::parse(&block(1, &old(wide)), format(Checksums::None, wide)).unwrap();
        let blocks: Vec<u64> = tags.iter().map(|tag| tag.pblk).collect();
        assert_eq!(blocks, [high + 100, high + 101, high + 102]);
        assert_eq!(tags.iter().map(|tag| tag.escaped).collect::<Vec<_>>(), [false, false, true]);
    }
    let v3 = [words(&[100, 0, 1, 9]), uuid.to_vec(), words(&[101, 2 | 8, 1, 9])].concat();
    let format = format(Checksums::V3(SEED), true);
    let tags = descriptor::parse(&with_tail(block(1, &v3)), format).unwrap();
    assert_eq!(
        tags.iter().map(|tag| tag.pblk).collect::<Vec<_>>(),
        [(1 << 32) + 100, (1 << 32) + 101]
    );
    assert!(descriptor::parse(&block(1, &v3), format).is_none(), "no checksum");
}

#[test]
fn tags_without_a_last_one_fill_the_block() {
    let tags = descriptor::parse(&block(1, &[]), format(Checksums::None, false)).unwrap();
    // Every tag without SAME_UUID takes 8 bytes and a UUID of 16.
    assert_eq!(tags.len(), (1024_usize - 12 - 8).div_ceil(24));
}

#[test]
fn copies_carry_the_checksum_of_their_tag() {
    let copy = [5; 1024];
    let sum = crc32c(crc32c(SEED, &7_u32.to_be_bytes()), &copy);
    let tag = |checksums, raw: Vec<u8>| {
        let format = format(checksums, false);
        descriptor::parse(&with_tail(block(1, &raw)), format).map(|tags| (tags[0], format))
    };
    let (v3, format) = tag(Checksums::V3(SEED), words(&[100, 2 | 8, 0, sum])).unwrap();
    assert!(v3.checksum_fits(&copy, 7, format));
    assert!(!v3.checksum_fits(&copy, 8, format));
    let (v2, format) =
        tag(Checksums::V2(SEED), words(&[100, ((sum & 0xffff) << 16) + 10, 0])).unwrap();
    assert!(v2.checksum_fits(&copy, 7, format));
    assert!(!v2.checksum_fits(&[6; 1024], 7, format));
}

#[test]
fn revoke_records_have_32_or_64_bits() {
    let narrow = block(5, &words(&[16 + 8, 300, 301, 999]));
    assert_eq!(revoke::parse(&narrow, format(Checksums::None, false)).unwrap(), [300, 301]);
    let wide = block(5, &words(&[16 + 16, 1, 300, 0, 301]));
    let blocks = revoke::parse(&wide, format(Checksums::None, true)).unwrap();
    assert_eq!(blocks, [(1 << 32) + 300, 301]);
    let lie = block(5, &words(&[u32::MAX, 300]));
    assert_eq!(revoke::parse(&lie, format(Checksums::None, false)).unwrap().len(), 252);
    let short = block(5, &words(&[3]));
    assert!(revoke::parse(&short, format(Checksums::None, false)).is_none());
}

#[test]
fn commit_blocks_carry_a_checksum() {
    let mut commit = block(2, &[]);
    let format = format(Checksums::V3(SEED), true);
    assert!(!commit::checksum_fits(&commit, format));
    let sum = crc32c(SEED, &commit);
    commit[16..20].copy_from_slice(&sum.to_be_bytes());
    assert!(commit::checksum_fits(&commit, format));
}

fn superblock(kind: u32, incompat: u32, fast_commit: u32) -> Vec<u8> {
    // Block size, length, first block, sequence, start, errno, and the three feature words.
    let mut block = block(kind, &words(&[1024, 4096, 1, 9, 17, 0, 0, incompat, 0]));
    block[0x54..0x58].copy_from_slice(&fast_commit.to_be_bytes());
    block
}

#[test]
fn journal_superblocks_of_both_versions() {
    let v1 = JournalSuperblock::parse(&superblock(3, 2, 0), 4096).unwrap();
    assert_eq!((v1.sequence, v1.start, v1.format.wide), (9, Some(17), false));
    let v2 = JournalSuperblock::parse(&superblock(4, 2, 0), 4096).unwrap();
    assert!(v2.format.wide);
    assert_eq!((v2.fast_commit, v2.after(4095, 1), v2.after(1, 4094)), (4096, 1, 4095));
    let fast = JournalSuperblock::parse(&superblock(4, 0x20, 100), 4096).unwrap();
    assert_eq!((fast.fast_commit, fast.after(3995, 1)), (3996, 1));
    assert!(JournalSuperblock::parse(&superblock(4, 0, 0), 4095).is_none(), "longer than its file");
    assert!(JournalSuperblock::parse(&superblock(4, 0x10, 0), 4096).is_none(), "no checksum");
    assert!(JournalSuperblock::parse(&superblock(1, 0, 0), 4096).is_none());
}
