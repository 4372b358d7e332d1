//! What a campaign says of each kernel, as systems for continuous integration ask it: is the kernel
//! free of the bug?
//!
//! In: a [`Document`]. Out: [`Case`]s.
//! Must not know: the formats of these systems.

use super::document::{Document, Known};
use super::{probability, reason};
use crate::plan::RULES_ARM;
use crate::runner::ArmOutcome;
use crate::verdict::Verdict;

/// The answer for one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The kernel does not have the bug.
    Good,
    /// It has, and the plan says so.
    ExpectedBad,
    /// It has, or it was not hit although the plan knows it as affected.
    Bad {
        /// Which of the two.
        why: String,
    },
    /// The trials do not tell.
    None {
        /// Why not.
        why: String,
    },
}

/// One question and its answer.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// The kernel.
    pub(super) kernel: String,
    /// The answer.
    pub(super) answer: Answer,
    /// The verdict, and how certain it is.
    pub(super) verdict: String,
    /// Numbers by name.
    pub(super) properties: Vec<(String, String)>,
    /// Lines for people: the rate of each arm, what was unexpected.
    pub(super) details: Vec<String>,
    /// Time that the trials took.
    pub(super) seconds: f64,
}

impl Case {
    /// One line: the verdict, and what is wrong.
    pub(super) fn message(&self) -> String {
        match &self.answer {
            Answer::Good | Answer::ExpectedBad => self.verdict.clone(),
            Answer::Bad { why } | Answer::None { why } => format!("{}: {why}", self.verdict),
        }
    }
}

/// One case for each kernel that has a verdict, in the order of the report.
pub(super) fn cases(document: &Document) -> Vec<Case> {
    let case = |(kernel, verdict, error): &(String, Verdict, f64)| {
        let answer = match (verdict, document.known(kernel)) {
            (Verdict::Affected, Known::Affected) => Answer::ExpectedBad,
            (Verdict::Affected, Known::Fixed) => {
                Answer::Bad { why: "the plan knows it as fixed".to_owned() }
            }
            (Verdict::Affected, Known::Unknown) => {
                Answer::Bad { why: "the kernel has the bug".to_owned() }
            }
            (Verdict::NotAffected, Known::Affected) => {
                Answer::Bad { why: "the plan knows it as affected".to_owned() }
            }
            (Verdict::NotAffected, _) => Answer::Good,
            (Verdict::Inconclusive, _) => {
                let why = reason(&document.campaign, kernel).unwrap_or("no reason is known");
                Answer::None { why: why.to_owned() }
            }
        };
        let arms = document.campaign.arms.iter().filter(|arm| arm.kernel == *kernel);
        let arms: Vec<&ArmOutcome> = arms.collect();
        Case {
            kernel: kernel.clone(),
            answer,
            verdict: format!("{verdict}, error probability {}", probability(*error)),
            properties: properties(document, &arms),
            details: details(document, kernel, &arms),
            seconds: arms.iter().flat_map(|arm| &arm.trials).map(|trial| trial.seconds).sum(),
        }
    };
    document.campaign.verdicts.iter().map(case).collect()
}

fn properties(document: &Document, arms: &[&ArmOutcome]) -> Vec<(String, String)> {
    let of = |name: &str, value: String| (name.to_owned(), value);
    let mut properties = vec![
        of("plan", document.plan.name.clone()),
        of("plan_sha256", document.plan_sha256()),
        of("device", document.campaign.device.name().to_owned()),
        of("seed", document.campaign.seed.to_string()),
        of("repeat_with", super::again(document)),
    ];
    for arm in arms {
        // Of the arm that the verdict is about, the names are plain.
        let prefix = if arm.arm == RULES_ARM { String::new() } else { format!("{}.", arm.arm) };
        let (tally, (low, high)) = (arm.tally(), arm.tally().interval95());
        properties.extend([
            of(&format!("{prefix}hits"), tally.hits.to_string()),
            of(&format!("{prefix}trials"), tally.trials.to_string()),
            of(&format!("{prefix}invalid"), arm.invalid().to_string()),
            of(&format!("{prefix}ci95_low"), format!("{low:.4}")),
            of(&format!("{prefix}ci95_high"), format!("{high:.4}")),
        ]);
    }
    properties
}

fn details(document: &Document, kernel: &str, arms: &[&ArmOutcome]) -> Vec<String> {
    let mut lines: Vec<String> = arms
        .iter()
        .map(|arm| {
            let (tally, (low, high)) = (arm.tally(), arm.tally().interval95());
            format!(
                "{}: {} of {}, 95 % interval {low:.3} to {high:.3}",
                arm.arm, tally.hits, tally.trials
            )
        })
        .collect();
    let findings = document.campaign.findings.iter().filter(|finding| finding.kernel == kernel);
    lines.extend(findings.map(|f| format!("arm {}, trial {}: {}", f.arm, f.trial, f.text)));
    lines
}
