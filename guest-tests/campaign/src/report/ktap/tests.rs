use super::super::fixture::{calm, hostile};
use super::*;

/// What a parser makes of a report: a result by nesting level, number and name, with its directive.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    level: usize,
    ok: bool,
    number: usize,
    name: String,
    directive: String,
}

/// One level of tests that is being read.
struct Level {
    planned: usize,
    seen: usize,
    failed: bool,
}

/// Reads KTAP strictly by its grammar (kernel: `Documentation/dev-tools/ktap.rst`): a version line
/// and a plan open a level, two spaces indent it, results are numbered from 1, as many as planned, and
/// a test fails if one of its subtests does. Lines of no known kind are a mistake here: a report has
/// none.
fn parse(text: &str) -> Result<Vec<Seen>, String> {
    const DIRECTIVES: [&str; 5] = ["SKIP", "TODO", "XFAIL", "TIMEOUT", "ERROR"];
    let (mut levels, mut seen): (Vec<Level>, Vec<Seen>) = (Vec::new(), Vec::new());
    // A level that has ended, and whether one of its tests failed.
    let mut ended: Option<(usize, bool)> = None;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let indent = line.chars().take_while(|c| *c == ' ').count();
        let (depth, line) = (indent / 2, line.trim_start_matches(' '));
        if indent % 2 == 1 {
            return Err(format!("odd indentation: {line}"));
        }
        if line == "KTAP version 1" {
            if depth != levels.len() {
                return Err("a version line that is not one level deeper".to_owned());
            }
            let plan = lines.next().unwrap_or_default().trim_start_matches(' ');
            let planned = plan.strip_prefix("1..").and_then(|count| count.parse().ok());
            let planned = planned.ok_or_else(|| format!("no plan: {plan}"))?;
            levels.push(Level { planned, seen: 0, failed: false });
        } else if let Some((ok, rest)) = line
            .strip_prefix("not ok ")
            .map(|rest| (false, rest))
            .or_else(|| line.strip_prefix("ok ").map(|rest| (true, rest)))
        {
            while levels.len() > depth + 1 {
                let level = levels.pop().ok_or("no level")?;
                if level.seen != level.planned {
                    return Err(format!("{} of {} results", level.seen, level.planned));
                }
                ended = Some((levels.len() - 1, level.failed));
            }
            let level = levels.get_mut(depth).ok_or_else(|| format!("before its plan: {line}"))?;
            let (result, after) = rest.split_once(" # ").unwrap_or((rest, ""));
            let (number, name) = result.split_once(' ').unwrap_or((result, ""));
            level.seen += 1;
            if number.parse() != Ok(level.seen) || name.contains('#') {
                return Err(format!("a result out of order, or no name: {line}"));
            }
            let word = after.split(' ').next().unwrap_or_default();
            let directive = if DIRECTIVES.contains(&word) { word } else { "" };
            if matches!(directive, "TIMEOUT" | "ERROR") && ok {
                return Err(format!("ok in spite of {directive}"));
            }
            let failed = !ok && !matches!(directive, "SKIP" | "XFAIL" | "TODO");
            level.failed |= failed;
            if let Some((of, any)) = ended.take()
                && of == depth
                && any == ok
            {
                return Err("a test must fail if, and only if, a subtest does".to_owned());
            }
            let (number, name, directive) = (level.seen, name.to_owned(), directive.to_owned());
            seen.push(Seen { level: depth, ok, number, name, directive });
        } else if !line.starts_with("# ") {
            return Err(format!("a line of no known kind: {line}"));
        }
    }
    match &levels[..] {
        [top] if top.seen == top.planned => Ok(seen),
        _ => Err("it ends before its plan".to_owned()),
    }
}

#[test]
fn the_report() {
    insta::assert_snapshot!(report(&[calm()]));
}

#[test]
fn the_report_is_ktap() {
    let parsed = parse(&report(&[calm(), calm()])).unwrap();
    let names: Vec<_> = parsed.iter().map(|s| (s.level, s.ok, &*s.name, &*s.directive)).collect();
    let of_one = [
        (1, false, "debian-5.10.223", "XFAIL"),
        (1, true, "debian-5.10.262", ""),
        (1, false, "debian-6.1.200", "ERROR"),
        (0, false, "mkwrite-fallocate", ""),
    ];
    assert_eq!(names, [of_one, of_one].concat());
}

#[test]
fn a_guest_cannot_forge_a_result() {
    let numbers = |text: &str| {
        let parsed = parse(text).unwrap();
        parsed.into_iter().map(|s| (s.level, s.number, s.ok, s.name)).collect::<Vec<_>>()
    };
    let (calm, evil) = (report(&[calm()]), report(&[hostile()]));
    assert_eq!(numbers(&calm), numbers(&evil));
    assert!(evil.contains("alert(1)"), "it is shown");
}

#[test]
fn the_parser_sees_mistakes() {
    let good = report(&[calm()]);
    for (from, to) in [
        ("1..3", "1..4"),
        ("  ok 2", "  ok 3"),
        ("  ok 2", "  okay 2"),
        ("KTAP version 1\n1..1\n", "1..1\n"),
        ("not ok 1 mkwrite", "ok 1 mkwrite"),
        ("  # hits", "  hits"),
        ("not ok 3 debian-6.1.200 # ERROR", "ok 3 debian-6.1.200 # ERROR"),
    ] {
        assert!(good.contains(from), "{from}");
        assert!(parse(&good.replacen(from, to, 1)).is_err(), "{from} -> {to}");
    }
}
