//! Random rules and inputs, and random rules as a rules file.
//!
//! In: proptest's draws. Out: rules for the oracle, their TOML for the core, steps for both.
//! Must not know: what either makes of them.

use std::fmt::Write as _;

use ext4_layout::{Class, Home, Span, Written};
use proptest::collection::vec;
use proptest::option::{of, weighted};
use proptest::prelude::*;

use super::oracle::{Rule, Touched, Trigger, Until, Wait, name};
use crate::Op;

pub(super) const MS: u64 = 1_000_000;
pub(super) const RULES: usize = 4;

fn touched() -> impl Strategy<Value = Touched> {
    prop_oneof![Just(Touched::Bitmap), Just(Touched::Data), Just(Touched::BitmapCopy)]
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
    pub(super) fn rule()(
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
pub(super) enum Step {
    Arrive { op: Op, sector: u64, sectors: u64, touched: Vec<Option<(Touched, u32)>> },
    Complete,
    Mark(u8),
    Release(Option<usize>),
    Arm(usize, bool),
    Disconnect,
}

pub(super) fn step() -> impl Strategy<Value = (u64, Step)> {
    let arrive = (op(), 0..50_u64, vec(of((touched(), 0..3_u32)), 1..4)).prop_map(
        |(op, sector, touched)| {
            let sectors = 2 * touched.len() as u64;
            Step::Arrive { op, sector, sectors, touched }
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
    (prop_oneof![3 => Just(0), 3 => 0..5 * MS, 1 => 0..40 * MS], step)
}

pub(super) fn spans(sector: u64, touched: &[Option<(Touched, u32)>]) -> Vec<Span> {
    let class = |touched: &Option<(Touched, u32)>| match *touched {
        None => Class::Home(Home::Unknown),
        Some((Touched::Bitmap, group)) => Class::Home(Home::BlockBitmap { group }),
        Some((Touched::Data, inode)) => Class::Home(Home::FileData {
            inode,
            first_lblk: 0,
            last_lblk: 0,
            state: Written::Written,
        }),
        Some((Touched::BitmapCopy, group)) => {
            Class::JournalCopy { tid: 1, of: Home::BlockBitmap { group } }
        }
    };
    let span = |(index, touched)| Span {
        first_sector: sector + 2 * index as u64,
        sectors: 2,
        class: class(touched),
    };
    touched.iter().enumerate().map(span).collect()
}

/// The rules as a rules file.
pub(super) fn toml(rules: &[Rule]) -> String {
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
        put("sector", rule.sectors.map(|(first, last)| format!("\"{first}..={last}\"")));
        put("nth", rule.nth.map(|nth| nth.to_string()));
        put("after", Some(rule.after).filter(|after| *after > 0).map(|n| n.to_string()));
        put("every", Some(rule.every).filter(|every| *every > 1).map(|n| n.to_string()));
        put("times", rule.times.map(|times| times.to_string()));
        put("probability", Some((f64::from(rule.probability) / 8.0).to_string()));
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
                vec![format!("hold = {{ until = \"{until}\", at_most = \"{ns}ns\" }}")]
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
