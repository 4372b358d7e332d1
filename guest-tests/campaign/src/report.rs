//! What a campaign says to people, and to programs.
//!
//! In: a [`Campaign`], or a [`Document`] of the database. Out: text, JSON of schema [`SCHEMA`], HTML,
//! Markdown, JUnit XML, KTAP.
//! Must not know: how trials run.

mod answer;
pub mod clean;
mod document;
#[cfg(test)]
mod fixture;
pub mod html;
pub mod junit;
pub mod ktap;
pub mod markdown;
pub mod matrix;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::runner::{ArmOutcome, Campaign, Noticed, Outcome, Watched};
use crate::stats::{self, Amplification};
pub use document::{Document, Dose, Known};

/// Version of the JSON report; raised when a key changes its meaning or goes away.
pub const SCHEMA: u32 = 1;

/// The arm that others are compared with: no rules.
const BARE_ARM: &str = "none";

/// The JSON report: `schema`, `seed`, `arms`, `verdicts`, `findings`, `timelines`,
/// `amplification`, `shadow`, `guests`.
pub fn json(campaign: &Campaign) -> Value {
    let plan = &campaign.plan;
    let arms: Vec<Value> = campaign
        .arms
        .iter()
        .map(|arm| {
            let (low, high) = arm.tally().interval95();
            json!({
                "plan": plan,
                "kernel": arm.kernel,
                "device": campaign.device.name(),
                "arm": arm.arm,
                "trials": arm.trials.len(),
                "hits": arm.tally().hits,
                "invalid": arm.invalid(),
                "rate": arm.tally().rate(),
                "ci95": [low, high],
                "seconds_per_trial": arm.seconds_per_trial(),
            })
        })
        .collect();
    let verdicts: Vec<Value> = campaign
        .verdicts
        .iter()
        .map(|(kernel, verdict, error)| {
            let mut value = json!({
                "plan": plan,
                "kernel": kernel,
                "device": campaign.device.name(),
                "verdict": verdict,
                "error": error,
            });
            if let Some(reason) = reason(campaign, kernel) {
                value["reason"] = reason.into();
            }
            value
        })
        .collect();
    let timelines: Vec<Value> = campaign
        .timelines
        .iter()
        .map(|(kernel, timeline)| json!({"kernel": kernel, "timeline": timeline}))
        .collect();
    json!({
        "schema": SCHEMA,
        "seed": campaign.seed,
        "arms": arms,
        "verdicts": verdicts,
        "findings": campaign.findings,
        "timelines": timelines,
        "amplification": amplifications(campaign)
            .map(|(kernel, arm, Amplification { ratio, ci95: (low, high) })| {
                // JSON has no infinity: null is "without bound".
                json!({"kernel": kernel, "arm": arm, "ratio": ratio, "ci95": [low, high]})
            })
            .collect::<Vec<_>>(),
        "shadow": {"noticed": campaign.noticed, "watched": campaign.watched},
        "guests": campaign.guests,
    })
}

/// The report for people: table, a hit's timeline, verdicts, and what nobody expected.
pub fn text(campaign: &Campaign) -> String {
    let mut text = table(&campaign.arms);
    if let Some((kernel, timeline)) = campaign.timelines.first() {
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "\nThe first hit of {kernel} with the plan's rules:\n{}\n",
            clean::lines_of(&timeline.to_string())
        );
    }
    let mut lines = String::new();
    for (kernel, arm, Amplification { ratio, ci95: (low, high) }) in amplifications(campaign) {
        // Writing to a String does not fail.
        let _ = writeln!(lines, "{kernel}: {}", describe(arm, ratio, low, high));
    }
    if !lines.is_empty() {
        text = text + "\n" + &lines;
    }
    for arm in &campaign.arms {
        let invalid = arm.trials.iter().find_map(|trial| match &trial.outcome {
            Outcome::Invalid { evidence } => Some((trial.trial, evidence)),
            _ => None,
        });
        if let Some((trial, evidence)) = invalid {
            let ArmOutcome { kernel, arm: name, .. } = arm;
            let count = arm.invalid();
            let _ = write!(
                text,
                "\n{kernel}, arm {name}: {count} invalid, the first is trial {trial}: {}\n",
                clean::line(evidence)
            );
        }
    }
    if !campaign.findings.is_empty() {
        text += "\nUnexpected:\n";
        for finding in &campaign.findings {
            let _ = writeln!(
                text,
                "  {}, arm {}, trial {}: {}",
                finding.kernel,
                finding.arm,
                finding.trial,
                clean::line(&finding.text)
            );
        }
    }
    text += &shadow(campaign);
    for guests in campaign.guests.iter().filter(|guests| !guests.isolation.is_shared()) {
        let what = clean::line(&guests.describe());
        let _ = write!(text, "\n{}, a guest for each trial: {what}\n", guests.kernel);
    }
    text += "\n";
    for (kernel, verdict, error) in &campaign.verdicts {
        let _ = write!(text, "{kernel}: {verdict} (error probability {})", probability(*error));
        let reason = reason(campaign, kernel).map(|reason| format!(": {reason}"));
        text += &(reason.unwrap_or_default() + "\n");
    }
    text
}

/// An arm's amplification in words.
fn describe(arm: &str, ratio: f64, low: f64, high: f64) -> String {
    if ratio.is_finite() {
        let high = if high.is_finite() { format!("{high:.1}") } else { "no bound".to_owned() };
        format!("{arm} hits {ratio:.1} times as often as none (95 % interval {low:.1} to {high})")
    } else {
        format!("{arm} hits at least {low:.1} times as often as none (95 %)")
    }
}

/// Seconds since 1970 as date and time, UTC.
fn date(seconds: i64) -> String {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    // Beyond the year 9999 there is no such text.
    let known = UNIX_EPOCH.checked_add(since).filter(|_| since.as_secs() < 253_402_300_800);
    humantime::format_rfc3339_seconds(known.unwrap_or(UNIX_EPOCH)).to_string()
}

/// Nanoseconds with three digits and the unit that suits them.
fn duration(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let text = match value {
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    };
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {unit}")
}

/// Options that say where results go, not what is run.
const PLACES: [&str; 6] = ["--db", "--html", "--markdown", "--junit", "--ktap", "--json"];

/// The line that runs the same trials: what was typed, with the seed, without the places that results
/// went to.
fn again(document: &Document) -> String {
    let shard = document.ordered.is_some_and(|ordered| ordered.shard.is_some());
    let mut line: Vec<&str> = Vec::new();
    let mut value_follows = false;
    for word in words(&document.command) {
        let is_option = word.starts_with("--");
        if value_follows && !is_option {
            value_follows = false;
            continue;
        }
        let (name, value) = word.split_once('=').map_or((word, None), |(n, v)| (n, Some(v)));
        // Of shards that were put together the whole is meant.
        value_follows = PLACES.contains(&name) || (name == "--shard" && !shard);
        if value_follows {
            value_follows = value.is_none();
        } else if word != "--resume" {
            line.push(word);
        }
    }
    let line = line.join(" ");
    if line.contains(" --seed") {
        line
    } else {
        format!("{line} --seed {}", document.campaign.seed)
    }
}

/// Words of a line for a shell; what stands in single quotes is part of one.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let words = line.split(move |c: char| {
        quoted ^= c == '\'';
        c == ' ' && !quoted
    });
    words.filter(|word| !word.is_empty())
}

/// Why the verdict on `kernel` is inconclusive.
fn reason<'a>(campaign: &'a Campaign, kernel: &str) -> Option<&'a str> {
    let known = campaign.reasons.iter().find(|(known, _)| known == kernel);
    known.map(|(_, reason)| reason.as_str())
}

/// How much each arm amplifies the race, by kernel: against the arm without rules, where one of
/// the two hit.
fn amplifications(campaign: &Campaign) -> impl Iterator<Item = (&str, &str, Amplification)> {
    campaign.arms.iter().filter(|arm| arm.arm != BARE_ARM).filter_map(|arm| {
        let bare = campaign.arms.iter();
        let bare = bare.into_iter().find(|b| b.arm == BARE_ARM && b.kernel == arm.kernel)?;
        let (with, without) = (arm.tally(), bare.tally());
        let amplification = stats::amplification(with, without)?;
        (with.hits + without.hits > 0).then_some((&*arm.kernel, &*arm.arm, amplification))
    })
}

/// What the shadows noticed: per kernel, arm and rule, in how many trials, and the first.
fn shadow(campaign: &Campaign) -> String {
    let mut groups: Vec<(&Noticed, BTreeSet<u32>, u64)> = Vec::new();
    for noticed in &campaign.noticed {
        let same = |first: &Noticed| {
            (&first.kernel, &first.arm, &first.rule)
                == (&noticed.kernel, &noticed.arm, &noticed.rule)
        };
        let at = groups.iter().position(|(first, ..)| same(first)).unwrap_or_else(|| {
            groups.push((noticed, BTreeSet::new(), 0));
            groups.len() - 1
        });
        let (_, trials, latest_us) = &mut groups[at];
        trials.insert(noticed.trial);
        *latest_us = noticed.noticed_after_us.max(*latest_us);
    }
    let mut text = String::new();
    if !campaign.watched.is_empty() {
        text += "\nThe shadow:\n";
    }
    for Watched { kernel, events, lost, rules } in &campaign.watched {
        let rules = rules.join(" ");
        let _ = writeln!(text, "  {kernel}: {events} events of the kernel, {lost} lost; {rules}");
    }
    for (first, trials, latest_us) in groups {
        let Noticed { kernel, arm, rule, text: what, .. } = first;
        let what = clean::lines(what).replace('\n', "\n    ");
        let _ = writeln!(
            text,
            "  {kernel}, arm {arm}: {rule} in {} trials, each within {:.1} ms; the first:\n    \
             {what}",
            trials.len(),
            latest_us as f64 / 1000.0
        );
    }
    text
}

fn table(arms: &[ArmOutcome]) -> String {
    let mut rows = vec![
        ["kernel", "arm", "hits/trials", "rate", "95 % interval", "s/trial"].map(str::to_owned),
    ];
    for arm in arms {
        let tally = arm.tally();
        let (low, high) = tally.interval95();
        let invalid = match arm.invalid() {
            0 => String::new(),
            invalid => format!(" ({invalid} invalid)"),
        };
        rows.push([
            arm.kernel.clone(),
            arm.arm.clone(),
            format!("{}/{}{invalid}", tally.hits, tally.trials),
            format!("{:.3}", tally.rate()),
            format!("{low:.3} to {high:.3}"),
            format!("{:.2}", arm.seconds_per_trial()),
        ]);
    }
    let widths: [usize; 6] =
        std::array::from_fn(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0));
    rows.iter().fold(String::new(), |text, row| {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text + line.trim_end() + "\n"
    })
}

fn probability(error: f64) -> String {
    if error > 0.0 && error < 1e-3 { format!("{error:.0e}") } else { format!("{error:.3}") }
}

#[cfg(test)]
mod tests;
