//! `racegate explore` as a program: its answers, its exit status, its refusals.
//!
//! Goal: a script can rely on the JSON keys and the exit status, and whatever is printed can be
//! replayed. Method: the real program on the founding bug and its fix.

use std::process::{Command, Output};

use serde_json::Value;

const BUGGY: [&str; 3] = ["mkwrite-fallocate", "--variant", "linux-5.10.223"];
const FIXED: [&str; 3] = ["mkwrite-fallocate", "--variant", "linux-5.10.262"];

fn explore(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_racegate"));
    command.arg("explore").args(arguments).output().expect("the program starts")
}

fn status(output: &Output) -> i32 {
    output.status.code().expect("not killed")
}

fn json(arguments: &[&str]) -> Value {
    let output = explore(&[arguments, &["--json", "-"]].concat());
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

/// Everything but the time that it took.
fn timeless(mut document: Value) -> Value {
    document["seconds"] = Value::Null;
    document
}

#[test]
fn the_founding_bug_is_found_and_its_fix_holds() {
    let found = explore(&BUGGY);
    assert_eq!(status(&found), 1);
    let text = String::from_utf8(found.stdout).unwrap();
    assert!(text.contains("es[0]: U -> D"), "{text}");
    assert!(text.contains("racegate explore --replay rgs1:"), "{text}");

    let document = json(&BUGGY);
    let violation = &document["violations"][0];
    assert!(violation["steps"].as_array().unwrap().len() <= 16);
    assert_eq!(violation["minimal"], true);
    assert_eq!(document["schema"], 1);
    assert_eq!(document["mutant"], Value::Null);

    assert_eq!(status(&explore(&FIXED)), 0);
    let document = json(&FIXED);
    assert_eq!(document["complete"], true);
    assert_eq!(document["violations"], Value::Array(vec![]));
    for count in ["states", "transitions", "interleavings"] {
        assert!(document[count].as_u64().unwrap() > 0, "{count}");
    }
    assert!(document["seconds"].is_f64());
}

#[test]
fn a_mutant_alone_runs_its_own_scenario() {
    let document = json(&["--mutant", "M01"]);
    assert_eq!(document["scenario"], "mkwrite-fallocate");
    assert_eq!(document["mutant"], "M01");
    assert_eq!(document["violations"].as_array().unwrap().len(), 1);
}

#[test]
fn every_strategy_finds_it_the_same_way_each_time_on_any_number_of_threads() {
    let schedule = |document: &Value| document["violations"][0]["schedule"].clone();
    let expected = schedule(&json(&BUGGY));
    for strategy in ["dfs", "por", "random", "pct"] {
        let with = |threads| {
            timeless(json(&[&BUGGY[..], &["--strategy", strategy, "--threads", threads]].concat()))
        };
        assert_eq!(with("2"), with("2"), "{strategy}");
        assert_eq!(schedule(&with("1")), expected, "{strategy}");
        assert_eq!(with("1"), with("3"), "{strategy}");
    }
}

#[test]
fn what_is_printed_replays_to_the_same_violation() {
    let document = json(&BUGGY);
    let violation = &document["violations"][0];
    let schedule = violation["schedule"].as_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let line = folder.path().join("schedule.txt");
    let arguments = [&BUGGY[..], &["--json", report.to_str().unwrap()]].concat();
    assert!(explore(&arguments).stdout.is_empty());
    std::fs::write(&line, format!("{schedule}\n")).unwrap();
    for source in [schedule, report.to_str().unwrap(), line.to_str().unwrap()] {
        assert_eq!(status(&explore(&["--replay", source])), 1);
        let replayed = json(&["--replay", source]);
        assert_eq!(replayed["scenario"], "mkwrite-fallocate");
        assert_eq!(replayed["variant"], "linux-5.10.223");
        for key in ["invariant", "steps", "schedule", "detail"] {
            assert_eq!(replayed["violations"][0][key], violation[key], "{key}");
        }
    }
    // A part of it breaks nothing.
    let shorter = schedule.rsplit_once('-').unwrap().0;
    assert_eq!(status(&explore(&["--replay", shorter])), 0);
}

#[test]
fn a_scenario_of_the_users_own_is_searched_and_replayed_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, title: &str| {
        let path = folder.path().join(name).to_str().unwrap().to_owned();
        let threads = r#"
            about = "two stores"
            file = { blocks = 1, size = 1, cached = [0] }
            fs = { bitmap-cached = false }
            [[thread]]
            ops = [{ op = "fallocate", at = 0, len = 1 }]
            [[thread]]
            ops = [{ op = "mkwrite", at = 0, data = 9 }]
        "#;
        std::fs::write(&path, format!("name = \"{title}\"\n{threads}")).unwrap();
        path
    };
    let own = file("own.toml", "own");
    let found = explore(&[&own, "--variant", "linux-5.10.223"]);
    assert_eq!(status(&found), 1);
    let text = String::from_utf8(found.stdout).unwrap();
    let again =
        text.lines().find_map(|line| line.trim().strip_prefix("racegate explore ")).unwrap();
    assert!(again.starts_with(&own), "{again}");
    assert_eq!(status(&explore(&again.split(' ').collect::<Vec<_>>())), 1);

    let refused = explore(&[&file("bad.toml", "a:b c")]);
    assert_eq!(status(&refused), 2);
    assert!(String::from_utf8(refused.stderr).unwrap().contains("`name` is"));
}

#[test]
fn a_bound_that_cut_the_search_is_reported() {
    let document = json(&[&FIXED[..], &["--steps", "5"]].concat());
    assert_eq!(document["complete"], false);
    assert_eq!(document["truncated"], serde_json::json!(["steps"]));
    let text = explore(&[&FIXED[..], &["--preemptions", "0"]].concat()).stdout;
    assert!(String::from_utf8(text).unwrap().contains("not complete: cut by preemptions"));
}

#[test]
fn mistakes_are_refused_with_what_exists() {
    let refusals: [(&[&str], &str); 9] = [
        (&["no-such"], "mkwrite-fallocate"),
        (&["mkwrite-fallocate", "--variant", "linux-2.6"], "linux-5.10.223"),
        (&["--mutant", "M99"], "M01"),
        (&[], "name a scenario or a mutant"),
        (&["mkwrite-fallocate", "--seed", "1"], "--strategy random or pct"),
        (&["mkwrite-fallocate", "--strategy", "por", "--preemptions", "1"], "preemption bound"),
        (&["--replay", "rgs9:a:b:c"], "this build reads `rgs1`"),
        (&["--replay", "rgs1:mkwrite-fallocate@linux-5.10.223:0000000000000000:A"], "changed"),
        (&["missing.toml"], "missing.toml"),
    ];
    for (arguments, expected) in refusals {
        let output = explore(arguments);
        let message = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(status(&output), 2, "{arguments:?}: {message}");
        assert!(message.contains(expected), "{arguments:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn the_list_names_all_that_can_be_named() {
    let text = String::from_utf8(explore(&["list"]).stdout).unwrap();
    for name in ["mkwrite-fallocate", "linux-7.3.4", "M01", "M45"] {
        assert!(text.contains(name), "{name}");
    }
}
