//! KTAP, version 1 (kernel: `Documentation/dev-tools/ktap.rst`), as kselftest and KernelCI read it.
//!
//! In: [`Document`]s. Out: text. One test for each campaign, in it one for each kernel: whether it is
//! free of the bug.
//! Must not know: where a document comes from.

use std::fmt::Write as _;

use super::answer::{Answer, Case, cases};
use super::clean;
use super::document::Document;

/// The report.
pub fn report(documents: &[Document]) -> String {
    let mut text = format!("KTAP version 1\n1..{}\n", documents.len());
    for (number, document) in documents.iter().enumerate() {
        let cases = cases(document);
        let _ = write!(text, "  KTAP version 1\n  1..{}\n", cases.len());
        for (number, case) in cases.iter().enumerate() {
            one(&mut text, number + 1, case);
        }
        // A test fails if one of those in it does.
        let bad = cases
            .iter()
            .any(|case| matches!(case.answer, Answer::Bad { .. } | Answer::None { .. }));
        let result = if bad { "not ok" } else { "ok" };
        // Without any case nothing was asked.
        let skip = if cases.is_empty() { " # SKIP no trial is over" } else { "" };
        let _ = writeln!(text, "{result} {} {}{skip}", number + 1, name(&document.plan.name));
    }
    text
}

fn one(text: &mut String, number: usize, case: &Case) {
    for (property, value) in &case.properties {
        let _ = writeln!(text, "  # {property}: {}", clean::line(value));
    }
    for line in &case.details {
        let _ = writeln!(text, "  # {}", clean::line(line));
    }
    let (result, directive) = match &case.answer {
        Answer::Good => ("ok", ""),
        Answer::ExpectedBad => ("not ok", "XFAIL "),
        Answer::Bad { .. } => ("not ok", ""),
        Answer::None { .. } => ("not ok", "ERROR "),
    };
    let message = clean::line(&case.message());
    let _ = writeln!(text, "  {result} {number} {} # {directive}{message}", name(&case.kernel));
}

/// A description may have anything but a number sign.
fn name(name: &str) -> String {
    clean::line(name).replace('#', "_")
}

#[cfg(test)]
mod tests;
