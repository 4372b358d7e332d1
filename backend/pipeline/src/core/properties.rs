//! Goal: for any rules and any inputs the core does what the oracle does, loses no request and
//! lets none go twice or late, the filter never hides a request from a rule, and the log
//! replays. Method: random rules written as TOML, random inputs, compared step by step.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::oracle::{Done, Oracle, Rule, Touched, Until, Wait, name};
use super::random::{MS, RULES, Step, rule, spans, step, toml};
use crate::event::Event;
use crate::{
    Action, Core, Filter, Input, Nanos, Op, Outbox, Outcome, Request, RequestId, RuleSet, replay,
};

/// Longer than any wait of a random rule.
const LONGEST: u64 = 60 * MS;

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
                prop_assert!(ends && due.is_some_and(|due| now <= due), "{id} let go at {now}");
            }
            if matches!(action, Action::Submit(_)) {
                self.in_flight.push(id);
            }
        }
        prop_assert_eq!(answers, u32::from(arrived.is_some()), "one answer for a request");
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
                prop_assert!(!self.out.actions.is_empty(), "a timer that fires for nothing");
                self.compare(None)?;
            }
            self.now = target;
            self.step(step)?;
        }
        prop_assert!(self.ledger.parked.is_empty(), "lost: {:?}", self.ledger.parked);
        Ok(())
    }

    fn tell(&mut self, input: Input<'_>) {
        self.core.step(Nanos(self.now), input, &mut self.out);
    }

    fn step(&mut self, step: &Step) -> Checked {
        let mut arrived = None;
        match step {
            Step::Arrive { op, sector, sectors, touched } => {
                let (op, sector, sectors) = (*op, *sector, *sectors);
                let spans = spans(sector, touched);
                let each = |out: &mut dyn FnMut(_)| spans.iter().copied().for_each(out);
                let (wanted, kinds) = self.filter.look_at(op, sector, sectors, each);
                let coarse = self.filter.may_match(op, sector, sectors, kinds);
                prop_assert!(coarse || !wanted, "the precise filter lets more through");
                if !wanted {
                    let taken = self.oracle.any_armed_takes(op, sector, sectors, &spans);
                    prop_assert!(!taken, "the filter hides a request");
                    return Ok(());
                }
                self.last_id += 1;
                arrived = Some(self.last_id);
                let id = RequestId(self.last_id);
                let (queue, head) = (0, 0);
                let request = Request { id, queue, head, op, sector, sectors, spans: &spans };
                self.tell(Input::Arrive(request));
                self.oracle.arrive(self.now, id.0, op, (sector, sectors), &spans);
            }
            Step::Complete => {
                let Some(id) = self.ledger.in_flight.pop().map(RequestId) else {
                    return Ok(());
                };
                self.tell(Input::Complete { id, outcome: Outcome::Ok, submitted: None });
            }
            Step::Mark(mark) => {
                self.tell(Input::AgentMark { name: &format!("m{mark}"), guest_ns: 0 });
                self.oracle.mark(*mark);
            }
            Step::Release(rule) => {
                self.tell(Input::Release { rule: rule.map(name).as_deref() });
                self.oracle.release(*rule);
            }
            Step::Arm(rule, armed) => {
                self.tell(Input::Arm { rule: &name(*rule), armed: *armed });
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
        prop_assert_eq!(done(&self.out.actions), self.oracle.take(), "at {}", self.now);
        self.ledger.take(self.now, arrived, &self.out.actions)?;
        prop_assert_eq!(self.core.next_due().map(|due| due.0), self.oracle.next_due());
        prop_assert_eq!(self.ledger.timer, self.oracle.next_due());
        if self.out.filter_changed {
            self.filter = self.core.filter();
        }
        self.log.append(&mut self.out.events);
        self.out.clear();
        Ok(())
    }

    fn lines(&self) -> Vec<String> {
        self.log.iter().map(|event| serde_json::to_string(event).expect("an event")).collect()
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
    let arrive = |op, touched| Step::Arrive { op, sector: 8, sectors: 2, touched: vec![touched] };
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
        Rule { op: None, times: None, after: 0, every: 1, ..rule.clone() },
        Rule { number: Some(2), ..rule.clone() },
        Rule { after: 2, ..rule.clone() },
        Rule { every: 1, ..rule.clone() },
        Rule { times: Some(1), ..rule.clone() },
        Rule { probability: 4, ..rule.clone() },
        Rule { wait: Wait::Hold(Until::Agent(0), 4 * MS), ..rule.clone() },
        Rule { wait: Wait::Hold(Until::Agent(1), 5 * MS), ..rule.clone() },
        Rule { fail: true, ..rule.clone() },
        Rule { tell: true, ..rule.clone() },
        Rule { armed: false, ..rule.clone() },
    ];
    for mutant in mutants {
        assert!(!agree(mutant.clone()), "not noticed: {mutant:?}");
    }
}
