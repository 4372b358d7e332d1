//! Goal: the promises of the core that a random test would not single out. Method: small
//! streams by hand.

use super::*;
use crate::Want;
use crate::request::{Op, Outcome};

const MS: u64 = 1_000_000;

fn core(seed: u64, toml: &str) -> Core {
    let mut core = Core::new(seed);
    let rules = RuleSet::parse(toml, "test.toml").expect("sound rules");
    core.load(Nanos(0), rules, &mut Outbox::default());
    core
}

fn read(core: &mut Core, now: u64, id: u64) -> Vec<Action> {
    let mut out = Outbox::default();
    let id = RequestId(id);
    let request =
        Request { id, queue: 0, head: 0, op: Op::Read, sector: 0, sectors: 8, spans: &[] };
    core.step(Nanos(now), Input::Arrive(request), &mut out);
    out.actions.retain(|action| !matches!(action, Action::Rearm { .. }));
    out.actions
}

fn step(core: &mut Core, now: u64, input: Input<'_>) -> Vec<Action> {
    let mut out = Outbox::default();
    core.step(Nanos(now), input, &mut out);
    out.actions.retain(|action| !matches!(action, Action::Rearm { .. }));
    out.actions
}

fn rule(name: &str, matches: &str, action: &str) -> String {
    format!("[[rule]]\nname = \"{name}\"\nmatch = {matches}\naction = {action}\n")
}

#[test]
fn requested_achieved_and_late_are_told_apart() {
    let mut core = core(0, &rule("r", "{}", "{ delay = \"10ms\" }"));
    read(&mut core, 1_000, 1);
    let due = core.next_due().expect("something waits");
    assert_eq!(due, Nanos(1_000 + 10 * MS));
    // The timer comes 50 us late, and the queue thread takes 30 us more.
    let now = due.0 + 50_000;
    assert_eq!(step(&mut core, now, Input::Tick), [Action::Submit(RequestId(1))]);
    let submitted = Some(Nanos(now + 30_000));
    let (id, outcome) = (RequestId(1), Outcome::Ok);
    step(&mut core, now + MS, Input::Complete { id, outcome, submitted });

    let stats = core.stats().rules.remove(0);
    let about = |latency: Option<Latency>, ns: u64| {
        let latency = latency.expect("one value");
        assert_eq!(latency.count, 1);
        assert!(latency.p50_ns.abs_diff(ns) <= ns / 1000 + 1_000, "{latency:?}");
    };
    about(stats.requested, 10 * MS);
    about(stats.achieved, 10 * MS + 80_000);
    about(stats.late, 80_000);
}

#[test]
fn a_draw_depends_on_seed_name_and_number_alone() {
    let noisy = "{ delay = { uniform = [\"1ms\", \"50ms\"] } }";
    let dues = |seed: u64, toml: &str| -> Vec<Option<Nanos>> {
        let mut core = core(seed, toml);
        let due = |id| {
            let parked = read(&mut core, 0, id) == [Action::Park(RequestId(id))];
            let due = core.next_due().filter(|_| parked);
            step(&mut core, 0, Input::Release { rule: None });
            due
        };
        (1..200).map(due).collect()
    };
    let subject = rule("b", "{ op = \"read\" }", noisy);
    let alone = dues(7, &subject);
    assert_ne!(alone, dues(8, &subject), "another seed, other delays");
    assert_ne!(alone, dues(7, &subject.replace("\"b\"", "\"c\"")), "another name, other delays");
    // A rule in front takes some of the requests; the delays of the others stay.
    let front = rule("a", "{ probability = 0.5 }", "{ pass = true }");
    let behind = dues(7, &(front + &subject));
    let taken = behind.iter().filter(|due| due.is_none()).count();
    assert!((50..150).contains(&taken), "{taken} of 199 taken by the rule in front");
    for (alone, behind) in alone.iter().zip(&behind) {
        assert!(behind.is_none() || alone == behind);
    }
}

#[test]
fn rules_with_a_seed_draw_the_same_whatever_came_before() {
    let noisy = rule("b", "{ op = \"read\" }", "{ delay = { uniform = [\"1ms\", \"50ms\"] } }");
    let mut core = core(7, &noisy);
    let mut dues = |seed: Option<u64>| -> Vec<Option<Nanos>> {
        let text = RuleSet::parse(&noisy, "r").unwrap().text().clone();
        let rules = RuleSet::from_text(&crate::event::RulesText { seed, ..text }).unwrap();
        core.load(Nanos(0), rules, &mut Outbox::default());
        let due = |id| {
            read(&mut core, 0, id);
            let due = core.next_due();
            step(&mut core, 0, Input::Release { rule: None });
            due
        };
        (1..50).map(due).collect()
    };
    let first = dues(Some(1));
    assert_ne!(first, dues(Some(2)), "another seed, other delays");
    assert_eq!(first, dues(Some(1)));
    assert_eq!(dues(None), dues(Some(7)), "without one it is that of the core");
}

#[test]
fn arming_starts_the_counts_anew() {
    let mut core = core(0, &rule("r", "{ nth = 2 }", "{ fail = \"EIO\" }"));
    let fails = |core: &mut Core, id| matches!(read(core, 0, id)[..], [Action::Fail { .. }]);
    assert_eq!([1, 2, 3].map(|id| fails(&mut core, id)), [false, true, false]);
    step(&mut core, 0, Input::Arm { rule: "r", armed: true });
    assert_eq!([4, 5, 6].map(|id| fails(&mut core, id)), [false, true, false]);
    let stats = core.stats();
    assert_eq!((stats.rules[0].matched, stats.rules[0].fired), (6, 2));
}

#[test]
fn other_rules_let_go_what_the_old_ones_parked() {
    let mut core = core(0, &rule("r", "{}", "{ hold = {} }"));
    read(&mut core, 0, 1);
    read(&mut core, 0, 2);
    let mut out = Outbox::default();
    let rules = RuleSet::parse(&rule("s", "{}", "{ hold = {} }"), "s.toml").expect("sound");
    core.load(Nanos(5), rules, &mut out);
    let expected = [1, 2].map(|id| Action::Submit(RequestId(id)));
    assert_eq!(out.actions[..2], expected);
    assert_eq!(out.actions[2..], [Action::Rearm { due: None }]);
    // Their completions mean nothing to the new rules.
    let (id, outcome) = (RequestId(1), Outcome::Ok);
    step(&mut core, 6, Input::Complete { id, outcome, submitted: None });
    assert_eq!(core.stats().rules[0].achieved, None);
}

#[test]
fn memory_is_bounded_however_many_wait() {
    let mut core = core(0, &rule("r", "{}", "{ hold = { at_most = \"60s\" } }"));
    for id in 0..PARKED_MAX as u64 {
        assert_eq!(read(&mut core, 0, id), [Action::Park(RequestId(id))]);
    }
    let id = PARKED_MAX as u64;
    assert_eq!(read(&mut core, 0, id), [Action::Submit(RequestId(id))]);
    assert_eq!(core.stats().crowded, 1);
    assert_eq!(step(&mut core, 0, Input::Disconnect).len(), PARKED_MAX);
}

#[test]
fn short_holds_with_long_limits_leave_nothing_behind() {
    let mut core = core(0, &rule("r", "{}", "{ hold = { at_most = \"60s\" } }"));
    for id in 0..10_000 {
        read(&mut core, 0, id);
        step(&mut core, 0, Input::Release { rule: Some("r") });
    }
    assert!(core.parked.leftovers() < 2_000, "{}", core.parked.leftovers());
}

#[test]
fn the_filter_follows_what_is_armed() {
    let toml = rule("r", "{ op = \"read\", class = \"xattr\" }", "{ pass = true }")
        + "armed = false\n"
        + &rule("s", "{ op = \"write\", sector = \"8..16\" }", "{ pass = true }");
    let mut core = core(0, &toml);
    let filter = core.filter();
    assert_eq!(filter.wants(Op::Read), Want::Nothing);
    assert_eq!(filter.wants(Op::Write), Want::Range);
    assert!(filter.may_match(Op::Write, 0, 9, 0) && !filter.may_match(Op::Write, 0, 8, 0));

    let mut out = Outbox::default();
    core.step(Nanos(0), Input::Arm { rule: "r", armed: true }, &mut out);
    assert!(out.filter_changed);
    let xattr = ext4_layout::Kind::Xattr.bit();
    assert_eq!(core.filter().wants(Op::Read), Want::Classes);
    assert!(core.filter().may_match(Op::Read, 0, 8, xattr));
    assert!(!core.filter().may_match(Op::Read, 0, 8, !xattr));

    core.set_logging(true);
    assert!(core.filter().may_match(Op::Flush, 0, 0, 0));
}

#[test]
fn an_unknown_rule_is_named_with_the_nearest() {
    let core = core(0, &rule("hold-bitmap", "{}", DELAY));
    assert!(core.find_rule("hold-bitmap").is_ok());
    let error = core.find_rule("hold-bitmpa").expect_err("not there").to_string();
    assert_eq!(error, "no rule is named `hold-bitmpa`; did you mean `hold-bitmap`?");
}

#[test]
fn a_name_cut_short_is_enough_for_a_hint() {
    let core = core(0, &rule("hold-first-bitmap-read", "{}", DELAY));
    let error = core.find_rule("hold-first").expect_err("not there");
    assert_eq!(error.nearest.as_deref(), Some("hold-first-bitmap-read"));
    let error = core.find_rule("ho").expect_err("not there");
    assert_eq!(error.nearest, None);
}

const DELAY: &str = "{ delay = \"80ms\" }";
