//! Goal: a layout that follows writes says what opening the device afresh would say.
//! Method: images made by mkfs.ext4 are changed by debugfs; the blocks that differ are written one
//! by one, in place in random order or through a log that debugfs wrote, whole or in parts. Then
//! and in between, the layout is compared with a fresh one over every sector. Garbage must do no
//! more than lose labels.

#![allow(clippy::format_push_string, reason = "debugfs scripts are easiest to read so")]

use std::fs;
use std::path::Path;

use ext4_layout::{Class, Home, Kind, Layout};
use proptest::prelude::*;

#[path = "support"]
mod support {
    pub(crate) mod device;
    pub(crate) mod image;
}

use support::device::{Device, spans};
use support::image::{Image, bytes};

const MIB: u64 = 1 << 20;

/// Draws that are the same in every run of a test (splitmix64).
struct Draws(u64);

impl Draws {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) % limit as u64) as usize
    }
}

fn shuffled<T>(mut items: Vec<T>, draws: &mut Draws) -> Vec<T> {
    for at in (1..items.len()).rev() {
        items.swap(at, draws.below(at + 1));
    }
    items
}

/// The image's bytes before and after `commands`.
fn change(image: &Image, commands: &str) -> (Vec<u8>, Vec<u8>) {
    let before = bytes(&image.path());
    image.debugfs(commands);
    (before, bytes(&image.path()))
}

/// Byte offsets of the blocks that differ.
fn differing(before: &[u8], after: &[u8], block: usize) -> Vec<usize> {
    let blocks = before.chunks(block).zip(after.chunks(block)).enumerate();
    blocks.filter(|(_, (old, new))| old != new).map(|(at, _)| at * block).collect()
}

fn restless_commands(image: &Image, block: usize) -> String {
    let large = image.host_file("more", 120 * block);
    let small = image.host_file("bit", block);
    let mut commands = format!("write {} more\nrm fragmented\nmkdir new\n", large.display());
    for file in (1..80).step_by(4) {
        commands += &format!("rm holes/{file}\nwrite {} new/{file}\n", small.display());
    }
    commands +=
        &format!("write {} again\nrm deep/er/straight\nea_rm many user.small\n", large.display());
    commands
}

#[test]
fn in_place_writes_in_any_order() {
    for (seed, options) in [
        (1, &["-b", "1024", "-O", "^has_journal"][..]),
        (2, &["-b", "1024", "-O", "^has_journal,^extents,^64bit,^metadata_csum"]),
        (3, &["-b", "1024"]),
        (4, &["-b", "4096", "-O", "^has_journal,bigalloc"]),
    ] {
        let block = options[1].parse().unwrap();
        let extents = !options.iter().any(|option| option.contains("^extents"));
        let image = Image::make(24 * MIB, options);
        image.fill(block, extents);
        let (before, after) = change(&image, &restless_commands(&image, block));
        let mut draws = Draws(seed);
        let mut device = Device::new(before.clone());
        for offset in shuffled(differing(&before, &after, block), &mut draws) {
            device.write(offset, &after[offset..offset + block]);
        }
        assert!(device.bytes == after);
        device.check(&format!("{options:?} after {} openings", device.reopened));
    }
}

/// An image whose log holds the change, next to one without.
fn logged_change(version: u32) -> (Vec<u8>, Vec<u8>) {
    let options: &[&str] = match version {
        1 => &["-b", "1024", "-O", "^metadata_csum"],
        _ => &["-b", "1024"],
    };
    let image = Image::make(24 * MIB, options);
    image.fill(1024, true);
    let commands = restless_commands(&image, 1024);
    logged(version, options, &image, &commands)
}

/// `image`, made with these options, without what the commands do and with it in its log.
fn logged(version: u32, options: &[&str], image: &Image, commands: &str) -> (Vec<u8>, Vec<u8>) {
    let scratch = Image::make(24 * MIB, options);
    fs::write(scratch.path(), bytes(&image.path())).unwrap();
    let (before, after) = change(&scratch, commands);
    let mut commands = match version {
        1 => "journal_open\n".to_owned(),
        _ => format!("journal_open -c -v {version}\n"),
    };
    let blocks = differing(&before, &after, 1024);
    for run in blocks.chunks(90) {
        let list: Vec<String> = run.iter().map(|offset| (offset / 1024).to_string()).collect();
        let content: Vec<u8> =
            run.iter().flat_map(|offset| &after[*offset..offset + 1024]).copied().collect();
        let host = image.host_file(&format!("blocks-{}", run[0]), 0);
        write_file(&host, &content);
        commands += &format!("journal_write -b {} {}\n", list.join(","), host.display());
    }
    commands += "journal_write -r 7000,7001\njournal_close\n";
    change(image, &commands)
}

fn write_file(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
}

#[test]
fn transactions_take_effect_at_their_commit_record() {
    for version in [1, 2, 3] {
        let (before, after) = logged_change(version);
        let mut device = Device::new(before.clone());
        let mut draws = Draws(version.into());
        for (number, offset) in differing(&before, &after, 1024).into_iter().enumerate() {
            // One block in three comes in two requests.
            if draws.below(3) == 0 {
                device.write(offset, &after[offset..offset + 512]);
                device.write(offset + 512, &after[offset + 512..offset + 1024]);
            } else {
                device.write(offset, &after[offset..offset + 1024]);
            }
            if number % 16 == 0 {
                device.check(&format!("csum v{version}, after block {number}"));
            }
        }
        device.check(&format!("csum v{version}, in the end"));
        let kinds = device.layout.map().kinds(0, device.bytes.len() as u64 / 512);
        let journal = Kind::JournalCopy.bit() | Kind::JournalCommit.bit();
        assert_eq!(kinds & journal, journal);
        assert!(device.reopened <= 1, "{} openings", device.reopened);
    }
}

/// The deepest node of an extent tree, by its depth.
fn deepest(image: &[u8]) -> Option<u16> {
    let map = Layout::open(&mut &image[..], image.len() as u64).unwrap().map();
    let depths = spans(&map).into_iter().filter_map(|span| match span.class {
        Class::Home(Home::ExtentNode { depth, .. }) => Some(depth),
        _ => None,
    });
    depths.max()
}

/// A tree that gets a level takes its leaves in anew; what the same transaction changed in them must
/// not be what they held before.
#[test]
fn a_tree_grows_a_level_in_a_transaction_that_changes_its_leaves() {
    let options = &["-b", "1024"];
    let image = Image::make(24 * MIB, options);
    let host = image.host_file("holes", 0);
    // Four leaves of 84 extents are all that the root of a tree of one level can name.
    let mut content = vec![b'x'; 320 * 4 * 1024];
    content.chunks_exact_mut(1024).skip(3).step_by(4).for_each(|block| block.fill(0));
    write_file(&host, &content);
    image.debugfs(&format!("write {} grows\n", host.display()));
    // An unwritten block in a hole is an extent of its own, and splits a leaf that is full.
    let grow: Vec<String> =
        (0..40).map(|at| format!("fallocate grows {0} {0}\n", at * 32 + 3)).collect();
    let (before, after) = logged(3, options, &image, &grow.concat());
    assert_eq!((deepest(&before), deepest(&after)), (Some(0), Some(1)), "the tree has not grown");
    let mut device = Device::new(before.clone());
    for offset in differing(&before, &after, 1024) {
        device.write(offset, &after[offset..offset + 1024]);
    }
    assert_eq!(device.reopened, 0, "it was followed from the writes alone");
    device.check("after the commit record");
}

#[test]
fn a_late_copy_holds_up_its_transaction() {
    let (before, after) = logged_change(3);
    let opened = Layout::open(&mut after.as_slice(), after.len() as u64).unwrap().map();
    let kind = |offset: usize| opened.kinds(offset as u64 / 512, 2);
    let blocks = differing(&before, &after, 1024);
    let log = blocks.iter().position(|offset| kind(*offset) == Kind::JournalDescriptor.bit());
    let commit = blocks.iter().position(|offset| kind(*offset) == Kind::JournalCommit.bit());
    let (log, commit) = (log.unwrap(), commit.unwrap());
    let late = blocks[log + 1];
    let mut device = Device::new(before.clone());
    for offset in &blocks[..log] {
        device.write(*offset, &after[*offset..*offset + 1024]);
    }
    let homes = |device: &Device| {
        let log = |span: &ext4_layout::Span| span.class.tid().is_some();
        let spans = spans(&device.layout.map()).into_iter().filter(|span| !log(span));
        spans.filter(|span| span.class.kind() != Kind::JournalIdle).collect::<Vec<_>>()
    };
    let old = homes(&device);
    for offset in blocks[log..=commit].iter().filter(|offset| **offset != late) {
        device.write(*offset, &after[*offset..*offset + 1024]);
    }
    assert_eq!(homes(&device), old, "nothing takes effect");
    device.write(late, &after[late..late + 1024]);
    assert_ne!(homes(&device), old);
    device.check("the late copy is stored");
}

#[test]
fn a_new_file_system_is_noticed() {
    let image = Image::make(24 * MIB, &["-b", "4096"]);
    let mut device = Device::new(bytes(&image.path()));
    let mut draws = Draws(9);
    for options in [&["-b", "1024"][..], &["-b", "4096", "-O", "^has_journal"]] {
        let other = Image::make(24 * MIB, options);
        let after = bytes(&other.path());
        let before = device.bytes.clone();
        for offset in shuffled(differing(&before, &after, 4096), &mut draws) {
            device.write(offset, &after[offset..offset + 4096]);
        }
        assert!(device.bytes == after);
        device.check(&format!("{options:?}"));
    }
    device.zero(0, device.bytes.len());
    assert_eq!(spans(&device.layout.map()).len(), 1, "nothing is left");
    let after = bytes(&image.path());
    for offset in differing(&device.bytes.clone(), &after, 4096) {
        device.write(offset, &after[offset..offset + 4096]);
    }
    device.check("on the zeroed device");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Garbage in any block, written or found, does no more than lose labels.
    #[test]
    fn garbage_is_survived(
        seed in any::<u64>(),
        writes in prop::collection::vec((any::<prop::sample::Index>(), 1..9_usize, any::<u8>()), 1..40),
    ) {
        let mut draws = Draws(seed);
        let mut device = Device::new(SMALL.with(Clone::clone));
        let spots = interesting(&device);
        for (spot, sectors, fill) in writes {
            let (first, len) = *spot.get(&spots);
            let sector = first + draws.below(len as usize) as u64;
            let offset = sector as usize * 512;
            let end = (offset + sectors * 512).min(device.bytes.len());
            let mut block = device.bytes[offset..end].to_vec();
            match fill % 4 {
                0 => block.fill_with(|| draws.below(256) as u8),
                1 => block.fill(fill),
                _ => for _ in 0..8 {
                    let at = draws.below(block.len());
                    block[at] ^= 1 << draws.below(8);
                },
            }
            device.write(offset, &block);
            spans(&device.layout.map());
        }
        if let Ok(layout) = Layout::open(&mut device.bytes.as_slice(), device.bytes.len() as u64) {
            spans(&layout.map());
        }
        let half = device.bytes.len() / 2;
        device.zero(half, 64 * 512);
        spans(&device.layout.map());
    }
}

thread_local! {
    static SMALL: Vec<u8> = {
        let image = Image::make(6 * MIB, &["-b", "1024", "-O", "^metadata_csum,^resize_inode"]);
        let large = image.host_file("large", 150 * 1024);
        let small = image.host_file("small", 1024);
        let mut commands = "mkdir d\n".to_owned();
        for file in 0..60 {
            commands += &format!("write {} d/{file}\n", small.display());
        }
        for file in (0..60).step_by(2) {
            commands += &format!("rm d/{file}\n");
        }
        commands += &format!("write {} fragmented\n", large.display());
        let host = image.host_file("copies", 4096);
        commands += "journal_open\n";
        commands += &format!("journal_write -b 3000,3001,3002 {}\njournal_close\n", host.display());
        image.debugfs(&commands);
        bytes(&image.path())
    };
}

/// Runs of sectors that hold metadata.
fn interesting(device: &Device) -> Vec<(u64, u64)> {
    let dull = Kind::Free.bit() | Kind::Unknown.bit() | Kind::FileData.bit();
    let spans = spans(&device.layout.map());
    let metadata = spans.iter().filter(|span| span.class.kind().bit() & dull == 0);
    metadata.map(|span| (span.first_sector, span.sectors)).collect()
}
