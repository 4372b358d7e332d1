//! A campaign of the database as a report needs it.
//!
//! In: what is stored, and the plan that was run. Out: a [`Document`]: the campaign as it would have
//! come from the runner, with what the runner does not keep.
//! Must not know: how a report looks, how a database looks.

use std::fmt::Write as _;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::delays::{self, Delayed};
use crate::device::Device;
use crate::plan::{Plan, RULES_ARM};
use crate::runner::{ArmOutcome, Campaign, Noticed, TrialRecord, undecided};
use crate::sequential::Sequential;
use crate::stats::Tally;
use crate::store::{Failure, Ordered, Stored};
use crate::timeline::Timeline;
use crate::verdict::{self, Verdict};

/// What a plan says of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It has the bug.
    Affected,
    /// It does not.
    Fixed,
    /// The plan does not name it.
    Unknown,
}

/// The rate of an arm at one length of delay.
#[derive(Clone, Debug, PartialEq)]
pub struct Dose {
    /// The kernel.
    pub kernel: String,
    /// The arm, without what sets lengths apart.
    pub arm: String,
    /// The median of the delays that its rule asked for, in nanoseconds; 0 without a rule.
    pub asked_ns: u64,
    /// Hits and trials.
    pub tally: Tally,
}

/// A campaign with everything around it.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its number in the database.
    pub id: i64,
    /// The campaign.
    pub campaign: Campaign,
    /// The plan.
    pub plan: Plan,
    /// When it was started, in seconds since 1970.
    pub started: i64,
    /// When it ended; `None` while it runs, or after a crash.
    pub finished: Option<i64>,
    /// What was typed.
    pub command: String,
    /// What was to be run, if that is known.
    pub ordered: Option<Ordered>,
    /// Delays by kernel and arm, in the order of the table.
    pub delays: Vec<(String, String, Vec<Delayed>)>,
    /// Guests that failed.
    pub failures: Vec<Failure>,
}

impl Document {
    /// Puts together what is stored. `kernels` is the order in which they were asked for; others
    /// follow in the order of their names.
    pub fn new(stored: Stored, plan: Plan, device: Device, kernels: &[&str]) -> Document {
        let arms = arms(&stored.earlier.trials, &plan, kernels);
        let mut campaign = Campaign {
            plan: plan.name.clone(),
            device,
            seed: stored.seed,
            verdicts: Vec::new(),
            reasons: Vec::new(),
            timelines: Vec::new(),
            findings: stored.earlier.findings,
            noticed: stored.notices.into_iter().map(noticed).collect(),
            watched: Vec::new(),
            guests: Vec::new(),
            arms: Vec::new(),
        };
        for arm in arms.iter().filter(|arm| arm.arm == RULES_ARM) {
            let of = |known: &String| *known == arm.kernel;
            let judged = stored.judged.iter().find(|judged| of(&judged.kernel));
            let judged = judged.and_then(|j| Some((parse(&j.verdict)?, j.error, j.reason.clone())));
            let (verdict, error, reason) =
                judged.unwrap_or_else(|| judge(arm, &plan, stored.ordered));
            campaign.verdicts.push((arm.kernel.clone(), verdict, error));
            campaign.reasons.extend(reason.map(|reason| (arm.kernel.clone(), reason)));
            let first: Option<&(String, Timeline)> =
                stored.earlier.timelines.iter().find(|(kernel, _)| of(kernel));
            campaign.timelines.extend(first.cloned());
        }
        let of_arm = |arm: &ArmOutcome| {
            let of = stored.delays.iter().filter(|(k, a, _)| *k == arm.kernel && *a == arm.arm);
            (arm.kernel.clone(), arm.arm.clone(), of.map(|(.., delay)| delay.clone()).collect())
        };
        let delays = arms.iter().map(of_arm);
        let delays = delays.filter(|(.., of): &(_, _, Vec<_>)| !of.is_empty()).collect();
        campaign.arms = arms;
        Document {
            id: stored.id,
            campaign,
            plan,
            started: stored.started,
            finished: stored.finished,
            command: stored.command,
            ordered: stored.ordered,
            delays,
            failures: stored.failures,
        }
    }

    /// What the plan says of a kernel.
    pub fn known(&self, kernel: &str) -> Known {
        let names = |of: &[String]| of.iter().any(|name| name == kernel);
        if names(&self.plan.kernels.affected) {
            Known::Affected
        } else if names(&self.plan.kernels.fixed) {
            Known::Fixed
        } else {
            Known::Unknown
        }
    }

    /// SHA-256 of the plan's file, in hexadecimal digits.
    pub fn plan_sha256(&self) -> String {
        Sha256::digest(self.plan.source.as_bytes()).iter().fold(String::new(), |mut text, byte| {
            // Writing to a String does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Trials that were ordered of all arms and kernels together, if that is known.
    pub fn trials_ordered(&self) -> Option<u64> {
        Some(u64::from(self.ordered?.here()) * self.campaign.arms.len() as u64)
    }

    /// Rates by length of delay: of every arm without a rule, or with one rule that delays.
    pub fn doses(&self) -> Vec<Dose> {
        let dose = |arm: &ArmOutcome| {
            let of = self.delays.iter().find(|(k, a, _)| *k == arm.kernel && *a == arm.arm);
            let rules = delays::summaries(of.map_or(&[], |(.., delays)| delays));
            let has_rules = self.plan.arms.iter().any(|a| a.name == arm.arm && !a.rules.is_empty());
            let (stem, length) = stem(&arm.arm);
            let asked_ns = match (&rules[..], length) {
                ([one], _) => one.asked_ns,
                // No request came that its rule would have delayed.
                ([], Some(length)) => u64::try_from(length.as_nanos()).ok()?,
                ([], None) if !has_rules => 0,
                _ => return None,
            };
            let (kernel, tally) = (arm.kernel.clone(), arm.tally());
            Some(Dose { kernel, arm: stem.to_owned(), asked_ns, tally })
        };
        let doses = self.campaign.arms.iter().filter_map(dose);
        doses.filter(|dose| dose.tally.trials > 0).collect()
    }
}

/// The name of an arm without the length of a delay at its end, and that length: `rules-5ms` is
/// `rules`, and `delay=5ms`, as a sweep names its arms, is `delay`.
fn stem(arm: &str) -> (&str, Option<Duration>) {
    let split = arm.rsplit_once(['-', '@', ' ', '=']);
    match split.and_then(|(stem, length)| Some((stem, humantime::parse_duration(length).ok()?))) {
        Some((stem, length)) => (stem, Some(length)),
        None => (arm, None),
    }
}

/// Trials by kernel and arm, each group in the order of its trials.
fn arms(trials: &[TrialRecord], plan: &Plan, kernels: &[&str]) -> Vec<ArmOutcome> {
    let mut arms: Vec<ArmOutcome> = Vec::new();
    for record in trials {
        let same = |arm: &ArmOutcome| arm.kernel == record.kernel && arm.arm == record.arm;
        let at = arms.iter().position(same).unwrap_or_else(|| {
            let (kernel, arm) = (record.kernel.clone(), record.arm.clone());
            arms.push(ArmOutcome { kernel, arm, trials: Vec::new() });
            arms.len() - 1
        });
        arms[at].trials.push(record.clone());
    }
    for arm in &mut arms {
        arm.trials.sort_by_key(|record| record.trial);
    }
    arms.sort_by_cached_key(|ArmOutcome { kernel, arm, .. }| {
        let of_kernel = kernels.iter().position(|known| known == kernel);
        let of_arm = plan.arms.iter().position(|known| known.name == *arm);
        let (of_kernel, of_arm) = (of_kernel.unwrap_or(usize::MAX), of_arm.unwrap_or(usize::MAX));
        (of_kernel, by_number(kernel), of_arm, arm.clone())
    });
    arms
}

/// A name such that `5.10.9` comes before `5.10.10`.
fn by_number(name: &str) -> Vec<(u64, String)> {
    let digit = |c: char| c.is_ascii_digit();
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = &rest[..rest.find(digit).unwrap_or(rest.len())];
        rest = &rest[text.len()..];
        let digits = &rest[..rest.find(|c| !digit(c)).unwrap_or(rest.len())];
        rest = &rest[digits.len()..];
        parts.push((0, text.to_owned()));
        parts.push((digits.parse().unwrap_or(0), String::new()));
    }
    parts
}

fn parse(name: &str) -> Option<Verdict> {
    let all = [Verdict::Affected, Verdict::NotAffected, Verdict::Inconclusive];
    all.into_iter().find(|verdict| verdict.name() == name)
}

/// The verdict on what is there: no one was given, or the trials have become more since.
fn judge(
    arm: &ArmOutcome,
    plan: &Plan,
    ordered: Option<Ordered>,
) -> (Verdict, f64, Option<String>) {
    let rate_if_affected = plan.rate_if_affected;
    let (verdict, error) = match ordered.and_then(|ordered| ordered.sure) {
        Some(error) => Sequential::new(rate_if_affected, error).judge(arm.tally(), arm.invalid()),
        None => verdict::judge(arm.tally(), arm.invalid(), rate_if_affected),
    };
    let ordered = ordered.map(|ordered| ordered.here() as usize);
    let reason = (verdict == Verdict::Inconclusive).then(|| undecided(arm, ordered));
    (verdict, error, reason)
}

fn noticed(notice: crate::store::Notice) -> Noticed {
    Noticed {
        kernel: notice.kernel,
        arm: notice.arm,
        trial: notice.trial,
        rule: notice.rule,
        text: notice.text,
        parked: Vec::new(),
        noticed_after_us: notice.after_us,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_their_numbers() {
        let mut names = ["debian-5.10.46", "debian-5.10.9", "debian-6.1.1", "built-6.1.192"];
        names.sort_by_cached_key(|name| by_number(name));
        assert_eq!(names, ["built-6.1.192", "debian-5.10.9", "debian-5.10.46", "debian-6.1.1"]);
    }

    #[test]
    fn a_length_at_the_end_of_an_arm_is_no_part_of_its_name() {
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(stem("rules-5ms"), ("rules", ms(5)));
        assert_eq!(stem("rules@80ms"), ("rules", ms(80)));
        assert_eq!(stem("delay=1ms"), ("delay", ms(1)));
        assert_eq!(stem("uniform"), ("uniform", None));
        assert_eq!(stem("no-barrier"), ("no-barrier", None));
    }
}
