//! Goal: no guest, image or log makes the shadow panic, hang or grow.
//! Method: recorded logs of a real guest and the real image in them, with bytes, order, places and
//! text altered at random; and guests made to reach a bound, one for each that a guest can reach
//! with few writes. What is asserted: an answer, and the size of all tables.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ext4_layout::Kind;
use pipeline::event::{Event, What, bytes_event, bytes_of};
use pipeline::shadow::{Checked, Checker, Options, Rule};
use pipeline::{Nanos, Op, Outcome, RequestId};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::recording::{check, plain, recorded, writes};

/// Of shadow and layout of the recorded disks, which have 8 MiB.
const SMALL: u64 = 16 << 20;
/// Of the shadow, whatever happens; what it allows itself and one transaction.
const LARGE: u64 = 64 << 20;
/// Far more than any log here takes in a build without optimisation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Bytes put over others: where in the recorded bytes, and what.
type Edit = (Index, usize, Vec<u8>);

fn edits(most: usize) -> impl Strategy<Value = Vec<Edit>> {
    let byte = (any::<Index>(), 0_usize..4096, any::<u8>())
        .prop_map(|(at, offset, byte)| (at, offset, vec![byte]));
    let word = (any::<Index>(), 0_usize..1024, any::<u32>()).prop_map(|(at, word, value)| {
        // Both byte orders, the log's and the file system's, and many small or huge numbers.
        let value = value >> (value % 29);
        let bytes = if value & 1 == 0 { value.to_be_bytes() } else { value.to_le_bytes() };
        (at, word * 4, bytes.to_vec())
    });
    let fill = (any::<Index>(), 0_usize..4096, 4_usize..64, any::<bool>())
        .prop_map(|(at, offset, len, ones)| (at, offset, vec![if ones { 0xff } else { 0 }; len]));
    prop::collection::vec(prop_oneof![byte, word, fill], 0..most)
}

/// Puts the edits over the bytes of events that `pick` takes.
fn edited(mut events: Vec<Event>, edits: &[Edit], pick: impl Fn(&What) -> bool) -> Vec<Event> {
    let places: Vec<usize> = (0..events.len()).filter(|at| pick(&events[*at].what)).collect();
    for (at, offset, new) in edits {
        let at = *at.get(&places);
        let What::Bytes { id, offset: place, len, data } = &events[at].what else { continue };
        let mut bytes = bytes_of(*len, data).unwrap();
        for (byte, new) in bytes.iter_mut().skip(*offset).zip(new) {
            *byte = *new;
        }
        events[at].what = bytes_event(*id, *place, &bytes);
    }
    events
}

fn of_a_write(what: &What) -> bool {
    matches!(what, What::Bytes { id: Some(_), .. })
}

fn of_the_image(what: &What) -> bool {
    matches!(what, What::Bytes { id: None, .. })
}

fn stays_small(checked: &Checked) -> Result<(), TestCaseError> {
    prop_assert!(checked.stats.heap_bytes + checked.stats.layout_bytes < SMALL);
    prop_assert!(checked.findings.len() <= 64 * Rule::ALL.len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_hostile_guest_costs_nothing(
        edits in edits(80),
        moves in prop::collection::vec(any::<(Index, Index)>(), 0..40),
        sectors in prop::collection::vec((any::<Index>(), any::<u64>()), 0..10),
    ) {
        let mut events = edited(plain(), &edits, of_a_write);
        for (from, to) in moves {
            let event = events.remove(from.index(events.len()));
            events.insert(to.index(events.len() + 1), event);
        }
        for (at, value) in sectors {
            let at = at.index(events.len());
            if let What::Request { sector, sectors, .. } = &mut events[at].what {
                (*sector, *sectors) = (value >> (value % 64), value % (1 << 17));
            }
        }
        stays_small(&check(&events))?;
    }

    /// Of the log without checksums: nothing stands between an edit and its effect.
    #[test]
    fn a_corrupt_image_costs_nothing(image in edits(60), guest in edits(20), journaled: bool) {
        let name = if journaled { "guest-journaled.jsonl" } else { "guest-plain.jsonl" };
        let events = edited(recorded(name), &image, of_the_image);
        stays_small(&check(&edited(events, &guest, of_a_write)))?;
    }

    /// Lines cut, joined, repeated, with other bytes and other numbers: an error that names the
    /// line, or an answer.
    #[test]
    fn a_corrupt_log_costs_nothing(
        bytes in prop::collection::vec((any::<Index>(), any::<Index>(), any::<u8>()), 0..6),
        numbers in prop::collection::vec((any::<Index>(), any::<u64>()), 0..12),
        cut in prop::option::of((any::<Index>(), any::<Index>())),
        repeated in prop::option::of(any::<Index>()),
    ) {
        let events = plain();
        let lines = events.iter().map(|event| serde_json::to_string(event).unwrap());
        let mut lines: Vec<String> = lines.collect();
        for (at, value) in numbers {
            let line = at.get(&lines).clone();
            let value = (value >> (value % 64)).to_string();
            let of_number = |c: char| c.is_ascii_digit();
            if let Some(from) = line.rfind("\":").and_then(|at| line[at..].find(of_number).map(|by| at + by)) {
                let to = line[from..].find(|c| !of_number(c)).map_or(line.len(), |by| from + by);
                let place = at.index(lines.len());
                lines[place] = [&line[..from], &value, &line[to..]].concat();
            }
        }
        for (at, byte, new) in bytes {
            let place = at.index(lines.len());
            let mut raw = lines[place].clone().into_bytes();
            let at = byte.index(raw.len());
            raw[at] = new;
            lines[place] = String::from_utf8_lossy(&raw).into_owned();
        }
        if let Some((at, byte)) = cut {
            let place = at.index(lines.len());
            let end = byte.index(lines[place].len());
            lines[place] = lines[place].chars().take(end).collect();
        }
        if let Some(at) = repeated {
            let line = at.get(&lines).clone();
            lines.insert(at.index(lines.len()), line);
        }
        let mut checker = Checker::new(Options::default());
        let mut refused = Vec::new();
        for (line, number) in lines.iter().zip(1..) {
            if let Err(error) = checker.line(line) {
                refused.push((number, error.to_string()));
            }
        }
        for (number, error) in &refused {
            let named = error.contains(&format!("line {number} ")) || error.contains("schema");
            prop_assert!(named, "{error}");
        }
        if let Ok(checked) = checker.finish() {
            stays_small(&checked)?;
        }
    }
}

/// The last block of the log: with its descriptor and its commit record, a transaction of 100 copies
/// takes all of it.
const LOG_END: u32 = 102;

/// A guest on the recorded disk, from the end of a log on.
struct Guest {
    checker: Checker,
    requests: u64,
    /// Where the blocks of the log are that the recorded guest wrote: first sectors, in order. The
    /// log is in several pieces, with bitmaps in between.
    log: Vec<u64>,
    /// Where the journal's superblock is, and what it is.
    superblock: (u64, Vec<u8>),
    began: Instant,
}

impl Guest {
    fn new() -> Guest {
        let events = plain();
        let writes = writes(&events);
        let kinds = [Kind::JournalDescriptor, Kind::JournalCopy, Kind::JournalCommit];
        let spans = writes.iter().flat_map(|of| &of.spans);
        let log = spans.filter(|(_, kind, _)| kinds.contains(kind)).map(|(sector, ..)| *sector);
        let log: Vec<u64> = log.collect::<BTreeSet<u64>>().into_iter().collect();
        assert!(
            log.len() >= LOG_END as usize,
            "a log of {} blocks is too short for these tests",
            log.len()
        );
        let last = writes.iter().rfind(|of| of.has(Kind::JournalSuperblock)).unwrap();
        let What::Bytes { len, data, .. } = &events[last.bytes.unwrap()].what else { panic!() };
        let superblock = (last.sector, bytes_of(*len, data).unwrap());
        let mut checker = Checker::new(Options::default());
        for event in events {
            checker.event(event).unwrap();
        }
        Guest { checker, requests: 1 << 32, log, superblock, began: Instant::now() }
    }

    /// Empties the log, cuts it to blocks 1 to [`LOG_END`], and has it begin with transaction `tid`.
    fn begin(&mut self, tid: u32) {
        let (sector, mut block) = self.superblock.clone();
        // s_maxlen, s_sequence and s_start of journal_superblock_t.
        block[0x10..0x14].copy_from_slice(&(LOG_END + 1).to_be_bytes());
        block[0x18..0x1c].copy_from_slice(&tid.to_be_bytes());
        for start in [0, 1_u32] {
            block[0x1c..0x20].copy_from_slice(&start.to_be_bytes());
            self.write(sector, &block);
        }
    }

    fn request(&mut self, op: Op, sector: u64, sectors: u64, bytes: Option<&[u8]>) {
        self.requests += 1;
        let id = RequestId(self.requests);
        let mut event = |what| {
            let at = Nanos(self.requests);
            self.checker.event(Event { seq: self.requests, at, what }).unwrap();
        };
        if let Some(bytes) = bytes {
            event(bytes_event(Some(id), sector * 512, bytes));
        }
        let (queue, head, classes) = (0, 0, Vec::new());
        event(What::Request { id, queue, head, op, sector, sectors, classes });
        event(complete(id));
        assert!(self.began.elapsed() < PATIENCE, "it takes too long");
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) {
        self.request(Op::Write, sector, bytes.len() as u64 / 512, Some(bytes));
    }

    /// Writes block `index` of the log, from 1: blocks of 1 KiB.
    fn log(&mut self, index: u64, bytes: &[u8]) {
        let mut block = bytes.to_vec();
        block.resize(1024, 0);
        self.write(self.log[index as usize - 1], &block);
    }

    /// Commits that took effect so far, and bytes of all tables.
    fn stats(&self) -> (u64, u64) {
        let stats = self.checker.stats();
        (stats.commits, stats.heap_bytes)
    }

    fn end(self) -> Checked {
        let checked = self.checker.finish().unwrap();
        let (shadow, layout) = (checked.stats.heap_bytes, checked.stats.layout_bytes);
        assert!(shadow < LARGE && layout < LARGE, "shadow {shadow}, layout {layout}");
        checked
    }
}

fn complete(id: RequestId) -> What {
    What::Complete { id, outcome: Outcome::Ok, submitted: None }
}

fn header(kind: u32, tid: u32) -> Vec<u8> {
    [0xc03b_3998, kind, tid].iter().flat_map(|word: &u32| word.to_be_bytes()).collect()
}

/// A descriptor that names `count` blocks from `first` on.
fn descriptor(tid: u32, first: u32, count: u32) -> Vec<u8> {
    let mut bytes = header(1, tid);
    for at in 0..count {
        bytes.extend((first + at).to_be_bytes());
        bytes.extend((2 * u32::from(at > 0) + 8 * u32::from(at + 1 == count)).to_be_bytes());
        bytes.extend([0; 16].iter().take(if at == 0 { 16 } else { 0 }));
    }
    bytes
}

/// 300,000 blocks named by one transaction without a commit; without the bound 11 MiB.
#[test]
fn one_descriptor_over_and_over() {
    let mut guest = Guest::new();
    guest.begin(1000);
    for round in 0..3000 {
        guest.log(1, &descriptor(1000, round * 100, 100));
        let (_, heap) = guest.stats();
        assert!(heap < 8 << 20, "{heap} bytes in round {round}");
        assert!(round != 1000 || heap > 1 << 20, "the log is not followed: {heap} bytes");
    }
    guest.end();
}

/// 160,000 blocks that recovery would restore, in transactions that overwrite one another in the
/// log; without the bound 13 MiB.
#[test]
fn transactions_without_end() {
    let mut guest = Guest::new();
    let (before, _) = guest.stats();
    let mut most = 0;
    // Where the log begins is told once: nothing leaves it.
    guest.begin(1000);
    for round in 0..1600 {
        let tid = 1000 + round;
        // Of blocks beyond the file system.
        guest.log(1, &descriptor(tid, 100_000 + round * 100, 100));
        for copy in 0..100 {
            guest.log(2 + copy, &[round as u8; 8]);
        }
        guest.log(102, &header(2, tid));
        if round % 50 == 0 {
            let (_, heap) = guest.stats();
            assert!(heap < 12 << 20, "{heap} bytes in round {round}");
            most = most.max(heap);
        }
    }
    let (after, _) = guest.stats();
    assert!(after == before + 1600 && most > 8 << 20, "{} commits, {most} bytes", after - before);
    guest.end();
}

/// 500,000 blocks revoked by one transaction without a commit; without the bound 4 MiB.
#[test]
fn revokes_without_end() {
    let mut guest = Guest::new();
    guest.begin(1000);
    for round in 0..2000_u32 {
        let mut bytes = header(5, 1000);
        bytes.extend(1024_u32.to_be_bytes());
        bytes.extend((0..252).flat_map(|at: u32| (round * 252 + at).to_be_bytes()));
        guest.log(1 + u64::from(round % LOG_END), &bytes);
        let (_, heap) = guest.stats();
        assert!(heap < 3 << 20, "{heap} bytes in round {round}");
        assert!(round != 500 || heap > 1 << 20, "the log is not followed: {heap} bytes");
    }
    guest.end();
}

#[test]
fn ranges_of_the_size_of_the_largest_disk() {
    let mut guest = Guest::new();
    for op in [Op::Discard, Op::WriteZeroes, Op::Discard] {
        for first in [0, 5, 1 << 20] {
            guest.request(op, first, u64::MAX >> 1, None);
            guest.request(op, first, 1 << 40, None);
        }
    }
    guest.end();
}

/// Every inode of a table claims as much as an inode can, and gives it up again.
#[test]
fn extents_of_the_largest_size() {
    let events = plain();
    let writes = writes(&events);
    let tables = writes.iter().flat_map(|of| &of.spans);
    let tables = tables.filter(|(_, kind, _)| *kind == Kind::InodeTable);
    let table = tables.map(|(sector, ..)| *sector).next_back().unwrap();
    let mut guest = Guest::new();
    let (before, _) = guest.stats();
    for round in 0..400_u32 {
        let mut block = vec![0; 1024];
        for (at, inode) in block.chunks_exact_mut(256).enumerate() {
            inode[0..2].copy_from_slice(&0x81a4_u16.to_le_bytes());
            inode[0x1a] = 1;
            inode[0x20..0x24].copy_from_slice(&0x8_0000_u32.to_le_bytes());
            inode[0x28..0x30].copy_from_slice(&[0x0a, 0xf3, 4, 0, 4, 0, 0, 0]);
            for extent in 0..4_u32 {
                let entry = &mut inode[0x34 + extent as usize * 12..][..12];
                entry[0..4].copy_from_slice(&(extent * 0x8000).to_le_bytes());
                entry[4..6].copy_from_slice(&0x8000_u16.to_le_bytes());
                entry[8..12].copy_from_slice(&(round % 7 + at as u32).to_le_bytes());
            }
        }
        let tid = 1000 + round;
        guest.begin(tid);
        guest.log(1, &descriptor(tid, (table / 2) as u32, 1));
        guest.log(2, &block);
        guest.log(3, &header(2, tid));
    }
    let (after, heap) = guest.stats();
    assert!(after == before + 400 && heap < 1 << 20, "{} commits, {heap} bytes", after - before);
    guest.end();
}
