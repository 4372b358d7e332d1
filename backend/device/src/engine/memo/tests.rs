//! Goal: what is remembered never differs from what the map says, whatever rules are loaded and
//! however the disk has changed since.
//! Method: ext4 from the real mkfs.ext4 with files in it, blocks of 1024 and of 4096 bytes; random
//! rules, ranges and changes of metadata through the engine; each look is compared with one that
//! remembers nothing. One memo is kept through all of them.

use std::cell::RefCell;
use std::process::Command;
use std::sync::Arc;

use pipeline::event::RulesText;
use pipeline::{Op, Outcome};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::super::{ArrivingRequest, Engine, EngineOptions, Interest, Seen};
use super::*;
use crate::segments::AlignedBuf;
use crate::storage::Storage;
use crate::storage::memory::MemoryStorage;

const DISK_BYTES: u64 = 32 << 20;
const SECTORS: u64 = DISK_BYTES / 512;

/// A file system with files of many sizes; `offset` sectors into the disk.
fn file_system(block: u32, offset: u64) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let (top, path) = (folder.path().join("top"), folder.path().join("image"));
    std::fs::create_dir(&top).expect("a folder");
    for n in 0..150_usize {
        let file = top.join(n.to_string());
        std::fs::write(file, vec![n as u8; n * n]).expect("a file");
    }
    std::fs::File::create(&path).and_then(|file| file.set_len(DISK_BYTES / 2)).expect("an image");
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-b", &block.to_string(), "-d"]).arg(&top).arg(&path);
    let made = mkfs.output().expect("mkfs.ext4 (apt install e2fsprogs)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut bytes = vec![0; offset as usize * 512];
    bytes.extend(std::fs::read(&path).expect("the image"));
    bytes.resize(DISK_BYTES as usize, 0);
    if offset > 0 {
        // A table with one partition of Linux.
        bytes[446 + 4] = 0x83;
        bytes[446 + 8..446 + 12].copy_from_slice(&(offset as u32).to_le_bytes());
        bytes[446 + 12..446 + 16].copy_from_slice(&((DISK_BYTES / 1024) as u32).to_le_bytes());
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    }
    bytes
}

/// What happens between looks.
#[derive(Clone, Debug)]
enum Step {
    /// A range, by each operation; the second time it may be remembered.
    Look { sector: u64, sectors: u64 },
    /// Rules with these conditions are loaded.
    Load(Vec<String>),
    /// Bits of a block are turned over and written, if a look says that its bytes matter.
    Change { sector: u64, byte: usize, bits: u8 },
    /// The thread sleeps.
    Forget,
}

fn condition() -> impl Strategy<Value = String> {
    let op = prop_oneof![
        Just(""),
        Just("op = \"read\", "),
        Just("op = \"write\", "),
        Just("op = [\"write\", \"fault\"], "),
    ];
    let what = prop_oneof![
        (11..150_u32).prop_map(|ino| format!("inode = {ino}")),
        (11..150_u32).prop_map(|ino| format!("class = \"file_data\", inode = {ino}")),
        (0..3_u32).prop_map(|group| format!("group = {group}")),
        Just("class = \"block_bitmap\"".to_owned()),
        Just("class = [\"free\", \"directory\"]".to_owned()),
        Just("class = \"inode_table\", inode = 20".to_owned()),
        (0..SECTORS).prop_map(|first| format!("class = \"file_data\", sector = \"{first}..\"")),
        (0..SECTORS).prop_map(|first| format!("sector = \"{first}..={}\"", first + 40)),
    ];
    (op, what).prop_map(|(op, what)| format!("{{ {op}{what} }}"))
}

fn step() -> impl Strategy<Value = Step> {
    // Most of what mkfs.ext4 makes lies at the beginning.
    let sector = prop_oneof![0..SECTORS / 16, 0..SECTORS];
    let sectors = prop_oneof![Just(8_u64), 1..20_u64, 1..300_u64];
    prop_oneof![
        20 => (sector.clone(), sectors, any::<bool>()).prop_map(|(sector, sectors, aligned)| {
            Step::Look { sector: if aligned { sector & !7 } else { sector }, sectors }
        }),
        1 => vec(condition(), 0..6).prop_map(Step::Load),
        3 => (sector, 0..1024_usize, 1_u8..)
            .prop_map(|(sector, byte, bits)| Step::Change { sector: sector & !1, byte, bits }),
        1 => Just(Step::Forget),
    ]
}

/// What was seen to occur.
#[derive(Default)]
struct Occurred {
    remembered: usize,
    wanted: usize,
    changed: usize,
}

struct Disk {
    storage: Arc<MemoryStorage>,
    engine: Arc<Engine>,
    seen: Seen,
}

impl Disk {
    fn new(bytes: &[u8]) -> Disk {
        let storage = Arc::new(MemoryStorage::new(DISK_BYTES).expect("memory"));
        storage.write_at(0, bytes).expect("fits");
        let options =
            EngineOptions { queues: 1, seed: 1, storage: storage.clone(), log: None, shadow: None };
        let engine = Engine::new(options).expect("an engine");
        Disk { storage, engine, seen: Seen::default() }
    }

    fn run(&mut self, step: &Step, occurred: &mut Occurred) -> Result<(), TestCaseError> {
        match step {
            Step::Look { sector, sectors } => {
                let sectors = (*sectors).min(SECTORS - sector);
                for op in Op::ALL.into_iter().chain(Op::ALL) {
                    let found = self.engine.look(&mut self.seen, op, *sector, sectors);
                    let dumb = self.engine.view.look_once(op, *sector, sectors);
                    prop_assert_eq!(found, dumb, "{:?} {}+{}", op, sector, sectors);
                    occurred.wanted += usize::from(dumb.interest != Interest::None);
                    let told = self.seen.memo().kinds(*sector, sectors, false);
                    occurred.remembered += usize::from(told.is_ok());
                }
            }
            Step::Load(conditions) => {
                let rule = |(n, condition): (usize, &String)| {
                    format!(
                        "[[rule]]\nname = \"r{n}\"\nmatch = {condition}\naction = {{ delay = \"1ms\" }}\n"
                    )
                };
                let text = conditions.iter().enumerate().map(rule).collect();
                let rules = RulesText { file: "random.toml".into(), text, ..RulesText::default() };
                // Some that can never fire are refused; then the old ones stay.
                let _ = self.engine.load(&rules);
            }
            Step::Change { sector, byte, bits } => {
                let sector = (*sector).min(SECTORS - 2);
                if self.engine.interest(Op::Write, sector, 2) != Interest::EventWithBytes {
                    return Ok(());
                }
                let mut buf = AlignedBuf::zeroed(1024);
                self.storage.read_at(sector * 512, buf.as_mut_slice()).expect("on the disk");
                buf.as_mut_slice()[*byte] ^= bits;
                let id = self.engine.next_id();
                let op = Op::Write;
                let request = ArrivingRequest { id, queue: 0, head: 0, op, sector, sectors: 2 };
                // Rules may delay it: what it does to the map is the same.
                self.engine.arrive(&request, Some(buf.as_slice()));
                self.storage.write_at(sector * 512, buf.as_slice()).expect("on the disk");
                let bytes = Some(buf.as_slice());
                self.engine.complete(id, Outcome::Ok, op, sector, 2, bytes);
                occurred.changed += 1;
            }
            Step::Forget => self.seen.forget(),
        }
        Ok(())
    }
}

#[test]
fn remembers_what_the_map_says() {
    let occurred = RefCell::new(Occurred::default());
    for (block, offset) in [(4096, 0), (1024, 0), (4096, 66), (1024, 67)] {
        let bytes = file_system(block, offset);
        let config = Config { cases: 12, failure_persistence: None, ..Config::default() };
        let found = TestRunner::new(config).run(
            &(vec(condition(), 1..6), vec(step(), 200)),
            |(first, then)| {
                let (mut disk, mut occurred) = (Disk::new(&bytes), occurred.borrow_mut());
                for step in std::iter::once(&Step::Load(first)).chain(&then) {
                    disk.run(step, &mut occurred)?;
                }
                Ok(())
            },
        );
        if let Err(error) = found {
            panic!("blocks of {block}, at sector {offset}: {error}");
        }
    }
    let Occurred { remembered, wanted, changed } = occurred.into_inner();
    println!("{remembered} remembered, {wanted} wanted, {changed} changes");
    assert!(remembered > 10_000 && wanted > 10_000 && changed > 100);
}

#[test]
fn epochs_end() {
    let lines = vec![Line { tag: 0, units: [NOT_KNOWN; UNITS] }; 4];
    let mut memo = Memo { lines, ..Memo::default() };
    memo.set(7, Kind::Free as u8 + 1);
    assert_eq!(memo.kinds(56, 8, false), Ok(Kind::Free.bit()));
    assert_eq!(memo.kinds(56, 9, false), Err(Untold::NotKnown));
    for _ in 0..EPOCHS + 3 {
        memo.void();
        assert_eq!(memo.kinds(56, 8, false), Err(Untold::NotKnown));
    }
    // A disk larger than a tag can name is looked up.
    assert_eq!(memo.kinds(u64::MAX - 8, 8, false), Err(Untold::Ask));
    assert_eq!(memo.kinds(u64::MAX - 6, 8, false), Err(Untold::Ask));
}
