//! One file for a browser: no network, no script, light and dark, wide and narrow.
//!
//! In: [`Document`]s. Out: HTML.
//! Must not know: where a document comes from.
//!
//! Every text is escaped by the template, and what is not seen is made visible before
//! ([`super::clean`]). Should both fail, the page's own policy forbids scripts and the network.

mod chart;
mod picture;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::clean;
use super::document::{Document, Known};
use super::{amplifications, describe, probability, reason, shadow};
use crate::delays;
use crate::runner::Outcome;
use crate::stats::Amplification;

const STYLE: &str = include_str!("html/style.css");

/// Nothing is fetched, nothing is run.
pub(super) const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// A page with these campaigns, one after the other.
pub fn page(documents: &[Document]) -> String {
    let names: Vec<&str> = documents.iter().map(|document| document.plan.name.as_str()).collect();
    let mut title = names.clone();
    title.dedup();
    let title = format!("racegate: {}", clean::line(&title.join(", ")));
    framed(
        &title,
        &html! {
            @for document in documents { (campaign(document)) }
            (dose_response(documents))
            footer.soft { p { "Made by racegate " (env!("CARGO_PKG_VERSION")) "." } }
        },
    )
}

/// A page around `body`, with the policy and the style of all of them.
pub(super) fn framed(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="generator" content=(concat!("racegate ", env!("CARGO_PKG_VERSION")));
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    };
    page.into_string()
}

fn campaign(document: &Document) -> Markup {
    let text = |text: &str| clean::line(text);
    let plan = &document.plan;
    html! {
        main {
            h1 { (text(&plan.name)) }
            p { (text(&plan.summary)) }
            p.soft { (state(document)) }
            (verdicts(document))
            (rates(document))
            (latency(document))
            (timelines(document))
            (unexpected(document))
            (repeat(document))
        }
    }
}

/// When it ran, and how far.
fn state(document: &Document) -> Markup {
    let campaign = &document.campaign;
    let trials: usize = campaign.arms.iter().map(|arm| arm.trials.len()).sum();
    html! {
        "Campaign " (document.id) ", started " (super::date(document.started)) ", "
        @match document.finished {
            Some(at) => { "ended " (super::date(at)) ". " }
            None => { strong { "not finished: what follows is what was known by then. " } }
        }
        (trials)
        @if let Some(ordered) = document.trials_ordered() { " of " (ordered) }
        " trials on " (campaign.device.name()) "."
        @if let Some(shard) = document.ordered.and_then(|ordered| ordered.shard) {
            " Shard " (shard.index) " of " (shard.of) "."
        }
    }
}

fn verdicts(document: &Document) -> Markup {
    let campaign = &document.campaign;
    html! {
        h2 { "Verdicts" }
        @if campaign.verdicts.is_empty() { p { "None yet: no trial with the plan's rules is over." } }
        div.cards {
            @for (kernel, verdict, error) in &campaign.verdicts {
                div class={ "card " (verdict.name()) } {
                    span { (clean::line(kernel)) }
                    b { (verdict.name()) }
                    span.soft { "error probability " (probability(*error)) }
                    @if let Some(reason) = reason(campaign, kernel) {
                        p.soft { (clean::line(reason)) }
                    }
                    @match document.known(kernel) {
                        Known::Affected => { p.soft { "The plan knows it as affected." } }
                        Known::Fixed => { p.soft { "The plan knows it as fixed." } }
                        Known::Unknown => {}
                    }
                }
            }
        }
    }
}

fn rates(document: &Document) -> Markup {
    let campaign = &document.campaign;
    html! {
        h2 { "Rates" }
        div.wide { table {
            tr {
                th { "kernel" } th { "arm" } th { "hits" } th { "rate, 95 % interval" }
                th { "0 to 1" } th { "s per trial" }
            }
            @for arm in &campaign.arms {
                @let (tally, (low, high)) = (arm.tally(), arm.tally().interval95());
                tr {
                    td { (clean::line(&arm.kernel)) }
                    td { (clean::line(&arm.arm)) }
                    td.n {
                        (tally.hits) " of " (tally.trials)
                        @if arm.invalid() > 0 { br; span.soft { (arm.invalid()) " invalid" } }
                    }
                    td.n { (format!("{:.3}, {low:.3} to {high:.3}", tally.rate())) }
                    td.bar { (chart::interval(tally.rate(), low, high)) }
                    td.n { (format!("{:.2}", arm.seconds_per_trial())) }
                }
            }
        } }
        @for (kernel, arm, Amplification { ratio, ci95: (low, high) }) in amplifications(campaign) {
            p { (clean::line(kernel)) ": " (clean::line(&describe(arm, ratio, low, high))) }
        }
        p.soft {
            "Exact intervals (Clopper and Pearson). The arm none is the same workload, byte for byte, \
             on a disk that does nothing."
        }
    }
}

/// What rules asked for, and what the device gave.
fn latency(document: &Document) -> Markup {
    if document.delays.is_empty() {
        return html! {};
    }
    let rows: Vec<_> = document
        .delays
        .iter()
        .flat_map(|(kernel, arm, of)| {
            delays::summaries(of).into_iter().map(move |summary| (kernel, arm, summary))
        })
        .collect();
    html! {
        h2 { "Latency, requested against achieved" }
        div.wide { table {
            tr {
                th { "kernel" } th { "arm" } th { "rule" } th { "requests" } th { "requested" }
                th { "later by (median)" } th { "99 %" } th { "most" }
            }
            @for (kernel, arm, summary) in &rows {
                tr {
                    td { (clean::line(kernel)) } td { (clean::line(arm)) }
                    td { (clean::line(&summary.rule)) } td.n { (summary.count) }
                    td.n { (super::duration(summary.asked_ns)) }
                    @for late in summary.late_ns { td.n { (super::duration(late)) } }
                }
            }
        } }
        div.wide { (chart::latency(document)) }
        p.soft {
            "From a request's arrival at the device to when it was handed to storage, measured by the \
             device. Requests that were held, or let go for another reason, are left out."
        }
    }
}

fn timelines(document: &Document) -> Markup {
    html! {
        @for (kernel, timeline) in &document.campaign.timelines {
            h2 { "The first hit of " (clean::line(kernel)) }
            (picture::draw(timeline))
            details {
                summary { "As text" }
                pre { (clean::lines(&timeline.to_string())) }
            }
        }
    }
}

fn unexpected(document: &Document) -> Markup {
    let campaign = &document.campaign;
    let invalid: Vec<_> = campaign
        .arms
        .iter()
        .filter_map(|arm| {
            arm.trials.iter().find_map(|trial| match &trial.outcome {
                Outcome::Invalid { evidence } => Some((arm, trial.trial, evidence)),
                _ => None,
            })
        })
        .collect();
    let shadow = shadow(campaign);
    html! {
        @if !shadow.is_empty() {
            h2 { "What shadows noticed" }
            pre { (clean::lines(shadow.trim())) }
        }
        @if !campaign.findings.is_empty() {
            h2 { "Unexpected" }
            div.wide { table {
                tr { th { "kernel" } th { "arm" } th { "trial" } th { "what was said" } }
                @for finding in &campaign.findings {
                    tr {
                        td { (clean::line(&finding.kernel)) } td { (clean::line(&finding.arm)) }
                        td.n { (finding.trial) } td { code { (clean::line(&finding.text)) } }
                    }
                }
            } }
        }
        @if !invalid.is_empty() {
            h2 { "Trials that tell nothing" }
            @for (arm, trial, evidence) in &invalid {
                p {
                    (clean::line(&arm.kernel)) ", arm " (clean::line(&arm.arm)) ": " (arm.invalid())
                    ", the first is trial " (trial) ": " code { (clean::line(evidence)) }
                }
            }
        }
        @if !document.failures.is_empty() {
            h2 { "Guests that failed" }
            p.soft { "No results: each was booted anew, and the trial repeated." }
            div.wide { table {
                tr { th { "kernel" } th { "arm" } th { "trial" } th { "when" } th { "what" } }
                @for failure in &document.failures {
                    tr {
                        td { (clean::line(&failure.kernel)) } td { (clean::line(&failure.arm)) }
                        td.n { (failure.trial) } td.n { (super::date(failure.at)) }
                        td { code { (clean::line(&failure.text)) } }
                    }
                }
            } }
        }
    }
}

fn repeat(document: &Document) -> Markup {
    html! {
        h2 { "To repeat it" }
        p { "It was started as" }
        pre { (clean::line(&document.command)) }
        p { "and this runs the same trials again:" }
        pre { (clean::line(&super::again(document))) }
        details {
            summary { "The plan" }
            p.soft { "SHA-256 " code { (document.plan_sha256()) } }
            pre { (clean::lines(&document.plan.source)) }
        }
    }
}

/// Over all campaigns of the page, where there are several lengths of delay.
fn dose_response(documents: &[Document]) -> Markup {
    let mut plans: Vec<&str> = documents.iter().map(|document| &*document.plan.name).collect();
    plans.sort_unstable();
    plans.dedup();
    html! {
        @for plan in plans {
            @let of = documents.iter().filter(|document| document.plan.name == plan);
            @let doses: Vec<_> = of.flat_map(Document::doses).collect();
            @if let Some(plot) = chart::doses(&doses) {
                h2 { "Dose and response: " (clean::line(plan)) }
                (plot)
                p.soft {
                    "The share of trials that hit, by the length of the delay, with 95 % intervals \
                     (Wilson). On the left, without a delay."
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
