//! A summary for a mailing list: plain text that is Markdown, too, 72 columns wide.
//!
//! In: a [`Document`]. Out: text.
//! Must not know: where a document comes from.
//!
//! What a guest has said stands in indented blocks only, where Markdown has no meaning.

use std::fmt::Write as _;

use textwrap::{Options, wrap};

use super::clean;
use super::document::{Document, Known};
use super::{amplifications, describe, probability, reason};
use crate::delays;
use crate::runner::Outcome;
use crate::stats::Amplification;
use crate::timeline::Timeline;

/// The width that mailing lists ask for.
const WIDTH: usize = 72;

/// Most findings of a mail; the HTML report has all.
const MOST_FINDINGS: usize = 10;

/// The summary of one campaign.
pub fn summary(document: &Document) -> String {
    let (campaign, plan) = (&document.campaign, &document.plan);
    let mut text = format!("# racegate: {}\n\n", clean::line(&plan.name));
    paragraph(&mut text, &format!("{}.", clean::line(&plan.summary)));
    if document.finished.is_none() {
        paragraph(&mut text, "The campaign is not finished; this is what was known by then.");
    }
    text += "## Verdicts\n\n";
    for (kernel, verdict, error) in &campaign.verdicts {
        let known = match document.known(kernel) {
            Known::Affected => ", and known to be affected",
            Known::Fixed => ", and known to be fixed",
            Known::Unknown => "",
        };
        let because = reason(campaign, kernel).map_or_else(String::new, |r| format!(": {r}"));
        let error = probability(*error);
        item(
            &mut text,
            &format!("{kernel}: {verdict}{known} (error probability {error}){because}"),
        );
    }
    if campaign.verdicts.is_empty() {
        item(&mut text, "none yet");
    }
    text += "\n## Rates\n\n";
    rates(&mut text, document);
    let mut any = false;
    for (kernel, arm, Amplification { ratio, ci95: (low, high) }) in amplifications(campaign) {
        item(&mut text, &format!("{kernel}: {}", describe(arm, ratio, low, high)));
        any = true;
    }
    text += if any { "\n" } else { "" };
    latency(&mut text, document);
    for (kernel, timeline) in &campaign.timelines {
        let _ = writeln!(text, "## The first hit of {}\n", clean::line(kernel));
        columns(&mut text, timeline);
    }
    unexpected(&mut text, document);
    text += "## To repeat it\n\n";
    command(&mut text, &super::again(document));
    let _ = write!(text, "\nPlan SHA-256:\n\n    {}\n", document.plan_sha256());
    text
}

/// Text of our own, wrapped.
fn paragraph(text: &mut String, words: &str) {
    *text += &wrap(&clean::line(words), WIDTH).join("\n");
    *text += "\n\n";
}

fn item(text: &mut String, words: &str) {
    let options = Options::new(WIDTH).initial_indent("- ").subsequent_indent("  ");
    *text += &wrap(&clean::line(words), options).join("\n");
    *text += "\n";
}

/// Something that was said elsewhere, as an indented block.
fn block(text: &mut String, said: &str, first: &str, then: &str) {
    let options = Options::new(WIDTH).initial_indent(first).subsequent_indent(then);
    for line in wrap(&clean::line(said), options) {
        *text += line.trim_end();
        *text += "\n";
    }
}

/// A line for a shell, broken where it may be.
fn command(text: &mut String, line: &str) {
    let options = Options::new(WIDTH - 2).initial_indent("    ").subsequent_indent("        ");
    let options = options.break_words(false).word_splitter(textwrap::WordSplitter::NoHyphenation);
    *text += &wrap(&clean::line(line), options).join(" \\\n");
    *text += "\n";
}

/// A block per kernel, so that long names do not widen the table.
fn rates(text: &mut String, document: &Document) {
    let arms = &document.campaign.arms;
    let mut last = None;
    let name = |arm: &str| clean::line(arm).chars().take(20).collect::<String>();
    let width = arms.iter().map(|arm| name(&arm.arm).chars().count()).max().unwrap_or(0);
    for arm in arms {
        if last != Some(&arm.kernel) {
            *text += if last.is_some() { "\n" } else { "" };
            block(text, &arm.kernel, "    ", "    ");
            last = Some(&arm.kernel);
        }
        let (tally, (low, high)) = (arm.tally(), arm.tally().interval95());
        let invalid = match arm.invalid() {
            0 => String::new(),
            invalid => format!(" ({invalid} invalid)"),
        };
        let counts = format!("{}/{}{invalid}", tally.hits, tally.trials);
        let _ = writeln!(
            text,
            "      {:<width$}  {counts:>10}  {:.3}  (95 %: {low:.3} to {high:.3})",
            name(&arm.arm),
            tally.rate()
        );
    }
    *text += "\n";
}

fn latency(text: &mut String, document: &Document) {
    if document.delays.is_empty() {
        return;
    }
    *text += "## Latency, requested against achieved\n\n";
    for (kernel, arm, of) in &document.delays {
        for summary in delays::summaries(of) {
            let [median, most_of_all, _] = summary.late_ns.map(super::duration);
            item(
                text,
                &format!(
                    "{kernel}, {arm}, {}: {} requests, {} requested, later by {median} (median), \
                     {most_of_all} (99 %)",
                    summary.rule,
                    summary.count,
                    super::duration(summary.asked_ns),
                ),
            );
        }
    }
    *text += "\n";
}

/// One line for each moment; what does not fit goes on under its own column.
fn columns(text: &mut String, timeline: &Timeline) {
    let name = |column: &str| clean::line(column).chars().take(16).collect::<String>();
    let width = timeline.columns.iter().map(|column| name(column).chars().count()).max();
    let width = width.unwrap_or_default();
    let _ = writeln!(text, "    {:>9}  who", "us");
    for entry in &timeline.entries {
        let first = format!("    {:>9}  {:<width$}  ", entry.at_us, name(&entry.column));
        let then = " ".repeat(first.chars().count());
        block(text, &entry.text, &first, &then);
    }
    let _ = write!(
        text,
        "\nGuest times are within {} us of the device's clock.\n\n",
        timeline.error_us
    );
}

fn unexpected(text: &mut String, document: &Document) {
    let campaign = &document.campaign;
    if !campaign.noticed.is_empty() {
        *text += "## What shadows noticed\n\n";
        for line in super::shadow(campaign).trim().lines() {
            block(text, line, "    ", "      ");
        }
        *text += "\n";
    }
    let findings = &campaign.findings;
    if !findings.is_empty() {
        *text += "## Unexpected\n\n";
        for finding in findings.iter().take(MOST_FINDINGS) {
            let where_ = format!("{}, {}, trial {}: ", finding.kernel, finding.arm, finding.trial);
            block(text, &(where_ + &finding.text), "    ", "      ");
        }
        if findings.len() > MOST_FINDINGS {
            let _ = writeln!(text, "    and {} more", findings.len() - MOST_FINDINGS);
        }
        *text += "\n";
    }
    let invalid = campaign.arms.iter().filter_map(|arm| {
        arm.trials.iter().find_map(|trial| match &trial.outcome {
            Outcome::Invalid { evidence } => Some((arm, evidence)),
            _ => None,
        })
    });
    let mut heading = "## Trials that tell nothing\n\n";
    for (arm, evidence) in invalid {
        *text += std::mem::take(&mut heading);
        let said = format!("{}, {}: {} of them: {evidence}", arm.kernel, arm.arm, arm.invalid());
        block(text, &said, "    ", "      ");
    }
    *text += if heading.is_empty() { "\n" } else { "" };
}

#[cfg(test)]
mod tests;
