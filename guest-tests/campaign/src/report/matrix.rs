//! A table of many bugs on many kernels.
//!
//! In: a [`Matrix`], and which of its cells differ from what was expected. Out: text, JSON of schema
//! [`super::SCHEMA`], Markdown, HTML. Must not know: how a cell was decided.

use std::fmt::Write as _;

use maud::html;
use serde_json::{Value, json};

use super::html::framed;
use super::{clean, probability};
use crate::matrix::{Cell, Disagreement, Matrix};
use crate::verdict::Verdict;

/// The JSON report: `schema`, `seed`, `error`, `plans`, `kernels`, `passed_over`, `cells`, and
/// `disagreements`, which is null where nothing was expected.
pub fn json(matrix: &Matrix, differs: Option<&[Disagreement]>) -> Value {
    let plans =
        matrix.plans.iter().map(|(name, summary)| json!({"name": name, "summary": summary}));
    json!({
        "schema": super::SCHEMA,
        "seed": matrix.seed,
        "error": matrix.error,
        "plans": plans.collect::<Vec<_>>(),
        "kernels": matrix.kernels,
        "passed_over": matrix.passed_over,
        "cells": matrix.cells,
        "disagreements": differs,
    })
}

/// What a cell says, short: the verdict, hits and trials.
fn cell(cell: &Cell, differs: Option<&[Disagreement]>) -> String {
    let is = |d: &Disagreement| d.plan == cell.plan && d.kernel == cell.kernel;
    let mark = if differs.is_some_and(|all| all.iter().any(is)) { "!" } else { "" };
    let word = match cell.verdict {
        Verdict::Affected => "affected",
        Verdict::NotAffected => "-",
        Verdict::Inconclusive => "?",
    };
    format!("{mark}{word} {}/{}", cell.hits, cell.trials)
}

/// What was compared, in one line.
fn agreement(matrix: &Matrix, differs: &[Disagreement]) -> String {
    let told = matrix.cells.len();
    match differs.len() {
        0 => format!("All {told} cells say what the sources say."),
        count => format!("{count} of {told} cells do not say what the sources say:"),
    }
}

/// Every cell that is inconclusive, with its reason.
fn undecided(matrix: &Matrix) -> Vec<String> {
    let undecided = matrix.cells.iter().filter(|cell| cell.verdict == Verdict::Inconclusive);
    let line = |cell: &Cell| {
        let reason = cell.reason.as_deref().unwrap_or("no reason is known");
        clean::line(&format!("{} on {}: {reason}", cell.plan, cell.kernel))
    };
    undecided.map(line).collect()
}

/// Kernels of a series that are not in the table, with the reason.
fn passed_over(matrix: &Matrix) -> Vec<String> {
    let line = |(kernel, why): &(String, String)| clean::line(&format!("{kernel}: {why}"));
    matrix.passed_over.iter().map(line).collect()
}

/// How the table is to be read.
fn legend(matrix: &Matrix) -> String {
    let count = |verdict| matrix.cells.iter().filter(|cell| cell.verdict == verdict).count();
    format!(
        "{} affected, {} not affected (-), {} inconclusive (?); hits/trials; the probability that any \
         verdict is wrong is at most {}",
        count(Verdict::Affected),
        count(Verdict::NotAffected),
        count(Verdict::Inconclusive),
        probability(matrix.error)
    )
}

/// The report for people: a row for each kernel, a column for each plan.
pub fn text(matrix: &Matrix, differs: Option<&[Disagreement]>) -> String {
    let header = (1..=matrix.plans.len()).map(|number| format!("[{number}]"));
    let mut rows: Vec<Vec<String>> =
        vec![std::iter::once("kernel".to_owned()).chain(header).collect()];
    for kernel in &matrix.kernels {
        let of_plan = |(plan, _): &(String, String)| {
            matrix.cell(plan, kernel).map_or_else(String::new, |of| cell(of, differs))
        };
        let cells = matrix.plans.iter().map(of_plan);
        rows.push(std::iter::once(clean::line(kernel)).chain(cells).collect());
    }
    let columns = matrix.plans.len() + 1;
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String does not fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        text = text + line.trim_end() + "\n";
    }
    text += "\n";
    for (number, (plan, summary)) in matrix.plans.iter().enumerate() {
        let _ = writeln!(text, "[{}] {}: {}", number + 1, clean::line(plan), clean::line(summary));
    }
    let _ = writeln!(text, "\n{}", legend(matrix));
    list(&mut text, "Inconclusive:\n", "  ", &undecided(matrix));
    list(&mut text, "Not to be had, and passed over:\n", "  ", &passed_over(matrix));
    if let Some(differs) = differs {
        let _ = writeln!(text, "\n{}", agreement(matrix, differs));
        for differs in differs {
            let _ = writeln!(text, "  {}", clean::line(&differs.to_string()));
        }
    }
    text
}

/// A table in Markdown.
pub fn markdown(matrix: &Matrix, differs: Option<&[Disagreement]>) -> String {
    // A bar ends a cell of the table.
    let safe = |text: &str| clean::line(text).replace('|', "\\|").replace('`', "'");
    let mut text = "# racegate: bugs by kernel\n\n| kernel |".to_owned();
    for (plan, _) in &matrix.plans {
        // Writing to a String does not fail.
        let _ = write!(text, " `{}` |", safe(plan));
    }
    text = text + "\n|---|" + &"---|".repeat(matrix.plans.len()) + "\n";
    for kernel in &matrix.kernels {
        let _ = write!(text, "| {} |", safe(kernel));
        for (plan, _) in &matrix.plans {
            let of = matrix.cell(plan, kernel).map_or_else(String::new, |of| cell(of, differs));
            let _ = write!(text, " {of} |");
        }
        text += "\n";
    }
    let _ = writeln!(text, "\n{}.", legend(matrix));
    list(&mut text, "## Inconclusive\n\n", "    ", &undecided(matrix));
    list(&mut text, "## Not to be had, and passed over\n\n", "    ", &passed_over(matrix));
    if let Some(differs) = differs {
        let _ = writeln!(text, "\n{}\n", agreement(matrix, differs));
        for differs in differs {
            let _ = writeln!(text, "    {}", clean::line(&differs.to_string()));
        }
    }
    text
}

/// Lines under a heading; neither without lines.
fn list(text: &mut String, heading: &str, indent: &str, lines: &[String]) {
    if !lines.is_empty() {
        *text = std::mem::take(text) + "\n" + heading;
        text.extend(lines.iter().flat_map(|line| [indent, line, "\n"]));
    }
}

/// One HTML file that needs no network and runs nothing.
pub fn page(matrix: &Matrix, differs: Option<&[Disagreement]>) -> String {
    let differ = |plan: &str, kernel: &str| {
        let mut all = differs.unwrap_or_default().iter();
        all.find(|of| of.plan == plan && of.kernel == kernel)
    };
    let undecided = undecided(matrix);
    let body = html! {
        main {
            h1 { "Bugs by kernel" }
            p { (legend(matrix)) "." }
            @if let Some(differs) = differs { p { b { (agreement(matrix, differs)) } } }
            div.wide { table.matrix {
                tr {
                    th { "kernel" }
                    @for (plan, summary) in &matrix.plans {
                        th title=(clean::line(summary)) { (clean::line(plan)) }
                    }
                }
                @for kernel in &matrix.kernels {
                    tr {
                        td.n { (clean::line(kernel)) }
                        @for (plan, _) in &matrix.plans {
                            @if let Some(cell) = matrix.cell(plan, kernel) {
                                td.n {
                                    b class=(cell.verdict.name()) { (cell.verdict.name()) }
                                    br;
                                    span.soft { (cell.hits) " of " (cell.trials) }
                                    @if let Some(differ) = differ(plan, kernel) {
                                        br;
                                        span.soft { "sources: " (differ.expected.name()) }
                                    }
                                }
                            } @else { td {} }
                        }
                    }
                }
            } }
            @if !undecided.is_empty() {
                h2 { "Inconclusive" }
                @for line in &undecided { p { code { (line) } } }
            }
            @if let Some(differs) = differs.filter(|differs| !differs.is_empty()) {
                h2 { "Not what the sources say" }
                @for differ in differs { p { (clean::line(&differ.to_string())) } }
            }
            @if !matrix.passed_over.is_empty() {
                h2 { "Not to be had, and passed over" }
                @for line in passed_over(matrix) { p { code { (line) } } }
            }
            h2 { "The plans" }
            @for (plan, summary) in &matrix.plans {
                p { code { (clean::line(plan)) } ": " (clean::line(summary)) "." }
            }
            p.soft { "Seed " (matrix.seed) ". Made by racegate " (env!("CARGO_PKG_VERSION")) "." }
        }
    };
    framed("racegate: bugs by kernel", &body)
}

#[cfg(test)]
mod tests;
