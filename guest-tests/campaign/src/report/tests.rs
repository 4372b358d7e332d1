use super::*;
use crate::link::ClockMap;
use crate::runner::{Finding, TrialRecord};
use crate::timeline::Timeline;
use crate::verdict::{self, Verdict};

fn arm(kernel: &str, name: &str, outcomes: &str) -> ArmOutcome {
    let trials = outcomes.chars().enumerate().map(|(trial, outcome)| TrialRecord {
        kernel: kernel.into(),
        arm: name.into(),
        trial: trial as u32,
        seed: 1,
        outcome: match outcome {
            'h' => Outcome::Hit { evidence: "kernel: not cleared!".into() },
            'm' => Outcome::Miss { evidence: "kernel log: nothing".into() },
            _ => Outcome::Invalid { evidence: "rule r did not fire".into() },
        },
        seconds: 0.5,
    });
    ArmOutcome { kernel: kernel.into(), arm: name.into(), trials: trials.collect() }
}

fn campaign() -> Campaign {
    let arms = vec![
        arm("debian-5.10.223", "rules", &"h".repeat(50)),
        arm("debian-5.10.223", "none", &("h".to_owned() + &"m".repeat(49))),
        arm("debian-5.10.262", "rules", &("?".to_owned() + &"m".repeat(49))),
    ];
    let verdicts = [0, 2]
        .map(|i: usize| {
            let (verdict, error) = verdict::judge(arms[i].tally(), arms[i].invalid(), 0.8);
            (arms[i].kernel.clone(), verdict, error)
        })
        .to_vec();
    let clock = ClockMap { offset_ns: 0, error_ns: 60_000 };
    let threads = std::iter::once("storer".to_owned());
    let timeline = Timeline::new(threads, &agent::wire::TrialResult::default(), &[], clock);
    Campaign {
        plan: "mkwrite-fallocate".into(),
        device: crate::device::Device::Blk,
        seed: 7,
        arms,
        verdicts,
        timelines: vec![("debian-5.10.223".into(), timeline)],
        noticed: Vec::new(),
        watched: Vec::new(),
        guests: Vec::new(),
        reasons: Vec::new(),
        findings: vec![Finding {
            kernel: "debian-5.10.262".into(),
            arm: "rules".into(),
            trial: 3,
            text: "WARNING: CPU: 0 PID: 1".into(),
        }],
    }
}

#[test]
fn the_text_report() {
    insta::assert_snapshot!(text(&campaign()));
}

#[test]
fn the_json_report_has_the_keys_that_scripts_rely_on() {
    let report = json(&campaign());
    assert_eq!(report["schema"], 1);
    assert_eq!(report["seed"], 7);
    let arm = &report["arms"][2];
    for (key, value) in [
        ("plan", json!("mkwrite-fallocate")),
        ("kernel", json!("debian-5.10.262")),
        ("device", json!("blk")),
        ("arm", json!("rules")),
        ("trials", json!(50)),
        ("hits", json!(0)),
        ("invalid", json!(1)),
        ("rate", json!(0.0)),
        ("seconds_per_trial", json!(0.5)),
    ] {
        assert_eq!(arm[key], value, "{key}");
    }
    assert_eq!(arm["ci95"][0], 0.0);
    assert!(arm["ci95"][1].as_f64().unwrap() > 0.07);
    assert_eq!(report["verdicts"][0]["verdict"], json!(Verdict::Affected.name()));
    assert_eq!(report["verdicts"][1]["verdict"], "not-affected");
    assert!(report["verdicts"][1]["error"].as_f64().unwrap() < 0.01);
    assert_eq!(report["findings"][0]["trial"], 3);
}

#[test]
fn the_line_that_repeats_a_campaign_names_no_places() {
    let mut document = fixture::calm();
    let mut again = |command: &str| {
        document.command = command.to_owned();
        super::again(&document)
    };
    let line = "racegate campaign run p --kernel 'a b' --db 'x y.db' --resume --html=h --markdown --shadow";
    assert_eq!(again(line), "racegate campaign run p --kernel 'a b' --shadow --seed 7");
    let line = "racegate campaign run p --shard 1/3 --seed 9 --json - --ktap";
    assert_eq!(again(line), "racegate campaign run p --seed 9");
    document.ordered = document.ordered.map(|ordered| crate::store::Ordered {
        shard: Some(crate::store::Shard { index: 1, of: 3 }),
        ..ordered
    });
    document.command = line.to_owned();
    assert_eq!(super::again(&document), "racegate campaign run p --shard 1/3 --seed 9");
}
