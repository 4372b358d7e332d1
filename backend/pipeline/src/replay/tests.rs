//! Goal: a log replays to the same decisions, and a log that was altered does not. Method: the
//! log of the schema test; every line altered, left out or repeated in turn, and each must be
//! noticed.

use super::{ReplayError, replay};
use crate::event::Event;
use crate::event::tests::log;

fn differences(lines: &[String]) -> usize {
    match replay(lines.iter().map(String::as_str)) {
        Ok(found) => found.differences.len(),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_log_replays() {
    let log = log();
    let found = replay(log.iter().map(String::as_str)).expect("a whole log");
    assert_eq!(found.differences, []);
    assert_eq!(found.inputs, 14);
    // All but the header and the notes.
    let events = log.iter().map(|line| serde_json::from_str::<Event>(line).unwrap());
    let notes = events.filter(|event| event.what.is_note()).count();
    assert_eq!(found.agreed as usize, log.len() - 1 - notes);
}

/// Canaries: what was altered, and must be noticed.
#[test]
fn an_altered_log_is_noticed() {
    let log = log();
    for (from, to) in [
        (r#""seed":7"#, r#""seed":8"#),
        (r#""verdict":"pass""#, r#""verdict":{"fail":{"errno":5}}"#),
        (r#""matched":1,"#, r#""matched":2,"#),
        (r#""delay":{"ns":7"#, r#""delay":{"ns":6"#),
        (r#""cause":"due""#, r#""cause":"limit""#),
        (r#""rule":"fail""#, r#""rule":"pass""#),
        ("held:hold", "released:hold"),
        (r#""class":"block_bitmap""#, r#""class":"inode_bitmap""#),
        ("nth = 1 }", "nth = 2 }"),
        (r#""at":100,"event":"decision""#, r#""at":101,"event":"decision""#),
        (r#""waited_ns":900"#, r#""waited_ns":901"#),
    ] {
        let altered: Vec<String> = log.iter().map(|line| line.replacen(from, to, 1)).collect();
        assert_ne!(altered, log, "{from} is not in the log");
        assert!(differences(&altered) > 0, "{from} to {to}");
    }
}

#[test]
fn a_missing_or_repeated_line_is_noticed() {
    let log = log();
    for (index, line) in log.iter().enumerate().skip(1) {
        // Notes decide nothing, and neither does an input that finds nothing to do.
        let decides = ["request", "decision", "released", "armed", "told_agent"];
        if !decides.iter().any(|kind| line.contains(&format!(r#""event":"{kind}""#))) {
            continue;
        }
        // Request 5 matched no rule: the rest is the same without it, or with two of it.
        let matters = !line.contains(r#""id":5"#);
        let mut less = log.clone();
        less.remove(index);
        assert_eq!(differences(&less) > 0, matters, "without {line}");
        let mut more = log.clone();
        more.insert(index, line.clone());
        assert_eq!(differences(&more) > 0, matters, "twice {line}");
    }
}

#[test]
fn what_cannot_be_replayed_says_why() {
    let log = log();
    let error = |lines: &[&str]| replay(lines.iter().copied()).expect_err("no log").to_string();
    let seen = [
        error(&[]),
        error(&["{}"]),
        error(&[&log[1]]),
        error(&[&log[0].replace("\"schema\":1", "\"schema\":2")]),
        error(&[&log[0].replace("true", "false")]),
        error(&[&log[0], &log[1].replace("[[rule]]", "[[role]]")]),
        error(&[&log[0], &log[3].replace("\"group\":3", "\"inode\":3")]),
    ];
    insta::assert_snapshot!(seen.join("\n"));
    assert!(matches!(replay([]), Err(ReplayError::NoHeader)));
}
