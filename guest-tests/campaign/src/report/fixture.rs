//! Campaigns for the tests of reports, by way of a database.

use std::sync::Arc;

use agent::wire::{Step, TrialResult};
use ext4_layout::{Class, Home, Span};
use pipeline::event::{Cause, SpanRecord, Verdict as Does};
use pipeline::{Event, Nanos, Op, RequestId, What};

use super::Document;
use crate::delays::{self, Delayed};
use crate::device::Device;
use crate::link::ClockMap;
use crate::plan::Plan;
use crate::runner::{Finding, Outcome, TrialRecord};
use crate::store::{Ordered, Store};
use crate::timeline::Timeline;

/// What a guest may say to break a report: markup, escapes of terminals, ends of every format, text
/// that turns around, what is no character in XML.
pub(super) const EVIL: &str = "</title></style><script>alert(1)</script>\"'><img src=//x onerror=y> \
    ]]> &amp; \u{1b}[2J\r\n\nok 99 forged\n1..7 # SKIP \u{202e}\0\u{fffe}\u{7f} \
    <failure>\n# heading\n```\n";

const KERNELS: [&str; 3] = ["debian-5.10.223", "debian-5.10.262", "debian-6.1.200"];

/// Not a built-in one: reports are not to change when these do.
const PLAN: &str = r#"
# Told in the report, <as it is> & as text.
name = "mkwrite-fallocate"
summary = "store into a hole against fallocate; one block-bitmap read is delayed by 80 ms"
trials = 20
rate_if_affected = 0.8
[kernels]
affected = ["debian-5.10.223"]
fixed = ["debian-5.10.262"]
[filesystem]
bytes = 67108864
[[arm]]
name = "rules"
rules = '''
[[rule]]
name = "delay-bitmap-read"
match = { op = "read", class = "block_bitmap" }
action = { delay = "80ms" }
'''
[[arm]]
name = "none"
[workload]
finish = [{ read_value = { path = "/p", name = "after" } }]
[hit]
kernel_log = ["x"]
"#;

fn plan() -> Plan {
    Plan::parse(PLAN, "p.toml").unwrap()
}

/// A request for the bitmap that a rule delayed by 80 ms.
pub(super) fn events(words: &str) -> Vec<Event> {
    let event = |at_us: u64, what| Event { seq: at_us, at: Nanos(at_us * 1000), what };
    let class = Class::Home(Home::BlockBitmap { group: 0 });
    let classes = vec![SpanRecord::from(Span { first_sector: 72, sectors: 8, class })];
    let request = |id, classes| What::Request {
        id: RequestId(id),
        queue: 0,
        head: 3,
        op: Op::Read,
        sector: 72,
        sectors: 8,
        classes,
    };
    let rule: Arc<str> = "delay-bitmap-read".into();
    let (id, outcome) = (RequestId(9), pipeline::Outcome::Ok);
    let decision = What::Decision {
        id,
        rule: rule.clone(),
        matched: 1,
        verdict: Does::Delay { ns: 80_000_000 },
    };
    let due = What::Released { id, rule, cause: Cause::Due, waited_ns: 80_004_000, fail: None };
    vec![
        event(1_001_000, request(8, Vec::new())),
        event(1_001_300, What::Complete { id: RequestId(8), outcome, submitted: None }),
        event(1_005_400, request(9, classes)),
        event(1_005_401, decision),
        event(1_010_000, What::AgentMark { name: words.into(), guest_ns: 0 }),
        event(1_085_404, due),
        event(1_085_500, What::Complete { id, outcome, submitted: None }),
    ]
}

fn timeline(words: &str) -> Timeline {
    let step = |thread: &str, op: &str, begin_us: u64, end_us: u64| Step {
        thread: thread.into(),
        op: format!("{op}{words}"),
        begin_ns: begin_us * 1000,
        end_ns: end_us * 1000,
        errno: None,
    };
    let result = TrialResult {
        steps: vec![
            step("allocator", "fallocate raced 0+4096", 1000, 86_000),
            step("storer", "delay 2000..22000 us", 5030, 13_100),
            step("storer", "store raced 0", 13_110, 86_300),
        ],
        ..TrialResult::default()
    };
    let clock = ClockMap { offset_ns: 1_000_000_000, error_ns: 41_500 };
    let threads = ["allocator", "storer"].map(str::to_owned).into_iter();
    Timeline::new(threads, &result, &events(words), clock)
}

/// Three kernels: affected and fixed as the plan knows them, and one that nobody can tell. `words` is
/// what the guest says.
fn stored(words: &str) -> Document {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&folder.path().join("results.db")).unwrap());
    let command = "racegate campaign run mkwrite-fallocate --trials 20 --resume";
    let running = store.begin("mkwrite-fallocate", 7, "{}", command).unwrap();
    running.ordered(&Ordered { trials: 20, sure: None, shard: None }).unwrap();
    // Not in the order of the table: kernels run side by side.
    for kernel in [2, 0, 1] {
        for trial in 0..20 {
            for arm in ["rules", "none"] {
                let outcome = match (kernel, arm, trial) {
                    (2, ..) if trial > 3 => continue,
                    (2, ..) | (1, "rules", 4) => {
                        Outcome::Invalid { evidence: format!("rule r did not fire{words}") }
                    }
                    (0, "rules", _) | (0, "none", 11) => {
                        Outcome::Hit { evidence: format!("kernel: not cleared!{words}") }
                    }
                    _ => Outcome::Miss { evidence: "kernel log: nothing".into() },
                };
                let record = TrialRecord {
                    kernel: KERNELS[kernel].into(),
                    arm: arm.into(),
                    trial,
                    seed: 1,
                    outcome,
                    seconds: 0.25,
                };
                let first = kernel == 0 && arm == "rules" && trial == 0;
                let timeline = first.then(|| timeline(words));
                let result = running.trial(&record, timeline.as_ref()).unwrap();
                if arm == "rules" {
                    running.delays(result, &delays::of(&events(words))).unwrap();
                }
            }
        }
    }
    let text = format!("WARNING: CPU: 0 PID: 1{words}");
    let (kernel, arm) = (KERNELS[1].to_owned(), "rules".to_owned());
    running.finding(&Finding { kernel: kernel.clone(), arm: arm.clone(), trial: 3, text }).unwrap();
    running.failure(&kernel, &arm, 5, &format!("the guest failed{words}")).unwrap();
    running.finish().unwrap();
    let mut stored = store.stored(running.campaign()).unwrap();
    (stored.started, stored.finished) = (1_764_000_000, Some(1_764_000_123));
    stored.failures.iter_mut().for_each(|failure| failure.at = 1_764_000_050);
    Document::new(stored, plan(), Device::Blk, &KERNELS)
}

/// A guest that says what kernels say.
pub(super) fn calm() -> Document {
    stored("")
}

/// One that says [`EVIL`] wherever it may say something.
pub(super) fn hostile() -> Document {
    stored(EVIL)
}

/// One kernel, with a share of hits for each length of delay, in milliseconds.
pub(super) fn swept(lengths: &[(u64, u32)]) -> Vec<Document> {
    let of = |&(asked_ms, hits): &(u64, u32)| {
        let mut document = calm();
        document.campaign.arms.truncate(2);
        for trial in &mut document.campaign.arms[0].trials {
            if trial.trial >= hits {
                trial.outcome = Outcome::Miss { evidence: String::new() };
            }
        }
        let asked_ns = asked_ms * 1_000_000;
        let delay = Delayed { rule: "r".into(), asked_ns, waited_ns: asked_ns + 5000 };
        document.delays.truncate(1);
        document.delays[0].2 = vec![delay; 20];
        document
    };
    lengths.iter().map(of).collect()
}
