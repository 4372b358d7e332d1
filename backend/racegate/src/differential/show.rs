//! Progress and report of `racegate differential`, for people.

use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use campaign::differential::{Finding, Order, Report, Shape, ShapeReport};
use indicatif::{ProgressBar, ProgressStyle};

/// Progress: a bar on a terminal, else a line now and then.
pub(super) struct Meter {
    bar: ProgressBar,
    of: u64,
    lines: bool,
    said: u64,
}

impl Meter {
    pub(super) fn new(order: &Order) -> Meter {
        let of = order.lists.numbers().len() as u64;
        let bar = ProgressBar::new(of * order.shapes.len() as u64);
        // A constant; the default style serves if it were wrong.
        let style = "{bar:24} {pos}/{len} [{elapsed}, {eta} left] {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_message("booting");
        bar.enable_steady_tick(Duration::from_millis(200));
        Meter { bar, of, lines: !io::stderr().is_terminal(), said: 0 }
    }

    pub(super) fn update(&mut self, shape: Shape, done: u32, differing: u32) {
        let before = Shape::ALL.iter().position(|&known| known == shape).unwrap_or(0) as u64;
        let all = self.bar.length().unwrap_or(0);
        self.bar.set_position((before * self.of + u64::from(done)).min(all));
        let text = format!("{}: {done} lists, {differing} differ", shape.name());
        if self.lines && (u64::from(done) >= self.said + 200 || u64::from(done) == self.of) {
            self.said = if u64::from(done) == self.of { 0 } else { u64::from(done) };
            eprintln!("{text}");
        }
        self.bar.set_message(text);
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Prints the figures, and each shrunk list as a table.
pub(super) fn report(
    out: &mut impl Write,
    replay: &str,
    order: &Order,
    report: &Report,
) -> io::Result<()> {
    writeln!(
        out,
        "{} against the engine's {}, seed {}",
        order.kernel.name,
        order.variant.name(),
        order.seed
    )?;
    writeln!(out, "\ngeometry    lists  operations    told  known  differ  seconds")?;
    for shape in &report.shapes {
        let ShapeReport { geometry, lists, operations, told, known, differing, seconds, .. } =
            shape;
        writeln!(
            out,
            "{geometry:<10} {lists:>6} {operations:>11} {told:>7} {known:>6} {differing:>7} {seconds:>8.1}"
        )?;
    }
    writeln!(
        out,
        "\ntold: blocks for which the engine had to be told whether their extent is cached;"
    )?;
    writeln!(out, "known: lists that end in a bug that this kernel version is known to have.")?;
    for shape in &report.shapes {
        for finding in &shape.findings {
            table(out, replay, shape, finding)?;
        }
        if let Some(words) = &shape.e2fsck {
            writeln!(
                out,
                "\n{}: e2fsck is not content afterwards:\n{}",
                shape.geometry,
                words.trim_end()
            )?;
        }
    }
    Ok(())
}

fn table(
    out: &mut impl Write,
    replay: &str,
    shape: &ShapeReport,
    finding: &Finding,
) -> io::Result<()> {
    let map = if finding.map { ", the extent map asked for after each operation" } else { "" };
    writeln!(out, "\n{}, list {}, shrunk{map}:\n", shape.geometry, finding.list)?;
    let rows = &finding.failure.rows;
    let ops = rows.iter().map(|row| row.op.len()).max().unwrap_or(0).max("operation".len());
    let blocks = rows.iter().map(|row| row.expected.len()).max().unwrap_or(0).max("engine".len());
    writeln!(out, "   # {:<ops$}  {:<blocks$}  kernel", "operation", "engine")?;
    for (number, row) in rows.iter().enumerate() {
        let sign = if row.expected == row.seen { ' ' } else { '*' };
        writeln!(
            out,
            "{number:>4} {:<ops$}  {:<blocks$}  {} {sign}",
            row.op, row.expected, row.seen
        )?;
    }
    writeln!(
        out,
        "\nExtent status, a letter a block: W written, U unwritten, u unwritten and delayed,"
    )?;
    writeln!(out, "D delayed, H hole, . nothing. After operation {}:", finding.failure.step)?;
    for difference in &finding.failure.differences {
        let (expected, seen) = (&difference.expected, &difference.seen);
        writeln!(out, "  {}: engine {expected}, kernel {seen}", difference.field)?;
    }
    let (geometry, list) = (shape.geometry, finding.list);
    writeln!(out, "\nTo see it again:\n  {replay} --geometry {geometry} --list {list}")
}
