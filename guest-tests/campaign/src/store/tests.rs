use std::sync::Barrier;

use super::*;
use crate::link::ClockMap;

fn record(kernel: &str, trial: u32, outcome: Outcome) -> TrialRecord {
    TrialRecord {
        kernel: kernel.into(),
        arm: "rules".into(),
        trial,
        seed: u64::MAX - u64::from(trial),
        outcome,
        seconds: 0.25,
    }
}

fn hit() -> Outcome {
    Outcome::Hit { evidence: "kernel: not cleared!".into() }
}

#[test]
fn what_was_stored_is_there_when_the_file_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/results.db");
    let timeline = {
        let clock = ClockMap { offset_ns: 0, error_ns: 1000 };
        let threads = std::iter::once("storer".to_owned());
        Timeline::new(threads, &agent::wire::TrialResult::default(), &[], clock)
    };
    let id = {
        let store = Arc::new(Store::open(&path).unwrap());
        let running = store.begin("plan", u64::MAX, "{\"a\":1}", "racegate x").unwrap();
        let id = running.trial(&record("k1", 0, hit()), Some(&timeline)).unwrap();
        let miss = Outcome::Miss { evidence: "kernel log: nothing".into() };
        running.trial(&record("k2", 0, miss), None).unwrap();
        let invalid = Outcome::Invalid { evidence: "rule r did not fire".into() };
        running.trial(&record("k2", 1, invalid), None).unwrap();
        running.failure("k2", "rules", 1, "hung").unwrap();
        let finding =
            Finding { kernel: "k2".into(), arm: "rules".into(), trial: 1, text: "BUG:".into() };
        running.finding(&finding).unwrap();
        id
        // No goodbye: as after a crash.
    };
    let store = Arc::new(Store::open(&path).unwrap());
    let (running, seed) = store.resume("{\"a\":1}", None).unwrap().unwrap();
    assert_eq!(seed, u64::MAX);
    let earlier = running.earlier().unwrap();
    assert_eq!(earlier.trials.len(), 3);
    assert_eq!(earlier.trials[0].outcome, hit());
    assert_eq!(earlier.trials[2].seed, u64::MAX - 1);
    assert!(matches!(earlier.trials[2].outcome, Outcome::Invalid { .. }));
    assert_eq!(earlier.timelines, [("k1".to_owned(), timeline)]);
    assert_eq!(earlier.findings[0].text, "BUG:");
    let summary = &store.campaigns().unwrap()[0];
    assert_eq!((summary.trials, summary.hits, summary.first_hit), (3, 1, Some(id)));
    assert!(!summary.finished);
    running.finish().unwrap();
    assert!(store.campaigns().unwrap()[0].finished);
    let result = store.result(id).unwrap();
    assert_eq!((result.seed, result.record.kernel.as_str()), (u64::MAX, "k1"));
    assert!(matches!(store.result(id + 100), Err(StoreError::NoResult { .. })));
}

#[test]
fn a_campaign_is_resumed_only_with_equal_settings_and_seed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&folder.path().join("results.db")).unwrap());
    let first = store.begin("plan", 1, "a", "").unwrap().campaign();
    let second = store.begin("plan", 2, "a", "").unwrap().campaign();
    let found = |settings, seed| {
        store.resume(settings, seed).unwrap().map(|(running, seed)| (running.campaign(), seed))
    };
    assert_eq!(found("a", None), Some((second, 2)));
    assert_eq!(found("a", Some(1)), Some((first, 1)));
    assert_eq!(found("a", Some(3)), None);
    assert_eq!(found("b", None), None);
}

#[test]
fn a_trial_is_stored_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&folder.path().join("results.db")).unwrap());
    let running = store.begin("plan", 1, "a", "").unwrap();
    running.trial(&record("k", 0, hit()), None).unwrap();
    assert!(matches!(running.trial(&record("k", 0, hit()), None), Err(StoreError::Sql { .. })));
}

#[test]
fn several_may_make_and_use_one_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.db");
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for number in 0..4 {
            let (path, barrier) = (&path, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let store = Arc::new(Store::open(path).unwrap());
                let running = store.begin("plan", number, "a", "").unwrap();
                for trial in 0..20 {
                    running.trial(&record("k", trial, hit()), None).unwrap();
                }
            });
        }
    });
    let store = Store::open(&path).unwrap();
    let campaigns = store.campaigns().unwrap();
    assert_eq!(campaigns.iter().map(|campaign| campaign.trials).sum::<u64>(), 80);
}

#[test]
fn what_is_no_database_of_ours_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    fs::write(&text, "not a database, but long enough to look at: ".repeat(50)).unwrap();
    assert!(matches!(Store::open(&text), Err(StoreError::Sql { .. })));
    let newer = folder.path().join("newer");
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = Store::open(&newer).unwrap_err();
    assert!(matches!(error, StoreError::Version { found: 99, .. }), "{error}");
}
