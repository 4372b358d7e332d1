//! Goal: the schema does not change by accident, and a line read back is the event that was
//! written. Method: a snapshot of a log with a line of each kind.

use serde_json::json;

use super::{Event, LayoutChange, Protection, What};
use crate::{Core, Input, Nanos, Op, Outbox, Outcome, Request, RequestId, RuleSet};
use ext4_layout::{Class, Home, Span, Written};

const RULES: &str = r#"
[[rule]]
name = "hold"
match = { op = "read", class = "block_bitmap" }
action = { hold = { until = "agent:go", at_most = "500ms" } }
tell_agent = true
disarm_on = "agent:go"

[[rule]]
name = "delay"
match = { op = "write", class = "journal_copy", of = "inode_table" }
action = { delay = { uniform = ["70ms", "80ms"] }, fail = "EIO" }

[[rule]]
name = "pass"
match = { class = "file_data", nth = 1 }
action = { pass = true }

[[rule]]
name = "fail"
match = { class = "file_data" }
action = { fail = "ENOSPC" }
"#;

/// A log with a line of each kind, made by the core.
pub(crate) fn log() -> Vec<String> {
    let mut core = Core::new(7);
    let mut out = Outbox::default();
    core.set_logging(true);
    let mut log = vec![core.header(Nanos(0))];
    let rules = RuleSet::parse(RULES, "log.toml").expect("sound rules");
    core.load(Nanos(10), rules, &mut out);
    let change = LayoutChange::Opened;
    let detail = Some("4 groups".to_owned());
    core.note(Nanos(11), What::Layout { change, detail, device_bytes: None }, &mut out);

    let classes = [
        (Op::Read, Class::Home(Home::BlockBitmap { group: 3 })),
        (
            Op::Write,
            Class::JournalCopy {
                tid: 9,
                of: Home::InodeTable { group: 0, first_inode: 1, last_inode: 16 },
            },
        ),
        (
            Op::Write,
            Class::Home(Home::FileData {
                inode: 13,
                first_lblk: 0,
                last_lblk: 1,
                state: Written::Unwritten,
            }),
        ),
        (
            Op::Read,
            Class::Home(Home::FileData {
                inode: 13,
                first_lblk: 2,
                last_lblk: 2,
                state: Written::Written,
            }),
        ),
        (Op::Read, Class::Home(Home::Superblock { backup: true })),
    ];
    for (index, (op, class)) in classes.into_iter().enumerate() {
        let id = RequestId(index as u64 + 1);
        let spans = [Span { first_sector: 64, sectors: 8, class }];
        let request = Request { id, queue: 1, head: 5, op, sector: 64, sectors: 8, spans: &spans };
        core.step(Nanos(100 * id.0), Input::Arrive(request), &mut out);
    }
    let message = json!({ "mark": "go" });
    core.note(Nanos(900), What::Agent { message }, &mut out);
    core.note(Nanos(910), What::Protected { cause: Protection::Flush, stores: 2 }, &mut out);
    let store = What::FirstStore {
        offset: 33 * 4096 + 13,
        thread: 4711,
        name: Some("CPU 1/TCG".into()),
        vcpu: Some(1),
        touches: Class::Home(Home::BlockBitmap { group: 0 }).into(),
    };
    core.note(Nanos(920), store, &mut out);
    let complete = |id, submitted| Input::Complete { id, outcome: Outcome::Ok, submitted };
    for (at, input) in [
        (1_000, Input::AgentMark { name: "go", guest_ns: 77 }),
        (1_100, complete(RequestId(1), Some(Nanos(1_010)))),
        (1_200, complete(RequestId(3), None)),
        (1_300, Input::Arm { rule: "hold", armed: true }),
        (80_000_200, Input::Tick),
        (80_000_300, Input::Release { rule: Some("hold") }),
        (80_000_400, Input::Release { rule: None }),
        (80_000_500, Input::Disconnect),
    ] {
        core.step(Nanos(at), input, &mut out);
    }
    log.append(&mut out.events);
    log.iter().map(|event| serde_json::to_string(event).expect("an event")).collect()
}

#[test]
fn schema() {
    insta::assert_snapshot!(log().join("\n"));
}

#[test]
fn lines_read_back() {
    for line in log() {
        let event: Event = serde_json::from_str(&line).expect("a line of the log");
        assert_eq!(serde_json::to_string(&event).expect("an event"), line);
    }
}

#[test]
fn every_class_reads_back() {
    let homes = [
        Home::Superblock { backup: false },
        Home::GroupDescriptors { backup: true },
        Home::ReservedGdt,
        Home::BlockBitmap { group: 1 },
        Home::InodeBitmap { group: 2 },
        Home::InodeTable { group: 3, first_inode: 4, last_inode: 5 },
        Home::ExtentNode { inode: 6, depth: 1 },
        Home::IndirectBlock { inode: 7 },
        Home::Directory { inode: 8 },
        Home::Xattr { inode: 9 },
        Home::FileData { inode: 10, first_lblk: 0, last_lblk: 3, state: Written::Written },
        Home::OrphanFile,
        Home::Mmp,
        Home::Free,
        Home::Unknown,
    ];
    let log = [
        Class::JournalSuperblock,
        Class::JournalDescriptor { tid: 1 },
        Class::JournalCommit { tid: 2 },
        Class::JournalRevoke { tid: 3 },
        Class::JournalFastCommit,
        Class::JournalIdle,
    ];
    let copies = homes.map(|of| Class::JournalCopy { tid: 4, of });
    let classes = homes.map(Class::Home).into_iter().chain(copies).chain(log);
    let mut seen = 0_u32;
    for class in classes {
        let record = super::SpanRecord::from(Span { first_sector: 1, sectors: 2, class });
        let line = serde_json::to_string(&record).expect("a record");
        let read: super::SpanRecord = serde_json::from_str(&line).expect("a record");
        assert_eq!(read.to_span().map(|span| span.class), Some(class), "{line}");
        seen |= class.kind().bit();
    }
    assert_eq!(seen.count_ones() as usize, ext4_layout::Kind::ALL.len());
}
