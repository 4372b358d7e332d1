//! A schedule drawn the way a kernel changelog draws a race: one column a thread, time downwards.
//!
//! In: a trace. Out: text. Threads that take no step get no column.
//!
//! ```text
//!      A: mkwrite(0)                  B: fallocate(0..2)
//!   1                                 down_write(i_rwsem)
//!                                       [i_rwsem W]
//!   2  lookup es
//!        es[0]: - -> H
//! ```
//!
//! Under a step: what its thread holds from then on, in brackets, if that changed, and what the
//! step changed.

use std::fmt::Write;

use explorer::{Row, Trace};

/// Characters in a line, the step number included.
const WIDTH: usize = 110;
/// Characters of the step number and the blanks behind it.
const MARGIN: usize = 6;
/// Blanks between two columns.
const GAP: usize = 2;

/// Draws a trace.
pub(super) fn draw(trace: &Trace) -> String {
    let moving =
        |thread: usize| trace.rows.iter().any(|row| usize::from(row.step.thread) == thread);
    let threads: Vec<usize> = (0..trace.threads.len()).filter(|&thread| moving(thread)).collect();
    let columns = threads.len().max(1);
    let width = ((WIDTH - MARGIN) / columns).saturating_sub(GAP).max(16);
    let column_of = |row: &Row| {
        threads.iter().position(|&thread| thread == usize::from(row.step.thread)).unwrap_or(0)
    };

    let mut text = String::new();
    let heads: Vec<Vec<String>> = threads
        .iter()
        .map(|&thread| {
            let letter = char::from(b'A' + (thread % 26) as u8);
            wrap(&format!("{letter}: {}", trace.threads[thread]), width, "   ")
        })
        .collect();
    for line in 0..heads.iter().map(Vec::len).max().unwrap_or(0) {
        let cells = heads.iter().map(|head| head.get(line).map_or("", String::as_str));
        put(&mut text, "", cells, width);
    }
    let mut held: Vec<&str> = vec![""; columns];
    for (number, row) in (1..).zip(&trace.rows) {
        let column = column_of(row);
        let mut cell = wrap(&row.label, width, "    ");
        if row.held != held[column] {
            let now = if row.held.is_empty() { "nothing" } else { &row.held };
            cell.extend(wrap(&format!("  [{now}]"), width, "   "));
            held[column] = &row.held;
        }
        if !row.changed.is_empty() {
            cell.extend(wrap(&format!("  {}", row.changed), width, "    "));
        }
        for (at, line) in cell.iter().enumerate() {
            let margin = if at == 0 { format!("{number:>3}") } else { String::new() };
            let cells = (0..columns).map(|c| if c == column { line.as_str() } else { "" });
            put(&mut text, &margin, cells, width);
        }
    }
    text
}

/// One line: the margin and a cell for each column, without blanks at the end.
fn put<'a>(text: &mut String, margin: &str, cells: impl Iterator<Item = &'a str>, width: usize) {
    let mut line = format!("{margin:MARGIN$}");
    for cell in cells {
        // Writing to a string cannot fail.
        let _ = write!(line, "{cell:width$}{:GAP$}", "");
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

/// Breaks a text into lines of at most `width` characters where its words allow: each part that
/// ends in a semicolon on lines of its own, broken behind commas if it can be and at blanks if it
/// must. Continued lines are indented. Blanks that the text begins with are kept.
fn wrap(text: &str, width: usize, indent: &str) -> Vec<String> {
    let start = &text[..text.len() - text.trim_start().len()];
    let mut lines = Vec::new();
    for part in text.trim().split_inclusive("; ") {
        let mut line = start.to_owned();
        for item in part.trim_end().split_inclusive(", ") {
            let fits = |line: &str, piece: &str| {
                line.chars().count() + piece.trim_end().chars().count() <= width
            };
            if !fits(&line, item) && !line.trim().is_empty() {
                lines.push(std::mem::replace(&mut line, indent.to_owned()));
            }
            for word in item.split_inclusive(' ') {
                if !fits(&line, word) && !line.trim().is_empty() {
                    lines.push(std::mem::replace(&mut line, indent.to_owned()));
                }
                line.push_str(word);
            }
        }
        lines.push(line);
    }
    lines.into_iter().map(|line| line.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests;
