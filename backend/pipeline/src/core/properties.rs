//! Goal: for any rules and any inputs the core does what the oracle does, loses no request and
//! lets none go twice or late, the filter never hides a request from a rule, and the log
//! replays. Method: random rules written as TOML, random inputs, compared step by step.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ext4_layout::{Class, Home, Span, Written};
use proptest::collection::vec;
use proptest::option::{of, weighted};
use proptest::prelude::*;

use super::oracle::{Done, Oracle, Rule, Touched, Trigger, Until, Wait, name};
use crate::{Action, Core, Input, Nanos, Op, Outbox, Outcome, Request, RequestId, RuleSet, replay};

const MS: u64 = 1_000_000;
const RULES: usize = 4;

fn touched() -> impl Strategy<Value = Touched> {
    prop_oneof![
        Just(Touched::Bitmap),
        Just(Touched::Data),
        Just(Touched::BitmapCopy)
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![4 => Just(Op::Read), 4 => Just(Op::Write), 1 => Just(Op::Discard)]
}

fn until() -> impl Strategy<Value = Until> {
    prop_oneof![
        Just(Until::Control),
        (0..2_u8).prop_map(Until::Agent),
        (0..RULES).prop_map(Until::Rule),
        (1..4_u64).prop_map(Until::Requests),
    ]
}

fn trigger() -> impl Strategy<Value = Trigger> {
    prop_oneof![
        (0..2_u8).prop_map(Trigger::Agent),
        (0..RULES).prop_map(Trigger::Rule),
        (1..20_u64).prop_map(Trigger::Count),
    ]
}

fn wait() -> impl Strategy<Value = Wait> {
    prop_oneof![
        1 => Just(Wait::None),
        2 => (1..30_u64).prop_map(|ms| Wait::Fixed(ms * MS)),
        2 => (0..10_u64, 10..30_u64).prop_map(|(a, b)| Wait::Uniform(a * MS, b * MS)),
        4 => (until(), 1..60_u64).prop_map(|(until, ms)| Wait::Hold(until, ms * MS)),
    ]
}

prop_compose! {
    fn rule()(
        what in (of(op()), of(touched()), of(0..3_u32), weighted(0.3, (0..40_u64, 0..20_u64))),
        when in (weighted(0.2, 1..4_u64), 0..3_u64, 1..4_u64, weighted(0.3, 1..4_u64), 1..=8_u8),
        act in (wait(), any::<bool>(), any::<bool>()),
        arm in (any::<bool>(), weighted(0.3, trigger()), weighted(0.3, trigger())),
    ) -> Rule {
        let (op, touched, number, sectors) = what;
        let (nth, after, every, times, probability) = when;
        let (wait, fail, tell) = act;
        let (armed, arm_on, disarm_on) = arm;
        Rule {
            op,
            touched,
            number: number.filter(|_| touched.is_some()),
            sectors: sectors.map(|(first, more)| (first, first + more)),
            nth,
            after: if nth.is_some() { 0 } else { after },
            every: if nth.is_some() { 1 } else { every },
            times,
            probability,
            wait,
            fail,
            tell,
            armed,
            disarm_on: disarm_on.filter(|trigger| Some(trigger) != arm_on.as_ref()),
            arm_on,
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Arrive {
        op: Op,
        sector: u64,
        sectors: u64,
        touched: Vec<Option<(Touched, u32)>>,
    },
    Complete,
    Mark(u8),
    Release(Option<usize>),
    Arm(usize, bool),
    Disconnect,
}

fn step() -> impl Strategy<Value = (u64, Step)> {
    let arrive = (op(), 0..50_u64, vec(of((touched(), 0..3_u32)), 1..4)).prop_map(
        |(op, sector, touched)| {
            let sectors = 2 * touched.len() as u64;
            Step::Arrive {
                op,
                sector,
                sectors,
                touched,
            }
        },
    );
    let step = prop_oneof![
        16 => arrive,
        8 => Just(Step::Complete),
        2 => (0..3_u8).prop_map(Step::Mark),
        1 => of(0..RULES + 1).prop_map(Step::Release),
        1 => (0..RULES + 1, any::<bool>()).prop_map(|(rule, armed)| Step::Arm(rule, armed)),
        1 => Just(Step::Disconnect),
    ];
    (
        prop_oneof![3 => Just(0), 3 => 0..5 * MS, 1 => 0..40 * MS],
        step,
    )
}

fn spans(sector: u64, touched: &[Option<(Touched, u32)>]) -> Vec<Span> {
    let class = |touched: &Option<(Touched, u32)>| match *touched {
        None => Class::Home(Home::Unknown),
        Some((Touched::Bitmap, group)) => Class::Home(Home::BlockBitmap { group }),
        Some((Touched::Data, inode)) => Class::Home(Home::FileData {
            inode,
            first_lblk: 0,
            last_lblk: 0,
            state: Written::Written,
        }),
        Some((Touched::BitmapCopy, group)) => Class::JournalCopy {
            tid: 1,
            of: Home::BlockBitmap { group },
        },
    };
    let span = |(index, touched)| Span {
        first_sector: sector + 2 * index as u64,
        sectors: 2,
        class: class(touched),
    };
    touched.iter().enumerate().map(span).collect()
}

/// The rules as a rules file.
fn toml(rules: &[Rule]) -> String {
    let mut text = String::new();
    let trigger = |trigger: &Trigger| match trigger {
        Trigger::Agent(mark) => format!("agent:m{mark}"),
        Trigger::Rule(index) => format!("rule:{}", name(*index)),
        Trigger::Count(count) => format!("count:{count}"),
    };
    for (index, rule) in rules.iter().enumerate() {
        let mut matches = Vec::new();
        let mut put = |name: &str, value: Option<String>| {
            matches.extend(value.map(|value| format!("{name} = {value}")));
        };
        put("op", rule.op.map(|op| format!("{:?}", op.name())));
        let (class, of, number) = match rule.touched {
            None => (None, None, "group"),
            Some(Touched::Bitmap) => (Some("\"block_bitmap\""), None, "group"),
            Some(Touched::Data) => (Some("\"file_data\""), None, "inode"),
            Some(Touched::BitmapCopy) => (None, Some("\"block_bitmap\""), "group"),
        };
        put("class", class.map(str::to_owned));
        put("of", of.map(str::to_owned));
        put(number, rule.number.map(|number| number.to_string()));
        put(
            "sector",
            rule.sectors
                .map(|(first, last)| format!("\"{first}..={last}\"")),
        );
        put("nth", rule.nth.map(|nth| nth.to_string()));
        put(
            "after",
            Some(rule.after)
                .filter(|after| *after > 0)
                .map(|n| n.to_string()),
        );
        put(
            "every",
            Some(rule.every)
                .filter(|every| *every > 1)
                .map(|n| n.to_string()),
        );
        put("times", rule.times.map(|times| times.to_string()));
        put(
            "probability",
            Some((f64::from(rule.probability) / 8.0).to_string()),
        );
        let mut action = match &rule.wait {
            Wait::None => Vec::new(),
            Wait::Fixed(ns) => vec![format!("delay = \"{ns}ns\"")],
            Wait::Uniform(a, b) => vec![format!("delay = {{ uniform = [\"{a}ns\", \"{b}ns\"] }}")],
            Wait::Hold(until, ns) => {
                let until = match until {
                    Until::Control => "control".to_owned(),
                    Until::Agent(mark) => format!("agent:m{mark}"),
                    Until::Rule(index) => format!("rule:{}", name(*index)),
                    Until::Requests(count) => format!("request:{count}"),
                };
                vec![format!(
                    "hold = {{ until = \"{until}\", at_most = \"{ns}ns\" }}"
                )]
            }
        };
        if rule.fail {
            action.push("fail = \"EIO\"".to_owned());
        } else if action.is_empty() {
            action.push("pass = true".to_owned());
        }
        let _ = write!(
            text,
            "[[rule]]\nname = \"{}\"\nmatch = {{ {} }}\naction = {{ {} }}\ntell_agent = {}\n\
             armed = {}\n",
            name(index),
            matches.join(", "),
            action.join(", "),
            rule.tell,
            rule.armed
        );
        for (field, event) in [("arm_on", &rule.arm_on), ("disarm_on", &rule.disarm_on)] {
            if let Some(event) = event {
                let _ = writeln!(text, "{field} = \"{}\"", trigger(event));
            }
        }
    }
    text
}

fn done(actions: &[Action]) -> Vec<Done> {
    let done = |action: &Action| match action {
        Action::Submit(id) => Some(Done::Submit(id.0)),
        Action::Park(id) => Some(Done::Park(id.0)),
        Action::Fail { id, .. } => Some(Done::Fail(id.0)),
        Action::TellAgent { signal } => Some(Done::Tell(signal.clone())),
        Action::Rearm { .. } => None,
    };
    actions.iter().filter_map(done).collect()
}

/// Follows each request: answered once, and if parked let go once and in time.
#[derive(Default)]
struct Ledger {
    /// When a parked request must be let go at the latest.
    parked: BTreeMap<u64, u64>,
    in_flight: Vec<u64>,
    /// Action `Rearm` as the device layer would follow it.
    timer: Option<u64>,
}

impl Ledger {
    fn take(&mut self, now: u64, limit: u64, arrived: Option<u64>, actions: &[Action]) {
        let mut answers = 0;
        for action in actions {
            let (id, ends) = match action {
                Action::Submit(id) => (id.0, true),
                Action::Fail { id, .. } => (id.0, true),
                Action::Park(id) => (id.0, false),
                Action::Rearm { due } => {
                    self.timer = due.map(|due| due.0);
                    continue;
                }
                Action::TellAgent { .. } => continue,
            };
            if arrived == Some(id) {
                answers += 1;
                if !ends {
                    self.parked.insert(id, now + limit);
                }
            } else {
                let due = self
                    .parked
                    .remove(&id)
                    .expect("let go though it was not parked");
                assert!(ends && now <= due, "{id} was let go at {now}, after {due}");
            }
            if matches!(action, Action::Submit(_)) {
                self.in_flight.push(id);
            }
        }
        assert_eq!(
            answers,
            u32::from(arrived.is_some()),
            "a request has one answer"
        );
    }
}

/// Runs the core over the steps, next to the oracle, and returns the log if one was asked for.
fn run(seed: u64, rules: &[Rule], steps: &[(u64, Step)], logging: bool) -> Option<Vec<String>> {
    // Rules that can never fire are refused; they are not what this test is about.
    let set = RuleSet::parse(&toml(rules), "random.toml").ok()?;
    let mut oracle = Oracle::new(seed, rules.to_vec());
    let mut core = Core::new(seed);
    let mut out = Outbox::default();
    let mut log = Vec::new();
    let mut ledger = Ledger::default();
    if logging {
        core.set_logging(true);
        log.push(core.header(Nanos(0)));
    }
    core.load(Nanos(0), set, &mut out);
    log.append(&mut out.events);
    let mut filter = core.filter();
    let (mut now, mut next_id) = (0, 0);
    let end = (100 * MS, Step::Disconnect);
    for (pause, step) in steps.iter().chain([&end]) {
        // The timer fires on time, as often as need be.
        let target = now + pause;
        while let Some(due) = ledger.timer.filter(|due| *due <= target) {
            now = due;
            out.clear();
            core.step(Nanos(now), Input::Tick, &mut out);
            oracle.tick(now);
            log.append(&mut out.events);
            assert_eq!(done(&out.actions), oracle.take());
            assert!(!out.actions.is_empty(), "a timer that fires for nothing");
            ledger.take(now, 60 * MS, None, &out.actions);
        }
        now = target;
        out.clear();
        let mut arrived = None;
        match step {
            Step::Arrive {
                op,
                sector,
                sectors,
                touched,
            } => {
                next_id += 1;
                arrived = Some(next_id);
                let spans = spans(*sector, touched);
                let kinds = spans
                    .iter()
                    .fold(0, |kinds, span| kinds | span.class.kind().bit());
                let wanted = filter.may_match(*op, *sector, *sectors, kinds);
                let taken = oracle.any_armed_takes(*op, *sector, *sectors, &spans);
                assert!(wanted || !taken, "the filter hides a request");
                if !wanted {
                    // The device layer would have submitted it without telling the core.
                    continue;
                }
                let (sector, sectors, id) = (*sector, *sectors, RequestId(next_id));
                let request = Request {
                    id,
                    queue: 0,
                    head: 0,
                    op: *op,
                    sector,
                    sectors,
                    spans: &spans,
                };
                core.step(Nanos(now), Input::Arrive(request), &mut out);
                oracle.arrive(now, next_id, *op, (sector, sectors), &spans);
            }
            Step::Complete => {
                let Some(id) = ledger.in_flight.pop().map(RequestId) else {
                    continue;
                };
                let input = Input::Complete {
                    id,
                    outcome: Outcome::Ok,
                    submitted: None,
                };
                core.step(Nanos(now), input, &mut out);
            }
            Step::Mark(mark) => {
                let name = format!("m{mark}");
                core.step(
                    Nanos(now),
                    Input::AgentMark {
                        name: &name,
                        guest_ns: 0,
                    },
                    &mut out,
                );
                oracle.mark(*mark);
            }
            Step::Release(rule) => {
                let name = rule.map(name);
                core.step(
                    Nanos(now),
                    Input::Release {
                        rule: name.as_deref(),
                    },
                    &mut out,
                );
                oracle.release(*rule);
            }
            Step::Arm(rule, armed) => {
                let input = Input::Arm {
                    rule: &name(*rule),
                    armed: *armed,
                };
                core.step(Nanos(now), input, &mut out);
                if *rule < rules.len() {
                    oracle.arm(*rule, *armed);
                }
            }
            Step::Disconnect => {
                core.step(Nanos(now), Input::Disconnect, &mut out);
                oracle.release(None);
            }
        }
        if out.filter_changed {
            filter = core.filter();
        }
        log.append(&mut out.events);
        assert_eq!(done(&out.actions), oracle.take(), "at {now}: {step:?}");
        ledger.take(now, 60 * MS, arrived, &out.actions);
        assert_eq!(core.next_due().map(|due| due.0), oracle.next_due());
        assert_eq!(ledger.timer, oracle.next_due());
        assert_eq!(core.stats().parked, ledger.parked.len() as u64);
    }
    assert!(ledger.parked.is_empty(), "lost: {:?}", ledger.parked);
    Some(
        log.iter()
            .map(|event| serde_json::to_string(event).expect("an event"))
            .collect(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_time: 30_000, ..ProptestConfig::default() })]

    #[test]
    fn does_what_the_oracle_does(
        seed: u64,
        rules in vec(rule(), RULES),
        steps in vec(step(), 1..80),
    ) {
        run(seed, &rules, &steps, false);
        let Some(log) = run(seed, &rules, &steps, true) else { return Ok(()) };
        prop_assert_eq!(&log, &run(seed, &rules, &steps, true).expect("sound a moment ago"));
        let found = replay(log.iter().map(String::as_str)).expect("a whole log");
        prop_assert_eq!(found.differences, vec![]);
        prop_assert_eq!(found.agreed + 1, log.len() as u64);
    }

    #[test]
    fn text_never_panics(text in "(?s)[\\[\\]{}=,\" .\na-z0-9:-]{0,200}") {
        let _ = RuleSet::parse(&text, "random.toml");
    }
}
