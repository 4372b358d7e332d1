//! Goal: the shadow of a file system of 100 GiB with 100,000 files takes at most 64 MiB, its layout
//! included, when every file has been seen to change.
//! Method: mkfs.ext4 on a sparse file, with the files; then a guest made here logs and commits every
//! block of inode tables and bitmaps, and writes to every 16 MiB of the disk. Memory is what the
//! kernel counts for this process, which runs this test alone.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ext4_layout::{Change, Class, Home, Layout, ReadAt, ReadError};
use pipeline::shadow::{Arriving, Options, Shadow, Wants};
use pipeline::{Nanos, Op, Outcome, RequestId};

#[path = "../../ext4-layout/tests/support"]
mod support {
    #[allow(dead_code, reason = "shared with the tests that fill images with debugfs")]
    pub(crate) mod image;
}

use support::image::Image;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const FILES: u32 = 100_000;
const PER_FOLDER: u32 = 1000;
const BLOCK: usize = 4096;
const PER_BLOCK: u64 = BLOCK as u64 / 512;
/// JBD2_MAGIC_NUMBER, as stored.
const MAGIC: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];
/// Blocks of a transaction here.
const LOGGED: usize = 400;

struct Device(File);

impl ReadAt for Device {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let length = buf.len();
        let read = self.0.read_exact_at(buf, offset);
        read.map_err(|source| ReadError { offset, length, source: source.into() })
    }
}

/// A guest that does what it is told, the layout of its disk, and the shadow.
struct Guest {
    device: Device,
    layout: Layout,
    shadow: Shadow,
    requests: u64,
    /// First block of the log on the disk.
    log: u64,
    /// Next block of the log.
    head: u64,
    tid: u32,
}

impl Guest {
    fn open(path: &Path, bytes: u64) -> Guest {
        let mut device = Device(File::open(path).unwrap());
        let mut layout = Layout::open(&mut device, bytes).unwrap();
        layout.keep_commits();
        let mut shadow = Shadow::new(Options::default());
        shadow.opened(&layout);
        let mut log = None;
        layout.map().classify(0, bytes / 512, &mut |span| {
            if span.class == Class::JournalSuperblock {
                log = Some(span.first_sector / PER_BLOCK);
            }
        });
        Guest { device, layout, shadow, requests: 0, log: log.unwrap(), head: 1, tid: 1 }
    }

    fn request(&mut self, op: Op, block: u64, bytes: &[u8]) {
        self.requests += 1;
        let (id, now) = (RequestId(self.requests), Nanos(self.requests * 1000));
        let (sector, sectors) = (block * PER_BLOCK, bytes.len() as u64 / 512);
        let wanted = self.shadow.watch().wants(&self.layout.map(), op, sector, sectors);
        let bytes = (wanted == Wants::Bytes).then_some(bytes);
        if let Some(bytes) = bytes {
            let _: Change = self.layout.write_arrived(sector, bytes);
        }
        let arriving = Arriving { id, op, sector, sectors, bytes };
        self.shadow.arrive(now, &arriving, &self.layout.map());
        let old = self.layout.map();
        if let Some(bytes) = bytes {
            let change = self.layout.write_done(sector, bytes);
            assert_ne!(change, Change::Reopen, "the map was lost");
        }
        let commits = self.layout.take_commits();
        self.shadow.complete(now, id, Outcome::Ok, (&old, &self.layout.map()), &commits);
    }

    fn read(&mut self, block: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        self.device.read_at(block * BLOCK as u64, &mut bytes).unwrap();
        bytes
    }

    /// Logs the blocks with what is on the disk and commits.
    fn transaction(&mut self, blocks: &[u64]) {
        let mut descriptor = header(1, self.tid);
        for (place, block) in blocks.iter().enumerate() {
            // JBD2_FLAG_SAME_UUID, JBD2_FLAG_LAST_TAG; the first tag has a UUID behind it.
            let last = place + 1 == blocks.len();
            let flags = 2 * u32::from(place > 0) + 8 * u32::from(last);
            descriptor.extend(u32::try_from(*block).unwrap().to_be_bytes());
            descriptor.extend(flags.to_be_bytes());
            descriptor.extend([0_u8; 16].iter().take(if place == 0 { 16 } else { 0 }));
        }
        assert!(descriptor.len() <= BLOCK);
        self.logged(descriptor);
        for block in blocks {
            let bytes = self.read(*block);
            self.logged(bytes);
        }
        self.request(Op::Flush, 0, &[]);
        let commit = header(2, self.tid);
        self.logged(commit);
        self.request(Op::Flush, 0, &[]);
        self.tid += 1;
    }

    fn logged(&mut self, mut bytes: Vec<u8>) {
        bytes.resize(BLOCK, 0);
        let at = self.log + self.head;
        self.head += 1;
        self.request(Op::Write, at, &bytes);
    }

    /// The journal's superblock says that the log has transactions.
    fn begin(&mut self) {
        let mut superblock = self.read(self.log);
        superblock[0x1c..0x20].copy_from_slice(&1_u32.to_be_bytes());
        self.tid = u32::from_be_bytes(superblock[0x18..0x1c].try_into().unwrap());
        let at = self.log;
        self.request(Op::Write, at, &superblock);
    }
}

fn header(kind: u32, tid: u32) -> Vec<u8> {
    [MAGIC, kind.to_be_bytes(), tid.to_be_bytes()].concat()
}

/// A line of `/proc/self/status`, in bytes.
fn resident(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<u64>().unwrap() << 10
}

fn make() -> Image {
    let files = tempfile::tempdir().unwrap();
    for folder in 0..FILES / PER_FOLDER {
        let folder = files.path().join(folder.to_string());
        fs::create_dir(&folder).unwrap();
        for file in 0..PER_FOLDER {
            fs::write(folder.join(file.to_string()), b"x").unwrap();
        }
    }
    let files = files.path().to_str().unwrap();
    let options = ["-b", "4096", "-O", "^metadata_csum,^64bit", "-d", files];
    Image::make(100 * GIB, &options)
}

#[test]
fn a_hundred_thousand_files_take_little() {
    let image = make();
    let before = resident("VmRSS");
    let mut guest = Guest::open(&image.path(), 100 * GIB);
    let (mut metadata, mut free) = (Vec::new(), Vec::new());
    let map = guest.layout.map();
    let mut files = 0;
    map.classify(0, map.device_sectors(), &mut |span| {
        let blocks = span.first_sector / PER_BLOCK..(span.first_sector + span.sectors) / PER_BLOCK;
        match span.class {
            Class::Home(Home::InodeTable { first_inode, .. }) => {
                // Those in use; the rest of a table is as mkfs.ext4 left it.
                let used = u64::from((FILES + PER_FOLDER).saturating_sub(first_inode)) / 16;
                metadata.extend(blocks.take(used as usize));
            }
            Class::Home(Home::BlockBitmap { .. }) => metadata.extend(blocks),
            Class::Home(Home::FileData { .. }) => files += blocks.end - blocks.start,
            Class::Home(Home::Free) => {
                free.extend(blocks.step_by((16 * MIB) as usize / BLOCK));
            }
            _ => {}
        }
    });
    drop(map);
    assert!(files >= FILES.into(), "{files} blocks of file data");
    guest.begin();
    for blocks in metadata.chunks(LOGGED) {
        guest.transaction(blocks);
    }
    for block in &free {
        guest.request(Op::Write, *block, &[0x5a; BLOCK]);
    }
    let stats = guest.shadow.stats();
    let (now, peak) = (resident("VmRSS"), resident("VmHWM"));
    println!(
        "100 GiB, {FILES} files: {} MiB more than before, {} MiB at most; shadow {} KiB, layout {} \
         KiB; {} commits, {} checked, {} unknown",
        (now - before) / MIB,
        (peak - before) / MIB,
        stats.heap_bytes / 1024,
        guest.layout.heap_bytes() / 1024,
        stats.commits,
        stats.checked,
        stats.unknown
    );
    assert_eq!(guest.shadow.take_findings(), []);
    assert!(stats.checked > u64::from(FILES), "{stats:?}");
    assert!(now - before < 64 * MIB, "{} bytes", now - before);
    assert!(peak - before < 64 * MIB, "{} bytes at most", peak - before);
    let counted = stats.heap_bytes + guest.layout.heap_bytes() as u64;
    assert!(counted * 2 > now - before, "{counted} bytes counted, {} taken", now - before);
}
