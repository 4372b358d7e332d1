use agent::wire::Step;
use ext4_layout::{Class, Home, Span};
use pipeline::{Nanos, Op, Outcome};

use super::*;

fn step(thread: &str, op: &str, begin_us: u64, end_us: u64) -> Step {
    Step {
        thread: thread.into(),
        op: op.into(),
        begin_ns: begin_us * 1000,
        end_ns: end_us * 1000,
        errno: None,
    }
}

fn event(at_us: u64, what: What) -> Event {
    Event { seq: at_us, at: Nanos(at_us * 1000), what }
}

const BITMAP: Home = Home::BlockBitmap { group: 0 };

fn span(class: Class) -> SpanRecord {
    SpanRecord::from(Span { first_sector: 2064, sectors: 8, class })
}

#[test]
fn a_request_is_named_by_what_it_touches() {
    let copy = |of| span(Class::JournalCopy { tid: 3, of });
    let table = Home::InodeTable { group: 0, first_inode: 1, last_inode: 16 };
    let spans = [
        span(Class::JournalDescriptor { tid: 3 }),
        copy(BITMAP),
        copy(BITMAP),
        copy(table),
        copy(Home::Superblock { backup: false }),
    ];
    assert_eq!(
        touches(&spans),
        "journal_descriptor, journal_copy of block_bitmap 0, journal_copy of inode_table 0, 1 more"
    );
    assert_eq!(touches(&spans[1..2]), "journal_copy of block_bitmap 0");
}

/// Guest time 0 is device time 1 s.
const CLOCK: ClockMap = ClockMap { offset_ns: 1_000_000_000, error_ns: 41_500 };

fn example() -> (TrialResult, Vec<Event>) {
    let result = TrialResult {
        steps: vec![
            step("setup", "mount noatime", 0, 4000),
            step("allocator", "barrier go", 5000, 5020),
            step("storer", "delay 2000..22000 us", 5030, 13_100),
            step("allocator", "fallocate raced 0+4096", 5040, 86_000),
            step("storer", "store raced 0", 13_110, 86_300),
        ],
        ..TrialResult::default()
    };
    let id = RequestId(9);
    let request = |id| What::Request {
        id,
        queue: 0,
        head: 3,
        op: Op::Read,
        sector: 2064,
        sectors: 8,
        classes: vec![span(Class::Home(BITMAP))],
    };
    let fired = What::Decision {
        id,
        rule: "delay-bitmap-read".into(),
        matched: 1,
        verdict: Verdict::Delay { ns: 80_000_000 },
    };
    let due = |rule: &str| What::Released {
        id,
        rule: rule.into(),
        cause: Cause::Due,
        waited_ns: 80_004_000,
        fail: None,
    };
    let done = What::Complete { id, outcome: Outcome::Ok, submitted: None };
    let events = vec![
        event(1_002_000, request(RequestId(8))),
        event(1_005_400, request(id)),
        event(1_005_401, fired),
        event(1_085_404, due("delay-bitmap-read")),
        event(1_085_500, done),
        // After the threads have ended: not part of the picture.
        event(1_090_000, What::AgentMark { name: "late".into(), guest_ns: 0 }),
    ];
    (result, events)
}

#[test]
fn a_trial_reads_as_columns_on_one_clock() {
    let (result, events) = example();
    let threads = ["allocator", "storer"].map(str::to_owned).into_iter();
    let timeline = Timeline::new(threads, &result, &events, CLOCK);
    insta::assert_snapshot!(timeline.to_string());
    assert_eq!(timeline.error_us, 42);
    assert!(timeline.entries.is_sorted_by_key(|entry| entry.at_us));
}

#[test]
fn nothing_to_show_is_shown_as_nothing() {
    let timeline = Timeline::new(std::iter::empty(), &TrialResult::default(), &[], CLOCK);
    assert_eq!(timeline.entries, []);
}
