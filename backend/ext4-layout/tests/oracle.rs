//! Goal: every block of every group has the class that e2fsprogs gives it.
//! Method: images made by mkfs.ext4 with different features, filled by debugfs, compared block by
//! block with dumpe2fs and debugfs. The canaries alter an image after it was mapped, and must be
//! noticed.

#![allow(clippy::format_push_string, reason = "debugfs scripts are easiest to read so")]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use ext4_layout::{Class, Home, Kind, OpenError};

#[path = "../../../guest-tests/campaign/src"]
#[allow(unreachable_pub, dead_code, reason = "public where it lives, in the crate campaign")]
mod campaign {
    pub mod oracle;
}
#[path = "support"]
mod support {
    pub(crate) mod image;
}

use campaign::oracle::{self, OracleError, OracleReport};
use support::image::{self, Image};

const MIB: u64 = 1 << 20;

/// Compares, and fails with the differences and a command that shows the image's map.
fn check(image: &Image) -> OracleReport {
    let report = oracle::compare(&image.path()).unwrap();
    assert_eq!(report.difference_count, 0, "{report}");
    report
}

fn filled(bytes: u64, block: usize, extents: bool, options: &[&str]) -> OracleReport {
    let image = Image::make(bytes, options);
    image.fill(block, extents);
    let report = check(&image);
    for kind in ["file_data", "directory", "free", "inode_table", "block_bitmap"] {
        assert!(report.kinds.contains_key(kind), "no {kind} in {:?}", report.kinds);
    }
    report
}

macro_rules! variants {
    ($($name:ident: $mib:literal MiB, $block:literal, $extents:literal, $options:expr;)*) => {
        $(#[test] fn $name() { filled($mib * MIB, $block, $extents, &$options); })*
    };
}

variants! {
    defaults_4k: 64 MiB, 4096, true, ["-b", "4096"];
    blocks_2k: 64 MiB, 2048, true, ["-b", "2048"];
    blocks_1k: 48 MiB, 1024, true, ["-b", "1024"];
    without_64bit: 64 MiB, 1024, true, ["-b", "1024", "-O", "^64bit"];
    without_flex_bg: 64 MiB, 1024, true, ["-b", "1024", "-O", "^flex_bg"];
    meta_bg: 64 MiB, 1024, true, ["-b", "1024", "-g", "512", "-O", "meta_bg,^resize_inode"];
    meta_bg_plain_groups: 32 MiB, 1024, true,
        ["-b", "1024", "-g", "256", "-N", "2048", "-O", "meta_bg,^resize_inode,^flex_bg,^metadata_csum"];
    sparse_super2: 64 MiB, 1024, true, ["-b", "1024", "-O", "sparse_super2,^resize_inode"];
    no_sparse_super: 64 MiB, 1024, true, ["-b", "1024", "-O", "^sparse_super,^resize_inode"];
    without_metadata_csum: 48 MiB, 1024, true, ["-b", "1024", "-O", "^metadata_csum"];
    gdt_csum: 48 MiB, 1024, true, ["-b", "1024", "-O", "^metadata_csum,uninit_bg"];
    bigalloc: 64 MiB, 1024, true, ["-b", "1024", "-O", "bigalloc", "-C", "16384"];
    bigalloc_4k: 256 MiB, 4096, true, ["-b", "4096", "-O", "bigalloc", "-C", "65536"];
    indirect: 32 MiB, 1024, false, ["-b", "1024", "-O", "^extents,^64bit"];
    like_ext2: 32 MiB, 1024, false,
        ["-b", "1024", "-O", "^extents,^64bit,^has_journal,^metadata_csum,^flex_bg,^huge_file"];
    inline_data: 32 MiB, 4096, true, ["-b", "4096", "-O", "inline_data"];
    without_journal: 32 MiB, 4096, true, ["-b", "4096", "-O", "^has_journal"];
    fast_commit: 64 MiB, 4096, true, ["-b", "4096", "-O", "fast_commit"];
    orphan_file: 64 MiB, 4096, true, ["-b", "4096", "-O", "orphan_file"];
    inodes_of_128: 32 MiB, 1024, true, ["-b", "1024", "-I", "128"];
    inodes_of_1024: 32 MiB, 4096, true, ["-b", "4096", "-I", "1024"];
    without_resize_inode: 48 MiB, 1024, true, ["-b", "1024", "-O", "^resize_inode"];
    ea_inode: 48 MiB, 1024, true, ["-b", "1024", "-O", "ea_inode"];
    quota: 48 MiB, 1024, true, ["-b", "1024", "-O", "quota,project"];
    mmp: 48 MiB, 1024, true, ["-b", "1024", "-O", "mmp"];
    csum_seed_casefold: 32 MiB, 4096, true, ["-b", "4096", "-O", "metadata_csum_seed,casefold"];
}

#[test]
fn deep_extent_trees() {
    let image = Image::make(48 * MIB, &["-b", "1024", "-N", "4096"]);
    let one = image.host_file("one", 1024);
    let large = image.host_file("large", 900 * 1024);
    let mut commands = "mkdir holes\n".to_owned();
    for file in 0..1600 {
        commands += &format!("write {} holes/{file}\n", one.display());
    }
    for file in (0..1600).step_by(2) {
        commands += &format!("rm holes/{file}\n");
    }
    commands += &format!("write {} fragmented\n", large.display());
    image.debugfs(&commands);
    let map = oracle::open_map(&image.path()).unwrap();
    let mut depths = Vec::new();
    map.classify(0, map.device_sectors(), &mut |span| {
        if let Class::Home(Home::ExtentNode { depth, .. }) = span.class {
            depths.push(depth);
        }
    });
    depths.sort_unstable();
    depths.dedup();
    assert_eq!(depths, [0, 1]);
    check(&image);
}

#[test]
fn large_indirect_file() {
    let image = Image::make(48 * MIB, &["-b", "1024", "-O", "^extents,^64bit"]);
    // Beyond 12 + 256 + 256^2 blocks lies the triple indirect block; a sparse file reaches it.
    let path = image.host_file("sparse", 300 * 1024);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"far", 70_000 * 1024).unwrap();
    image.debugfs(&format!("write {} sparse\n", path.display()));
    let report = check(&image);
    assert!(report.kinds["indirect_block"] > 4, "{:?}", report.kinds);
}

#[test]
fn in_an_mbr_partition() {
    let image = Image::make_at(40 * MIB, 63 * 512, &["-b", "1024"]);
    image.fill(1024, true);
    let file = OpenOptions::new().write(true).open(image.path()).unwrap();
    let mut entry = [0; 16];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&63_u32.to_le_bytes());
    entry[12..].copy_from_slice(&((40 * MIB / 512 - 63) as u32).to_le_bytes());
    file.write_all_at(&entry, 0x1be).unwrap();
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
    let report = check(&image);
    assert_eq!(report.kinds["superblock"], 3);
}

#[test]
fn in_the_second_gpt_partition() {
    let image = Image::make_at(64 * MIB, 16 * MIB, &["-b", "4096"]);
    image.fill(4096, true);
    let file = OpenOptions::new().write(true).open(image.path()).unwrap();
    file.write_all_at(&[0xee], 0x1be + 4).unwrap();
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
    let mut header = [0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[72..80].copy_from_slice(&2_u64.to_le_bytes());
    header[80..84].copy_from_slice(&128_u32.to_le_bytes());
    header[84..88].copy_from_slice(&128_u32.to_le_bytes());
    file.write_all_at(&header, 512).unwrap();
    for (index, first, last) in [(0, 2048_u64, 16 * MIB / 512 - 1), (1, 16 * MIB / 512, 131_000)] {
        let mut entry = [0; 128];
        entry[..16].fill(7);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        file.write_all_at(&entry, 1024 + index * 128).unwrap();
    }
    // The file system is longer than its partition's last sector allows: shrink the claim.
    let error = oracle::compare(&image.path()).unwrap_err();
    assert!(matches!(
        error,
        OracleError::Layout { source: OpenError::Corrupt { field: "s_blocks_count", .. }, .. }
    ));
    file.write_all_at(&131_071_u64.to_le_bytes(), 1024 + 128 + 40).unwrap();
    check(&image);
}

#[test]
fn a_log_with_transactions_counts() {
    for version in [1, 2, 3] {
        let options = match version {
            1 => ["-b", "1024", "-O", "^metadata_csum"],
            _ => ["-b", "1024", "-O", "metadata_csum"],
        };
        let image = Image::make(48 * MIB, &options);
        image.fill(1024, true);
        // The next block of the file system's metadata, as they would be after a change.
        let before = image::bytes(&image.path());
        let scratch = Image::make(48 * MIB, &options);
        std::fs::write(scratch.path(), &before).unwrap();
        let large = scratch.host_file("more", 200 * 1024);
        scratch.debugfs(&format!("write {} more\nrm fragmented\nmkdir new\n", large.display()));
        let after = image::bytes(&scratch.path());
        let blocks = before.chunks(1024).zip(after.chunks(1024)).enumerate();
        let changed: Vec<usize> =
            blocks.filter(|(_, (old, new))| old != new).map(|(block, _)| block).collect();
        // debugfs writes data too; all of it goes through the log, as with data=journal.
        let mut commands = match version {
            1 => "journal_open\n".to_owned(),
            _ => format!("journal_open -c -v {version}\n"),
        };
        for run in changed.chunks(100) {
            let list: Vec<String> = run.iter().map(usize::to_string).collect();
            let host = image.host_file("blocks", 0);
            let content: Vec<u8> =
                run.iter().flat_map(|block| &after[block * 1024..][..1024]).copied().collect();
            let host = host.with_file_name(format!("blocks-{}", run[0]));
            std::fs::write(&host, content).unwrap();
            commands += &format!("journal_write -b {} {}\n", list.join(","), host.display());
        }
        commands += "journal_write -r 7000\njournal_close\n";
        image.debugfs(&commands);
        let report = check(&image);
        assert!(report.kinds["journal_copy"] as usize >= changed.len(), "{:?}", report.kinds);
        assert!(report.kinds.contains_key("journal_revoke"), "{:?}", report.kinds);
    }
}

#[test]
fn an_external_journal_is_refused() {
    let image = Image::make(32 * MIB, &["-b", "4096"]);
    let error = |image: &Image| match oracle::open_map(&image.path()).unwrap_err() {
        OracleError::Layout { source, .. } => source,
        other => panic!("{other}"),
    };
    image.debugfs("ssv journal_inum 0\n");
    assert!(matches!(error(&image), OpenError::ExternalJournal));
    let journal = Image::make(32 * MIB, &["-b", "4096", "-O", "journal_dev"]);
    assert!(matches!(error(&journal), OpenError::JournalDevice));
}

#[test]
fn canary_an_altered_bitmap_is_noticed() {
    let image = Image::make(32 * MIB, &["-b", "4096"]);
    image.fill(4096, true);
    let map = oracle::open_map(&image.path()).unwrap();
    assert_eq!(oracle::compare_map(&image.path(), &map).unwrap().difference_count, 0);
    image.debugfs("setb 6000\n");
    let report = oracle::compare_map(&image.path(), &map).unwrap();
    assert_eq!(report.difference_count, 1, "{report}");
    assert_eq!(report.differences[0].block, 6000);
    assert_eq!(report.differences[0].map, Class::Home(Home::Free));
}

#[test]
fn canary_an_altered_extent_is_noticed() {
    let image = Image::make(32 * MIB, &["-b", "4096"]);
    image.fill(4096, true);
    let map = oracle::open_map(&image.path()).unwrap();
    image.debugfs("sif preallocated block[4] 2\n");
    let report = oracle::compare_map(&image.path(), &map).unwrap();
    assert!(report.difference_count > 0, "{report}");
    assert!(report.differences.iter().all(|found| found.map.kind() == Kind::FileData));
}
