//! Hit, miss or invalid: what one trial says, by its own evidence.
//!
//! In: what the guest and the device saw, the plan's idea of a hit, the rules in force.
//! Out: an [`Outcome`]. Must not know: other trials.

use std::collections::BTreeMap;

use agent::wire::{KernelLine, TrialResult};
use pipeline::{Event, What};
use serde::Serialize;

use super::Noticed;
use crate::device::Device;
use crate::plan::{Arm, CounterRises, Hit};

/// What a trial says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The race happened.
    Hit {
        /// What shows it.
        evidence: String,
    },
    /// It did not.
    Miss {
        /// What shows it.
        evidence: String,
    },
    /// The trial tells nothing.
    Invalid {
        /// Why.
        evidence: String,
    },
}

/// How often each rule fired, by name.
pub(super) fn fired(events: &[Event]) -> BTreeMap<String, u64> {
    let mut fired = BTreeMap::new();
    for event in events {
        if let What::Decision { rule, .. } = &event.what {
            *fired.entry(rule.to_string()).or_default() += 1;
        }
    }
    fired
}

/// Judges one trial. Every rule of the arm that the device can apply must have fired, else the
/// device did not do what the plan is about, and a miss would say nothing about the kernel.
pub(super) fn judge(
    hit: &Hit,
    arm: &Arm,
    device: Device,
    result: &TrialResult,
    events: &[Event],
    noticed: &[Noticed],
) -> Outcome {
    let invalid = |evidence: String| Outcome::Invalid { evidence };
    if let Some(error) = &result.error {
        return invalid(error.clone());
    }
    let fired = fired(events);
    if let Some(idle) = arm.rules.names_for(device.ops()).find(|rule| !fired.contains_key(*rule)) {
        return invalid(format!("rule {idle} did not fire"));
    }
    let mut findings = Vec::new();
    if !hit.kernel_log.is_empty() {
        let line = result.kernel.iter().find(|line| is_hit(hit, line));
        findings.push(match line {
            Some(line) => (true, format!("kernel: {}", line.text)),
            None => (false, "kernel log: nothing".to_owned()),
        });
    }
    if !hit.shadow.is_empty() {
        let of = noticed.iter().find(|noticed| hit.shadow.contains(&noticed.rule));
        findings.push(match of {
            Some(of) => (true, format!("shadow: {}", of.text.lines().next().unwrap_or(&of.rule))),
            None => (false, "shadow: nothing".to_owned()),
        });
    }
    if let Some(counter) = &hit.counter_rises {
        match rises(counter, result) {
            Ok(finding) => findings.push(finding),
            Err(reason) => return invalid(reason),
        }
    }
    let evidence = |findings: &[(bool, String)]| {
        findings.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("; ")
    };
    let all = findings.iter().all(|(hit, _)| *hit);
    let none = findings.iter().all(|(hit, _)| !*hit);
    let evidence = evidence(&findings);
    match (all, none) {
        (true, _) => Outcome::Hit { evidence },
        (_, true) => Outcome::Miss { evidence },
        _ => invalid(format!("signs disagree: {evidence}")),
    }
}

/// Whether a line of the kernel log is what the plan waits for.
pub(super) fn is_hit(hit: &Hit, line: &KernelLine) -> bool {
    !hit.kernel_log.is_empty() && hit.kernel_log.iter().all(|part| line.text.contains(part))
}

fn rises(counter: &CounterRises, result: &TrialResult) -> Result<(bool, String), String> {
    let value = |name: &str| {
        let text = result.values.get(name).ok_or_else(|| format!("value {name} was not read"))?;
        let number = text.parse::<i64>();
        number.map_err(|_| format!("value {name} is \"{text}\", not a number"))
    };
    let (before, after) = (value(&counter.before)?, value(&counter.after)?);
    Ok((after > before, format!("{}: {before}, {}: {after}", counter.before, counter.after)))
}

#[cfg(test)]
mod tests {
    use pipeline::event::Verdict;
    use pipeline::{Nanos, RequestId, RuleSet};

    use super::*;

    fn hit() -> Hit {
        Hit {
            kernel_log: vec!["i_reserved_data_blocks (".into(), "not cleared!".into()],
            counter_rises: Some(CounterRises { before: "before".into(), after: "after".into() }),
            shadow: Vec::new(),
        }
    }

    fn arm(rules: &str) -> Arm {
        Arm { name: "rules".into(), rules: RuleSet::parse(rules, "r.toml").unwrap() }
    }

    fn result(line: &str, before: &str, after: &str) -> TrialResult {
        TrialResult {
            kernel: vec![KernelLine { at_us: 1, level: 3, text: line.into() }],
            values: [("before", before), ("after", after)]
                .map(|(name, value)| (name.into(), value.into()))
                .into(),
            ..TrialResult::default()
        }
    }

    const COMPLAINT: &str = "EXT4-fs (vda): Inode 12 (x): i_reserved_data_blocks (1) not cleared!";
    const RULE: &str =
        "[[rule]]\nname = \"r\"\nmatch = { op = \"read\" }\naction = { delay = \"1ms\" }";

    #[test]
    fn both_signs_must_agree() {
        let judge = |line, before, after| {
            judge(&hit(), &arm(""), Device::Blk, &result(line, before, after), &[], &[])
        };
        assert!(matches!(judge(COMPLAINT, "0", "1"), Outcome::Hit { .. }));
        assert!(matches!(judge(COMPLAINT, "3", "4"), Outcome::Hit { .. }));
        assert!(matches!(judge("mounted", "0", "0"), Outcome::Miss { .. }));
        assert!(matches!(judge("mounted", "7", "7"), Outcome::Miss { .. }));
        for (line, before, after) in
            [(COMPLAINT, "0", "0"), ("mounted", "0", "1"), (COMPLAINT, "0", "?")]
        {
            let outcome = judge(line, before, after);
            assert!(matches!(outcome, Outcome::Invalid { .. }), "{outcome:?}");
        }
    }

    #[test]
    fn a_trial_that_failed_or_whose_rule_was_idle_is_invalid() {
        let mut failed = result(COMPLAINT, "0", "1");
        failed.error = Some("storer: store: no".into());
        assert!(matches!(
            judge(&hit(), &arm(""), Device::Blk, &failed, &[], &[]),
            Outcome::Invalid { .. }
        ));

        let decision = Event {
            seq: 1,
            at: Nanos(1),
            what: What::Decision {
                id: RequestId(1),
                rule: "r".into(),
                matched: 1,
                verdict: Verdict::Delay { ns: 1 },
            },
        };
        let good = result(COMPLAINT, "0", "1");
        let idle = judge(&hit(), &arm(RULE), Device::Blk, &good, &[], &[]);
        assert_eq!(idle, Outcome::Invalid { evidence: "rule r did not fire".into() });
        assert!(matches!(
            judge(&hit(), &arm(RULE), Device::Blk, &good, &[decision], &[]),
            Outcome::Hit { .. }
        ));
        // A rule about reads says nothing about a device that has none.
        let judged = judge(&hit(), &arm(RULE), Device::Nvdimm, &good, &[], &[]);
        assert!(matches!(judged, Outcome::Hit { .. }), "{judged:?}");
    }

    #[test]
    fn a_finding_of_the_shadow_is_a_sign_like_the_others() {
        let noticed = |rule: &str| Noticed {
            kernel: "k".into(),
            arm: "rules".into(),
            trial: 0,
            rule: rule.into(),
            text: format!("{rule}: inode 12\n  0.1 ms"),
            parked: Vec::new(),
            noticed_after_us: 1,
        };
        let wanted = Hit { kernel_log: vec![], counter_rises: None, shadow: vec!["A3".into()] };
        let judge = |noticed: &[Noticed]| {
            judge(&wanted, &arm(""), Device::Blk, &result("x", "0", "0"), &[], noticed)
        };
        let hit = Outcome::Hit { evidence: "shadow: A3: inode 12".into() };
        assert_eq!(judge(&[noticed("C1"), noticed("A3")]), hit);
        assert!(matches!(judge(&[noticed("C1")]), Outcome::Miss { .. }));
        assert!(matches!(judge(&[]), Outcome::Miss { .. }));
    }
}
