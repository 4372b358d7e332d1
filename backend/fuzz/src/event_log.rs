//! Event logs: `racegate rules replay` and `racegate check` on any text.
//!
//! In: text. Out: nothing.

use pipeline::replay;
use pipeline::shadow::{Checker, Options};

use crate::recorded::PLAIN;

pub(crate) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    // An answer or an error, both are fine.
    let _ = replay(text.lines());
    let mut checker = Checker::new(Options { ordered: input.len().is_multiple_of(2) });
    if text.lines().all(|line| checker.line(line).is_ok()) {
        let _ = checker.finish();
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let lines: Vec<&str> = PLAIN.lines().collect();
    let short = |line: &&&str| line.len() < 3000;
    // The whole opening of a disk, then pieces of what happened.
    let opening: Vec<&str> = lines.iter().take(14).copied().collect();
    let mut seeds = vec![opening.join("\n").into_bytes(), lines[0].as_bytes().to_vec()];
    for piece in lines[1..].chunks(24).take(8) {
        let mut log = vec![lines[0]];
        log.extend(piece.iter().filter(short).copied());
        seeds.push(log.join("\n").into_bytes());
    }
    // With rules, which a replay carries out.
    let rules = r#"{"seq":0,"at":1,"event":"log","schema":1,"seed":7,"from_start":true,"rules":{"file":"r","text":"[[rule]]\nname='d'\nmatch={op='read'}\naction={delay={uniform=['1ms','9ms']}}\n"}}"#;
    let request = r#"{"seq":1,"at":2,"event":"request","id":0,"queue":0,"head":1,"op":"read","sector":8,"sectors":8}"#;
    let tick = r#"{"seq":2,"at":90000000,"event":"tick"}"#;
    seeds.push([rules, request, tick].join("\n").into_bytes());
    seeds
}
