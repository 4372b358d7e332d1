use agent::wire::Step;
use ext4_layout::{Class, Home};
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
    SpanRecord::from(ext4_layout::Span { first_sector: 2064, sectors: 8, class })
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

#[test]
fn a_trial_is_bars_on_the_same_clock() {
    let (result, events) = example();
    let threads = ["allocator", "storer"].map(str::to_owned).into_iter();
    let timeline = Timeline::new(threads, &result, &events, CLOCK);
    let of = |kind: Kind| -> Vec<&Span> {
        timeline.spans.iter().filter(|span| span.kind == kind).collect()
    };
    let operations: Vec<_> = of(Kind::Operation).iter().map(|s| (&*s.lane, s.begin_us)).collect();
    // The barrier is left out, as in the columns; what is set up is no thread.
    assert_eq!(operations, [("storer", 0), ("allocator", 10), ("storer", 8080)]);
    let [request] = &of(Kind::Request)[..] else {
        panic!("{:?}", timeline.spans);
    };
    assert_eq!((request.begin_us, request.end_us), (370, 80_470));
    let parked = request.parked.as_ref().unwrap();
    assert_eq!((parked.begin_us, parked.end_us), (370, 80_374));
    assert_eq!(parked.until, "time is up");
    assert_eq!(of(Kind::Lock), Vec::<&Span>::new());
    // What an older racegate stored has no bars, and is read all the same.
    let mut old = serde_json::to_value(&timeline).unwrap();
    old.as_object_mut().unwrap().remove("spans");
    let old: Timeline = serde_json::from_value(old).unwrap();
    assert_eq!((old.spans, old.entries), (Vec::new(), timeline.entries));
}

/// Lines of `trace_pipe`, as the agent sends them.
fn trace(at_us: u64, lines: &[&str]) -> Event {
    let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    event(
        at_us,
        What::Agent { message: serde_json::json!({"kind": "trace", "batch": 0, "lines": lines}) },
    )
}

#[test]
fn a_lock_that_a_thread_waits_for_has_its_name() {
    let (result, mut events) = example();
    events.push(trace(
        1_090_000,
        &[
            " allocator-7 [000] d... 0.005050: es_insert: (f) inode=0xffff8880 ino=13 lblk=0x0",
            " storer-8 [001] d... 0.013120: mkwrite: (ext4_page_mkwrite+0x0/0x1)",
            " storer-8 [001] d... 0.013200: rwsem_read: (f) sem=0xffff8840 i_data_sem=64 i_rwsem=-9",
            " kworker-9 [001] d... 0.013300: rwsem_read: (f) sem=0xffff8840 i_data_sem=64 i_rwsem=-9",
            " storer-8 [001] d... 0.085700: rwsem_read_end: (f <- g)",
            " storer-8 [001] d... 0.085800: rwsem_write: (f) sem=0x1 i_data_sem=64 i_rwsem=-9",
            " storer-8 [001] d... 0.085900: rwsem_write_end: (f <- g)",
            " storer-8 [001] d... 0.086100: mkwrite_end: (f <- g)",
        ],
    ));
    let threads = ["allocator", "storer"].map(str::to_owned).into_iter();
    let timeline = Timeline::new(threads, &result, &events, CLOCK);
    let seen: Vec<_> = timeline
        .spans
        .iter()
        .filter(|span| matches!(span.kind, Kind::Lock | Kind::Function))
        .map(|span| {
            format!(
                "{}: {} {}+{}",
                span.lane,
                span.text,
                span.begin_us,
                span.end_us - span.begin_us
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            "i_data_sem of inode 13: storer waits to read 8170+72500",
            "another rw_semaphore: storer waits to write 80770+100",
            "storer: ext4_page_mkwrite 8090+72980",
        ]
    );
}

#[test]
fn a_guest_without_end_is_cut() {
    let (mut result, _) = example();
    result.steps =
        (0..10_000).map(|at| step("storer", "store", u64::MAX / 1000 - at, at)).collect();
    let events: Vec<Event> = (0..10_000)
        .map(|at| event(1_000_000 + at, What::ToldAgent { signal: "x".into() }))
        .collect();
    let timeline = Timeline::new(std::iter::once("storer".into()), &result, &events, CLOCK);
    assert!(timeline.spans.len() <= 1000, "{}", timeline.spans.len());
    assert!(timeline.spans.iter().all(|span| span.begin_us <= span.end_us));
}
