mod cache;
mod recorded;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::event::{Event, What};
use crate::kernel::{KernelLine, parse_line};
use crate::request::Nanos;

/// Extent status as the highest bits of `es_pblk`.
const W: u64 = 1 << 59;
const U: u64 = 2 << 59;
const D: u64 = 4 << 59;
const H: u64 = 8 << 59;

/// A story of one inode, told by lines as the kernel writes them.
struct Story {
    shadow: DelallocShadow,
    at_us: u64,
    reserved: u64,
    /// Entries, and how many of them need not be kept.
    counts: (u64, u64),
    ratio: u64,
}

impl Story {
    fn on(release: &str) -> Story {
        let shadow = DelallocShadow::new(release);
        let mut story = Story { shadow, at_us: 1_000_000, reserved: 0, counts: (0, 0), ratio: 1 };
        assert_eq!(story.say("maker-70", "alloc", "inode=0xa0"), NOTHING);
        story
    }

    fn say(&mut self, thread: &str, probe: &str, fields: &str) -> Vec<&'static str> {
        self.at_us += 10;
        let (s, us) = (self.at_us / 1_000_000, self.at_us % 1_000_000);
        let line = format!(" {thread} [000] d..1. {s}.{us:06}: {probe}: (f+0x0/0x1) {fields}");
        let KernelLine::Event(event) = parse_line(&line) else { panic!("{line}") };
        self.shadow.step(&event).iter().map(|finding| finding.rule.name()).collect()
    }

    fn inode(&self) -> String {
        let (all, shk) = self.counts;
        let (reserved, ratio) = (self.reserved, self.ratio);
        format!("inode=0xa0 ino=13 reserved={reserved} all={all} shk={shk} ratio={ratio}")
    }

    fn insert(&mut self, thread: &str, lblk: u32, len: u32, pblk: u64) -> Vec<&'static str> {
        let fields = format!("{} lblk={lblk} len={len} pblk={pblk:#x}", self.inode());
        let found = self.say(thread, "es_insert", &fields);
        self.counts.0 += 1;
        self.counts.1 += u64::from(pblk & D == 0);
        found
    }

    /// A delayed extent, with its reservation.
    fn delay(&mut self, thread: &str, lblk: u32) -> Vec<&'static str> {
        self.reserved += 1;
        self.insert(thread, lblk, 1, D)
    }

    fn remove(&mut self, thread: &str, lblk: u32, end: u32) -> Vec<&'static str> {
        let fields = format!("{} lblk={lblk} end={end}", self.inode());
        self.say(thread, "es_remove", &fields)
    }

    fn give_up(&mut self, lblk: u32, len: u32) {
        let fields = format!("inode=0xa0 lblk={lblk} len={len}");
        assert_eq!(self.say("rm-72", "es_give_up", &fields), NOTHING);
    }

    fn update(&mut self, thread: &str, probe: &str, used: u64) -> Vec<&'static str> {
        let fields = format!("{} used={used}", self.inode());
        let found = self.say(thread, probe, &fields);
        self.reserved = self.reserved.saturating_sub(used);
        found
    }

    fn over(&mut self, thread: &str) -> Vec<&'static str> {
        self.say(thread, "map_end", "ret=1")
    }
}

const NOTHING: [&str; 0] = [];

/// A block is delayed, written back, and given up with its file.
fn life(story: &mut Story) {
    assert_eq!(story.delay("writer-71", 0), NOTHING);
    assert_eq!(story.over("writer-71"), NOTHING);
    assert_eq!(story.update("flush-9", "update_reserve", 1), NOTHING);
    assert_eq!(story.remove("flush-9", 0, 0), NOTHING);
    story.counts = (0, 0);
    assert_eq!(story.insert("flush-9", 0, 1, W + 100), NOTHING);
    assert_eq!(story.over("flush-9"), NOTHING);
}

#[test]
fn a_sound_life_gives_no_finding() {
    let mut story = Story::on("6.1.0");
    life(&mut story);
    story.give_up(0, 5);
    story.remove("rm-72", 0, 4);
    assert_eq!(story.say("rm-72", "free", "inode=0xa0 ino=13 block=100 count=1"), NOTHING);
    assert_eq!(story.say("rm-72", "evict", "inode=0xa0 ino=13 nlink=0 blocks=8"), NOTHING);
    story.counts = (0, 0);
    let end = format!("{} pending=0x0", story.inode());
    assert_eq!(story.say("rm-72", "destroy", &end), NOTHING);
    assert_eq!(story.say("rm-72", "destroy_io", "inode=0xa0 ino=13 unwritten=0 dio=0"), NOTHING);
}

#[test]
fn a1_a_block_that_moves_and_a_block_that_is_freed_under_its_entry() {
    let mut story = Story::on("6.1.0");
    life(&mut story);
    assert_eq!(story.insert("reader-73", 0, 1, W + 100), NOTHING);
    assert_eq!(story.insert("reader-73", 0, 1, W + 101), ["A1"]);
    let mut story = Story::on("6.1.0");
    life(&mut story);
    // Truncation removes, somebody caches it again, and then it is freed.
    story.give_up(0, 5);
    story.remove("rm-72", 0, 4);
    assert_eq!(story.insert("reader-73", 0, 1, W + 100), NOTHING);
    assert_eq!(story.say("rm-72", "free", "inode=0xa0 ino=13 block=96 count=8"), ["A1"]);
}

#[test]
fn a2_a_hole_over_delayed_and_over_allocated_blocks() {
    let mut story = Story::on("6.1.0");
    story.delay("writer-71", 3);
    let put = |status| format!("inode=0xa0 ino=13 lblk=0 len=8 status={status}");
    assert_eq!(story.say("reader-73", "es_put", &put(1)), NOTHING);
    assert_eq!(story.say("reader-73", "es_put", &put(8)), ["A2"]);
    let mut story = Story::on("6.1.0");
    life(&mut story);
    assert_eq!(story.insert("reader-73", 0, 8, H | 7), ["A2"]);
}

#[test]
fn a3_a_reservation_that_nobody_uses_up() {
    let mut story = Story::on("6.1.0");
    story.delay("writer-71", 0);
    story.over("writer-71");
    story.remove("flush-9", 0, 0);
    story.counts = (0, 0);
    story.insert("flush-9", 0, 1, W + 100);
    assert_eq!(story.over("flush-9"), ["A3"]);
    // Once is enough.
    story.insert("flush-9", 0, 1, W + 100);
    assert_eq!(story.over("flush-9"), NOTHING);
}

#[test]
fn a3_the_next_change_by_another_thread_ends_a_section() {
    let mut story = Story::on("6.1.0");
    story.delay("writer-71", 0);
    story.remove("flush-9", 0, 0);
    story.counts = (0, 0);
    story.insert("flush-9", 0, 1, W + 100);
    assert_eq!(story.insert("reader-73", 4, 1, H), ["A3"]);
}

#[test]
fn a4_the_founding_bug_is_noticed_when_it_happens() {
    let mut story = Story::on("5.10.0");
    story.say("allocator-70", "fallocate", "");
    story.insert("allocator-70", 0, 1, H);
    story.say("storer-71", "mkwrite", "");
    story.remove("allocator-70", 0, 0);
    story.insert("allocator-70", 0, 1, U | 0x841);
    story.reserved = 1;
    story.remove("storer-71", 0, 0);
    let fields = format!("{} lblk=0 len=1 pblk={D:#x}", story.inode());
    let line = format!(" storer-71 [001] d... 2.000000: es_insert: (f+0x0/0x1) {fields}");
    let KernelLine::Event(event) = parse_line(&line) else { panic!() };
    let found = story.shadow.step(&event);
    assert_eq!(
        found.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "A4: inode 13, blocks 0+1: a delayed extent went in over allocated blocks; by storer-71 in \
          ext4_page_mkwrite at 2000000 us, against allocator-70 in ext4_fallocate at 1000060 us"
        ]
    );
    assert!(!found[0].story.is_empty());
    // What was lost is unknown, and unknown is no finding.
    story.shadow.lost();
    assert!(story.shadow.step(&event).is_empty());
}

#[test]
fn a4_what_a_truncation_leaves() {
    let mut story = Story::on("5.10.0");
    story.delay("writer-71", 0);
    story.over("writer-71");
    let to = |size| format!("inode=0xa0 ino=13 size={size} bits=12");
    story.say("writer-71", "truncate", &to(1));
    assert_eq!(story.say("writer-71", "truncate_end", "ret=0"), NOTHING);
    story.say("writer-71", "truncate", &to(0));
    assert_eq!(story.say("writer-71", "truncate_end", "ret=-5"), NOTHING);
    story.say("writer-71", "truncate", &to(0));
    assert_eq!(story.say("writer-71", "truncate_end", "ret=0"), ["A4"]);
}

#[test]
fn a5_a_pending_cluster_without_a_delayed_block() {
    let mut story = Story::on("6.12.0");
    story.ratio = 16;
    story.insert("writer-71", 0, 1, W + 100);
    // A second block of the cluster is delayed: it is pending, and costs no reservation.
    assert_eq!(story.insert("writer-71", 1, 1, D), NOTHING);
    story.say("writer-71", "pend_insert", "inode=0xa0 lblk=1");
    assert_eq!(story.over("writer-71"), NOTHING);
    // Which clusters a removal takes along is not seen.
    story.remove("rm-72", 1, 1);
    story.counts.0 -= 1;
    assert_eq!(story.over("rm-72"), NOTHING);
    // Nothing is delayed: nothing is pending.
    story.insert("writer-71", 32, 1, W + 200);
    story.say("writer-71", "pend_insert", "inode=0xa0 lblk=33");
    assert_eq!(story.over("writer-71"), ["A5"]);
}

#[test]
fn a6_a_disksize_beyond_the_size() {
    let mut story = Story::on("5.10.0");
    let begin = |size, disksize| format!("inode=0xa0 ino=13 size={size} disksize={disksize}");
    assert_eq!(story.say("writer-71", "write_begin", &begin(100, 100)), NOTHING);
    assert_eq!(story.say("writer-71", "write_begin", &begin(100, 2000)), ["A6"]);
}

#[test]
fn a8_types_are_judged_by_the_series() {
    for (release, both, found) in [
        ("5.10.0", U | D, vec![]),
        ("6.12.0", U | D, vec!["A8"]),
        ("5.10.0", W | D, vec!["A8"]),
        ("5.10.0", 0, vec!["A8"]),
        ("6.12.0", W | U, vec!["A8"]),
    ] {
        let mut story = Story::on(release);
        assert_eq!(story.insert("flush-9", 0, 1, both + 100), found, "{release} {both:#x}");
    }
    let mut story = Story::on("6.12.0");
    story.delay("writer-71", 0);
    story.counts = (1, 1);
    assert_eq!(story.insert("reader-73", 4, 1, H), ["A8"]);
    let mut story = Story::on("6.12.0");
    story.counts = (1, 0);
    assert_eq!(story.insert("reader-73", 4, 1, H), ["A8"]);
}

#[test]
fn a10_the_shrinker_takes_what_must_be_kept() {
    let mut story = Story::on("6.1.0");
    story.delay("writer-71", 3);
    let free = |pblk| format!("inode=0xa0 ino=13 lblk=3 len=1 pblk={pblk:#x}");
    // Not the shrinker.
    assert_eq!(story.say("writer-71", "es_free", &free(D)), NOTHING);
    story.say("kswapd0-40", "reclaim", "");
    assert_eq!(story.say("kswapd0-40", "es_free", &free(H)), NOTHING);
    assert_eq!(story.say("kswapd0-40", "es_free", &free(D)), ["A10"]);
    story.say("kswapd0-40", "reclaim_end", "");
    assert_eq!(story.say("kswapd0-40", "es_free", &free(D)), NOTHING);
}

#[test]
fn a11_more_than_was_reserved() {
    let mut story = Story::on("6.1.0");
    story.delay("writer-71", 0);
    assert_eq!(story.update("flush-9", "update_reserve", 2), ["A11"]);
    let mut story = Story::on("6.1.0");
    assert_eq!(story.update("rm-72", "release", 1), ["A11"]);
}

#[test]
fn b1_blocks_that_nobody_delays() {
    let mut story = Story::on("6.1.0");
    assert_eq!(story.say("init-1", "tracing_mark_write", "quiet=1 dirty=0"), NOTHING);
    assert_eq!(story.say("init-1", "tracing_mark_write", "dirty=3"), NOTHING);
    assert_eq!(story.say("init-1", "tracing_mark_write", "quiet=1 dirty=3"), ["B1"]);
    assert_eq!(story.say("init-1", "tracing_mark_write", "quiet=1 dirty=3"), NOTHING);
    story.say("init-1", "put_super", "");
    assert_eq!(story.say("init-1", "tracing_mark_write", "quiet=1 dirty=3"), ["B1"]);
}

#[test]
fn b4_sizes_in_the_end() {
    let end = |nlink, mode, disksize| {
        format!("inode=0xa0 ino=13 nlink={nlink} mode={mode} size=100 disksize={disksize}")
    };
    let said = |fields: &str| Story::on("6.1.0").say("init-1", "destroy_size", fields);
    assert_eq!(said(&end(1, 0o100_644, 100)), NOTHING);
    assert_eq!(said(&end(0, 0o100_644, 50)), NOTHING);
    assert_eq!(said(&end(1, 0o040_755, 50)), NOTHING);
    assert_eq!(said(&end(1, 0o100_644, 50)), ["B4"]);
    // Data that could not be written does not count.
    let mut story = Story::on("6.1.0");
    story.say("flush-9", "writepages", "inode=0xa0");
    story.say("flush-9", "writepages_end", "ret=-28");
    assert_eq!(story.say("init-1", "destroy_size", &end(1, 0o100_644, 50)), NOTHING);
}

#[test]
fn c1_and_c2_what_outlives_an_inode() {
    let end = |reserved, all, pending| {
        format!("inode=0xa0 ino=13 reserved={reserved} all={all} shk=0 ratio=1 pending={pending}")
    };
    for fields in [end(1, 0, "0x0"), end(0, 1, "0x0"), end(0, 0, "0xff80")] {
        assert_eq!(Story::on("6.1.0").say("rm-72", "destroy", &fields), ["C1"], "{fields}");
    }
    for fields in ["unwritten=1 dio=0", "unwritten=0 dio=1"] {
        let fields = format!("inode=0xa0 ino=13 {fields}");
        assert_eq!(Story::on("6.1.0").say("rm-72", "destroy_io", &fields), ["C2"]);
    }
}

#[test]
fn c3_blocks_that_nothing_counts() {
    let mut story = Story::on("6.1.0");
    life(&mut story);
    assert_eq!(story.say("rm-72", "evict", "inode=0xa0 ino=13 nlink=1 blocks=0"), NOTHING);
    assert_eq!(story.say("rm-72", "evict", "inode=0xa0 ino=13 nlink=0 blocks=0"), ["C3"]);
}

#[test]
fn g4_a_seek_that_skips_delayed_data() {
    for (probe, from, ret, found) in [
        ("seek_data", 0, 65_536_u64, vec![]),
        ("seek_data", 0, 69_632, vec!["G4"]),
        ("seek_data", 0, 6_u64.wrapping_neg(), vec!["G4"]),
        ("seek_data", 70_000, 6_u64.wrapping_neg(), vec![]),
        ("seek_hole", 65_536, 69_632, vec![]),
        ("seek_hole", 65_536, 65_536, vec!["G4"]),
        ("seek_hole", 0, 0, vec![]),
    ] {
        let mut story = Story::on("6.12.0");
        story.delay("writer-71", 16);
        story.over("writer-71");
        let fields = format!("inode=0xa0 ino=13 size=131072 from={from:#x} bits=12");
        story.say("reader-73", probe, &fields);
        let end = story.say("reader-73", &format!("{probe}_end"), &format!("ret={ret:#x}"));
        assert_eq!(end, found, "{probe} {from} {ret}");
    }
}

#[test]
fn a_probe_that_is_missing_takes_its_rule_along() {
    let mut story = Story::on("6.1.0");
    story.shadow.without(["p:racegate/destroy ext4_destroy_inode: no such symbol"].into_iter());
    assert!(!story.shadow.rules().any(|rule| rule == Invariant::C1));
    let fields = "inode=0xa0 ino=13 reserved=1 all=0 shk=0 pending=0x0";
    assert_eq!(story.say("rm-72", "destroy", fields), NOTHING);
}

#[test]
fn a_file_system_in_use_is_unknown_until_seen() {
    let mut story = Story::on("6.1.0");
    story.shadow.lost();
    // Some delayed blocks are there that nobody has seen.
    (story.reserved, story.counts) = (7, (9, 2));
    assert_eq!(story.delay("writer-71", 0), NOTHING);
    assert_eq!(story.over("writer-71"), NOTHING);
    let end = "inode=0xa0 ino=13 size=0 bits=12";
    story.say("writer-71", "truncate", end);
    // This one was seen.
    assert_eq!(story.say("writer-71", "truncate_end", "ret=0"), ["A4"]);
    // No entry is to be kept: from now on all that is delayed is known.
    (story.reserved, story.counts) = (0, (3, 3));
    story.remove("rm-72", 0, 9);
    assert_eq!(story.delay("writer-71", 4), NOTHING);
    assert_eq!(story.over("writer-71"), NOTHING);
    story.reserved = 2;
    story.insert("writer-71", 9, 1, H);
    assert_eq!(story.over("writer-71"), ["A3"]);
}

#[test]
fn memory_is_bounded() {
    let mut shadow = DelallocShadow::new("6.1.0");
    let mut step = |inode: u64, lblk: u64| {
        let fields = [("inode", inode), ("lblk", lblk), ("len", 1), ("pblk", W | (2 * lblk))];
        let event = KernelEvent {
            name: "es_insert".into(),
            fields: fields.map(|(name, value)| (name.to_owned(), value)).into(),
            ..KernelEvent::default()
        };
        shadow.step(&event);
        (shadow.inodes.len(), shadow.ranges, shadow.inodes.get(&1).map_or(0, Inode::ranges))
    };
    for inode in 1..5000 {
        assert!(step(inode, 0).0 <= MOST_INODES);
    }
    for block in 0..MOST_RANGES as u64 {
        let (_, ranges, own) = step(1, 2 * block);
        assert!(own <= ranges && ranges <= MOST_RANGES, "{own} of {ranges}");
    }
    assert!(shadow.forgotten() > 0);
}

/// Every field that a probe of ours has, but `inode`.
const FIELDS: [&str; 30] = [
    "ino",
    "reserved",
    "all",
    "shk",
    "ratio",
    "lblk",
    "len",
    "end",
    "pblk",
    "status",
    "used",
    "block",
    "count",
    "nlink",
    "blocks",
    "pending",
    "unwritten",
    "dio",
    "mode",
    "size",
    "disksize",
    "from",
    "bits",
    "ret",
    "dirty",
    "quiet",
    "page",
    "pages",
    "to",
    "seq",
];

/// Names and fields as our probes have them, with values that a hostile guest may choose.
fn hostile() -> impl Strategy<Value = KernelEvent> {
    let names: Vec<String> = PROBES
        .iter()
        .map(|probe| probes::name(probe).unwrap().to_owned())
        .chain(["tracing_mark_write".to_owned(), "nonsense".to_owned()])
        .collect();
    let value = prop_oneof![
        0..20_u64,
        Just(u64::from(u32::MAX)),
        Just(u64::from(u32::MAX) - 1),
        any::<u32>().prop_map(u64::from),
        (0..16_u64, 0..64_u64).prop_map(|(status, block)| status << 59 | block),
        any::<u64>(),
    ];
    let values = prop::collection::vec(value, FIELDS.len());
    (prop::sample::select(names), 0..4_u64, 0..4_u32, values, 0..200_u64, any::<u32>()).prop_map(
        |(name, inode, tid, values, at_us, left_out)| {
            let fields = FIELDS.iter().zip(values).enumerate();
            let fields = fields.filter(|(place, _)| left_out >> (place % 32) & 7 != 0);
            let fields = fields.map(|(_, (name, value))| ((*name).to_owned(), value));
            KernelEvent {
                at_us,
                tid,
                thread: "t".into(),
                name,
                fields: fields.chain([("inode".to_owned(), inode)]).collect(),
                ..KernelEvent::default()
            }
        },
    )
}

proptest! {
    /// Whatever a guest says: no panic, bounds hold, and the counts that are kept are the true ones.
    #[test]
    fn a_hostile_guest_is_survived(events in prop::collection::vec(hostile(), 0..200)) {
        let mut shadow = DelallocShadow::new("6.12.0");
        for event in &events {
            for finding in shadow.step(event) {
                prop_assert!(finding.to_string().len() < 4096);
                prop_assert!(finding.story.len() <= 16);
            }
        }
        let ranges: usize = shadow.inodes.values().map(Inode::ranges).sum();
        prop_assert_eq!(ranges, shadow.ranges);
        for inode in shadow.inodes.values() {
            let cells = || inode.es_all().map(|(_, len, cell)| (u64::from(len), cell.status));
            let delayed: u64 = cells().filter(|(_, of)| of.delayed_only()).map(|(len, _)| len).sum();
            if inode.complete && inode.ratio == 1 {
                prop_assert_eq!(inode.due(), Some(delayed));
            }
            prop_assert_eq!(inode.keeps_any(), cells().any(|(_, of)| of.must_keep()));
        }
    }
}

/// The founding bug as one kernel's lines, by two processors, and what a follower makes of it.
fn followed(batches: &[&[&str]]) -> (Vec<String>, FollowerStats) {
    let mut follower = Follower::new();
    let say = |message| Event { seq: 0, at: Nanos(1), what: What::Agent { message } };
    follower.observe(&[say(json!({ "kind": "hello", "kernel": "5.10.0" }))]);
    follower.observe(&[say(json!({ "kind": "trace_started", "missing": [] }))]);
    for (batch, lines) in batches.iter().enumerate() {
        let lines: Vec<String> = lines
            .iter()
            .map(|line| {
                if line.starts_with("CPU:") {
                    return (*line).to_owned();
                }
                let (of, event) = line.split_once(' ').expect("a thread");
                let (cpu, event) = event.split_once(' ').expect("a processor");
                format!("{of} [{cpu}] d... 1.{event}")
            })
            .collect();
        follower.observe(&[say(json!({ "kind": "trace", "batch": batch, "lines": lines }))]);
    }
    let rules = follower.take_findings().into_iter().map(|finding| finding.rule).collect();
    (rules, follower.stats().expect("a kernel is watched"))
}

#[test]
fn a_loss_that_is_told_late_takes_back_what_was_judged_meanwhile() {
    let insert = |reserved: u64, pblk: u64| {
        format!(
            "es_insert: (f+0x0/0x1) inode=0xa0 ino=13 reserved={reserved} all=2 shk=2 ratio=1 \
             lblk=0 len=1 pblk={pblk:#x}"
        )
    };
    let unwritten = format!("a-70 000 000100: {}", insert(0, U | 0x841));
    let delayed = format!("b-71 000 000300: {}", insert(1, D));
    let other = |at: u32| format!("c-72 001 {at:06}: mkwrite: (f+0x0/0x1)");
    let (early, later, last) = (other(50), other(400), other(90_000));
    let a4 = vec!["A4".to_owned()];

    // Told when the other processor has been read as far, or when all buffers were empty.
    let known = [early.as_str(), &unwritten, &delayed];
    let own = "b-71 000 090000: mkwrite: (f+0x0/0x1)";
    assert_eq!(followed(&[&known, &[own]]).0, [""; 0]);
    assert_eq!(followed(&[&known, &[own], &[&last]]).0, a4);
    assert_eq!(followed(&[&known, &[]]).0, a4);
    // Processor 1 had lost events between its last one and the next: a removal may be among them.
    let (found, stats) = followed(&[&known, &[own], &["CPU:1 [LOST 5 EVENTS]", &last], &[]]);
    assert_eq!((found, stats.lost, stats.forgotten), (vec![], 5, 1));
    // It had been read beyond the finding before it lost any.
    let read = [early.as_str(), &unwritten, &delayed, &later];
    assert_eq!(followed(&[&read, &[own, "CPU:1 [LOST 5 EVENTS]", &last]]).0, a4);
}
