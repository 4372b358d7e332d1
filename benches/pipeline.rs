//! What the pipeline costs: parsing rules, the filter that every request passes, and the core's
//! decision for those that a rule may want.
//!
//! A million requests a second leaves a microsecond each, for everything. The filter is passed by
//! all of them without a lock, the core only by those that a rule may want (or a log), under one.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use ext4_layout::{Class, Home, Kind, Span};
use pipeline::{Core, Input, Nanos, Op, Outbox, Outcome, Request, RequestId, RuleSet};

const HOLD: &str = r#"
[[rule]]
name = "hold-first-bitmap-read"
match = { op = "read", class = "block_bitmap", nth = 1 }
action = { hold = { until = "agent:store-parked", at_most = "500ms" } }
"#;
const DELAY: &str = r#"
[[rule]]
name = "slow-bitmaps"
match = { op = "read", class = "block_bitmap" }
action = { delay = { normal = { mean = "5ms", stddev = "1ms" } } }
"#;
const RANGES: &str = r#"
[[rule]]
name = "fail-some"
match = { op = "read", sector = ["0..8", "4096..8192", "100000..100008"], nth = 1000000000 }
action = { fail = "EIO" }
"#;

/// That many rules on different inodes, none of which the requests here touch.
fn many(rules: usize) -> String {
    let rule = |n: usize| {
        format!(
            "[[rule]]\nname = \"r{n}\"\naction = {{ delay = \"80ms\" }}\n\
             match = {{ op = \"read\", class = [\"file_data\", \"block_bitmap\"], sector = \"{}..\", \
             probability = 0.5 }}\n",
            1_000_000 + n
        )
    };
    (0..rules).map(rule).collect()
}

fn core(toml: &str) -> Core {
    let mut core = Core::new(1);
    let rules = RuleSet::parse(toml, "bench.toml").expect("sound rules");
    core.load(Nanos(0), rules, &mut Outbox::default());
    core
}

fn bitmap(sector: u64) -> [Span; 1] {
    let class = Class::Home(Home::BlockBitmap { group: 0 });
    [Span { first_sector: sector, sectors: 8, class }]
}

/// Arrival, and what follows until the request has completed.
fn one(core: &mut Core, out: &mut Outbox, number: u64) {
    let now = Nanos(number * 1_000);
    let spans = bitmap(64);
    let id = RequestId(number);
    let request =
        Request { id, queue: 0, head: 0, op: Op::Read, sector: 64, sectors: 8, spans: &spans };
    core.step(now, Input::Arrive(request), out);
    if let Some(due) = core.next_due() {
        core.step(due, Input::Tick, out);
        core.step(due, Input::Complete { id, outcome: Outcome::Ok, submitted: Some(due) }, out);
    }
    black_box(&out);
    out.clear();
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    group.bench_function("1 rule", |b| {
        b.iter(|| RuleSet::parse(black_box(HOLD), "bench.toml"));
    });
    let many = many(128);
    group.bench_function("128 rules", |b| {
        b.iter(|| RuleSet::parse(black_box(&many), "bench.toml"));
    });
    group.finish();
}

fn filter(c: &mut Criterion) {
    let mut group = c.benchmark_group("filter");
    let fifty = many(50);
    let ask = |op, sector, kinds| black_box((op, sector, 8_u64, kinds));
    let data = Kind::FileData.bit();
    for (name, toml, op, kinds) in [
        ("no rules", "", Op::Read, data),
        ("50 rules, other sectors", fifty.as_str(), Op::Read, data),
        ("other operation", HOLD, Op::Write, data),
        ("other class", HOLD, Op::Read, data),
        ("class", HOLD, Op::Read, Kind::BlockBitmap.bit()),
        ("sectors", RANGES, Op::Read, 0),
    ] {
        let filter = core(toml).filter();
        group.bench_function(name, |b| {
            b.iter(|| {
                let (op, sector, sectors, kinds) = ask(op, 5000, kinds);
                filter.may_match(op, sector, sectors, kinds)
            });
        });
    }
    group.finish();
}

fn decide(c: &mut Criterion) {
    let mut group = c.benchmark_group("decide");
    let (fifty, many) = (many(50), many(128));
    for (name, toml) in [
        ("no rules", ""),
        ("1 rule, does not match", RANGES),
        ("50 rules, none matches", fifty.as_str()),
        ("128 rules, none matches", many.as_str()),
        ("matches, does not fire", HOLD),
        ("delayed, due, completed", DELAY),
    ] {
        let (mut core, mut out, mut number) = (core(toml), Outbox::default(), 0);
        group.bench_function(name, |b| {
            b.iter(|| {
                number += 1;
                one(&mut core, &mut out, number);
            });
        });
    }
    let (mut logged, mut out, mut number) = (core(DELAY), Outbox::default(), 0);
    logged.set_logging(true);
    group.bench_function("delayed, due, completed, logged", |b| {
        b.iter(|| {
            number += 1;
            one(&mut logged, &mut out, number);
        });
    });
    // 1024 requests wait; one mark lets them all go.
    let hold = HOLD.replace(", nth = 1", "");
    group.bench_function("1024 held, one mark", |b| {
        b.iter_batched_ref(
            || {
                let (mut core, mut out) = (core(&hold), Outbox::default());
                let spans = bitmap(64);
                for id in (0..1024).map(RequestId) {
                    let (queue, head, op, sector, sectors) = (0, 0, Op::Read, 64, 8);
                    let request = Request { id, queue, head, op, sector, sectors, spans: &spans };
                    core.step(Nanos(0), Input::Arrive(request), &mut out);
                }
                out.clear();
                (core, out)
            },
            |(core, out)| {
                core.step(Nanos(1), Input::AgentMark { name: "store-parked", guest_ns: 0 }, out);
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, parse, filter, decide);
criterion_main!(benches);
