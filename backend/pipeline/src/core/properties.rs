//! Goal: for any rules and any inputs the core does what the oracle does, loses no request and
//! lets none go twice or late, the filter never hides a request from a rule, and the log
//! replays. Method: random rules written as TOML, random inputs, compared step by step.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use ext4_layout::{Class, Home, Span, Written};
use proptest::collection::vec;
use proptest::option::{of, weighted};
use proptest::prelude::*;

use super::oracle::{Done, Oracle, Rule, Touched, Trigger, Until, Wait, name};
use crate::event::Event;
use crate::{
    Action, Core, Filter, Input, Nanos, Op, Outbox, Outcome, Request, RequestId, RuleSet, replay,
};

const MS: u64 = 1_000_000;
/// Longer than any wait of a random rule.
const LONGEST: u64 = 60 * MS;
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

/// What a step may find wrong.
type Checked = Result<(), TestCaseError>;

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
    fn take(&mut self, now: u64, arrived: Option<u64>, actions: &[Action]) -> Checked {
        let mut answers = 0;
        for action in actions {
            let (id, ends) = match action {
                Action::Submit(id) | Action::Fail { id, .. } => (id.0, true),
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
                    self.parked.insert(id, now + LONGEST);
                }
            } else {
                let due = self.parked.remove(&id);
                prop_assert!(
                    ends && due.is_some_and(|due| now <= due),
                    "{id} let go at {now}"
                );
            }
            if matches!(action, Action::Submit(_)) {
                self.in_flight.push(id);
            }
        }
        prop_assert_eq!(
            answers,
            u32::from(arrived.is_some()),
            "one answer for a request"
        );
        Ok(())
    }
}

/// Core and oracle side by side.
struct Pair {
    core: Core,
    filter: Arc<Filter>,
    oracle: Oracle,
    ledger: Ledger,
    out: Outbox,
    log: Vec<Event>,
    now: u64,
    last_id: u64,
}

impl Pair {
    /// With the rules of both, which are the same but for the canary. `None`: the rules are
    /// refused because one of them can never fire.
    fn new(seed: u64, text: &str, rules: &[Rule], logging: bool) -> Option<Pair> {
        let set = RuleSet::parse(text, "random.toml").ok()?;
        let mut core = Core::new(seed);
        let mut out = Outbox::default();
        let mut log = Vec::new();
        if logging {
            core.set_logging(true);
            log.push(core.header(Nanos(0)));
        }
        core.load(Nanos(0), set, &mut out);
        log.append(&mut out.events);
        Some(Pair {
            filter: core.filter(),
            core,
            oracle: Oracle::new(seed, rules.to_vec()),
            ledger: Ledger::default(),
            out,
            log,
            now: 0,
            last_id: 0,
        })
    }

    /// Runs the steps, and then lets everything go.
    fn run(&mut self, steps: &[(u64, Step)]) -> Checked {
        for (pause, step) in steps.iter().chain([&(LONGEST, Step::Disconnect)]) {
            let target = self.now + pause;
            // The timer fires on time, as often as need be.
            while let Some(due) = self.ledger.timer.filter(|due| *due <= target) {
                self.now = due;
                self.tell(Input::Tick);
                self.oracle.tick(due);
                prop_assert!(
                    !self.out.actions.is_empty(),
                    "a timer that fires for nothing"
                );
                self.compare(None)?;
            }
            self.now = target;
            self.step(step)?;
        }
        prop_assert!(
            self.ledger.parked.is_empty(),
            "lost: {:?}",
            self.ledger.parked
        );
        Ok(())
    }

    fn tell(&mut self, input: Input<'_>) {
        self.core.step(Nanos(self.now), input, &mut self.out);
    }

    fn step(&mut self, step: &Step) -> Checked {
        let mut arrived = None;
        match step {
            Step::Arrive {
                op,
                sector,
                sectors,
                touched,
            } => {
                let (op, sector, sectors) = (*op, *sector, *sectors);
                let spans = spans(sector, touched);
                let kinds = spans
                    .iter()
                    .fold(0, |kinds, span| kinds | span.class.kind().bit());
                if !self.filter.may_match(op, sector, sectors, kinds) {
                    let taken = self.oracle.any_armed_takes(op, sector, sectors, &spans);
                    prop_assert!(!taken, "the filter hides a request");
                    return Ok(());
                }
                self.last_id += 1;
                arrived = Some(self.last_id);
                let id = RequestId(self.last_id);
                let (queue, head) = (0, 0);
                let request = Request {
                    id,
                    queue,
                    head,
                    op,
                    sector,
                    sectors,
                    spans: &spans,
                };
                self.tell(Input::Arrive(request));
                self.oracle
                    .arrive(self.now, id.0, op, (sector, sectors), &spans);
            }
            Step::Complete => {
                let Some(id) = self.ledger.in_flight.pop().map(RequestId) else {
                    return Ok(());
                };
                self.tell(Input::Complete {
                    id,
                    outcome: Outcome::Ok,
                    submitted: None,
                });
            }
            Step::Mark(mark) => {
                self.tell(Input::AgentMark {
                    name: &format!("m{mark}"),
                    guest_ns: 0,
                });
                self.oracle.mark(*mark);
            }
            Step::Release(rule) => {
                self.tell(Input::Release {
                    rule: rule.map(name).as_deref(),
                });
                self.oracle.release(*rule);
            }
            Step::Arm(rule, armed) => {
                self.tell(Input::Arm {
                    rule: &name(*rule),
                    armed: *armed,
                });
                if *rule < RULES {
                    self.oracle.arm(*rule, *armed);
                }
            }
            Step::Disconnect => {
                self.tell(Input::Disconnect);
                self.oracle.release(None);
            }
        }
        self.compare(arrived)
    }

    fn compare(&mut self, arrived: Option<u64>) -> Checked {
        prop_assert_eq!(
            done(&self.out.actions),
            self.oracle.take(),
            "at {}",
            self.now
        );
        self.ledger.take(self.now, arrived, &self.out.actions)?;
        prop_assert_eq!(
            self.core.next_due().map(|due| due.0),
            self.oracle.next_due()
        );
        prop_assert_eq!(self.ledger.timer, self.oracle.next_due());
        if self.out.filter_changed {
            self.filter = self.core.filter();
        }
        self.log.append(&mut self.out.events);
        self.out.clear();
        Ok(())
    }

    fn lines(&self) -> Vec<String> {
        self.log
            .iter()
            .map(|event| serde_json::to_string(event).expect("an event"))
            .collect()
    }
}

proptest! {
    // Shrinking a failure is bounded in time; it prints the seed that replays it.
    #![proptest_config(ProptestConfig { max_shrink_time: 30_000, ..ProptestConfig::default() })]

    #[test]
    fn does_what_the_oracle_does(
        seed: u64,
        rules in vec(rule(), RULES),
        steps in vec(step(), 1..80),
    ) {
        let text = toml(&rules);
        let pair = |logging| Pair::new(seed, &text, &rules, logging);
        let Some(mut quiet) = pair(false) else { return Err(TestCaseError::reject("refused")) };
        quiet.run(&steps)?;
        let (Some(mut logged), Some(mut again)) = (pair(true), pair(true)) else { unreachable!() };
        logged.run(&steps)?;
        again.run(&steps)?;
        let log = logged.lines();
        prop_assert_eq!(&log, &again.lines());
        let found = replay(log.iter().map(String::as_str)).expect("a whole log");
        prop_assert_eq!(found.differences, vec![]);
        prop_assert_eq!(found.agreed + 1, log.len() as u64);
    }

    #[test]
    fn text_never_panics(text in "(?s)[\\[\\]{}=,\" .\na-z0-9:-]{0,200}") {
        let _ = RuleSet::parse(&text, "random.toml");
    }
}

/// The canary: when the oracle's rule differs in one thing from the core's, they disagree.
#[test]
fn the_oracle_notices_another_rule() {
    let rule = Rule {
        op: Some(Op::Read),
        touched: Some(Touched::Bitmap),
        number: Some(1),
        sectors: None,
        nth: None,
        after: 1,
        every: 2,
        times: Some(2),
        probability: 8,
        wait: Wait::Hold(Until::Agent(0), 5 * MS),
        fail: false,
        tell: false,
        armed: true,
        arm_on: None,
        disarm_on: None,
    };
    let arrive = |op, touched| Step::Arrive {
        op,
        sector: 8,
        sectors: 2,
        touched: vec![touched],
    };
    let read = arrive(Op::Read, Some((Touched::Bitmap, 1)));
    let mut steps = vec![(MS, read); 8];
    steps.push((0, Step::Mark(0)));
    steps.push((0, arrive(Op::Write, Some((Touched::Bitmap, 1)))));
    steps.push((0, arrive(Op::Read, Some((Touched::Bitmap, 2)))));
    steps.push((0, arrive(Op::Read, Some((Touched::Data, 1)))));
    steps.push((0, Step::Arm(0, true)));
    steps.extend(vec![(0, arrive(Op::Read, Some((Touched::Bitmap, 1)))); 4]);
    steps.push((MS, Step::Mark(0)));
    let text = toml(std::slice::from_ref(&rule));
    let agree = |oracle: Rule| {
        let mut pair = Pair::new(1, &text, &[oracle], false).expect("a sound rule");
        pair.run(&steps).is_ok()
    };
    assert!(agree(rule.clone()));
    let mutants = [
        Rule {
            op: None,
            times: None,
            after: 0,
            every: 1,
            ..rule.clone()
        },
        Rule {
            number: Some(2),
            ..rule.clone()
        },
        Rule {
            after: 2,
            ..rule.clone()
        },
        Rule {
            every: 1,
            ..rule.clone()
        },
        Rule {
            times: Some(1),
            ..rule.clone()
        },
        Rule {
            probability: 4,
            ..rule.clone()
        },
        Rule {
            wait: Wait::Hold(Until::Agent(0), 4 * MS),
            ..rule.clone()
        },
        Rule {
            wait: Wait::Hold(Until::Agent(1), 5 * MS),
            ..rule.clone()
        },
        Rule {
            fail: true,
            ..rule.clone()
        },
        Rule {
            tell: true,
            ..rule.clone()
        },
        Rule {
            armed: false,
            ..rule.clone()
        },
    ];
    for mutant in mutants {
        assert!(!agree(mutant.clone()), "not noticed: {mutant:?}");
    }
}
