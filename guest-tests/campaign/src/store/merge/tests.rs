use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::report::{self, Document};
use crate::runner::Finding;
use crate::store::Shard;

const PLAN: &str = r#"
name = "p"
summary = "s"
trials = 3
rate_if_affected = 0.8
[filesystem]
bytes = 67108864
[[arm]]
name = "rules"
[[arm]]
name = "none"
[workload]
finish = [{ read_value = { path = "/p", name = "after" } }]
[hit]
kernel_log = ["x"]
"#;

const KERNELS: [&str; 2] = ["debian-5.10.223", "debian-5.10.262"];

fn store(folder: &Path, name: &str) -> Arc<Store> {
    Arc::new(Store::open(&folder.join(name)).unwrap())
}

/// What a trial is depends on its number alone, as it does for a real one with a seed.
fn record(kernel: &str, arm: &str, trial: u32) -> TrialRecord {
    let outcome = match (kernel == KERNELS[0], arm, trial % 7) {
        (true, "rules", _) | (true, _, 3) => Outcome::Hit { evidence: format!("hit {trial}") },
        (_, _, 5) => Outcome::Invalid { evidence: "rule r did not fire".into() },
        _ => Outcome::Miss { evidence: "nothing".into() },
    };
    let (kernel, arm, seed) = (kernel.into(), arm.into(), u64::from(trial));
    TrialRecord { kernel, arm, trial, seed, outcome, seconds: 0.25 }
}

/// What the runner stores of a campaign, or of a part of it, killed after so many trials.
fn run(store: &Arc<Store>, trials: u32, shard: Option<Shard>, killed_after: usize) {
    let resumed = store.resume("settings", Some(7)).unwrap().map(|(running, _)| running);
    let running = resumed.unwrap_or_else(|| store.begin("p", 7, "settings", "racegate x").unwrap());
    running.ordered(&Ordered { trials, sure: None, shard }).unwrap();
    let earlier = running.earlier().unwrap();
    let mine = (0..trials).filter(|trial| shard.is_none_or(|shard| shard.has(*trial)));
    let all = mine.flat_map(|trial| {
        KERNELS.into_iter().flat_map(move |k| ["rules", "none"].map(|arm| record(k, arm, trial)))
    });
    for record in all.filter(|record| !earlier.trials.contains(record)).take(killed_after) {
        let result = running.trial(&record, None).unwrap();
        let (asked_ns, waited_ns) = (80, 80 + u64::from(record.trial));
        let delay = Delayed { rule: "r".into(), asked_ns, waited_ns };
        running.delays(result, &[delay]).unwrap();
        if record.trial == 3 && record.arm == "none" {
            let (kernel, arm) = (record.kernel, record.arm);
            running.finding(&Finding { kernel, arm, trial: 3, text: "BUG".into() }).unwrap();
        }
    }
    running.finish().unwrap();
}

fn document(store: &Store) -> Document {
    let summary = &store.campaigns().unwrap()[0];
    let stored = store.stored(summary.id).unwrap();
    let plan = crate::plan::Plan::parse(PLAN, "p.toml").unwrap();
    Document::new(stored, plan, crate::device::Device::Blk, &KERNELS)
}

/// Everything of a campaign that a report shows, but the order in which it was stored.
fn shown(store: &Store) -> (String, Vec<String>, Vec<String>) {
    let document = document(store);
    let mut delays: Vec<String> = document
        .delays
        .iter()
        .flat_map(|(k, a, of)| of.iter().map(move |d| format!("{k} {a} {d:?}")))
        .collect();
    delays.sort_unstable();
    let trials = document.campaign.arms.iter().flat_map(|arm| &arm.trials);
    let trials = trials.map(|trial| format!("{trial:?}")).collect();
    (report::text(&document.campaign), trials, delays)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// However a campaign is cut, in whatever order the parts come, and whether one of them was
    /// killed and resumed: the table is that of one run that nobody disturbed.
    #[test]
    fn parts_are_the_whole(
        of in 1u32..5, trials in 1u32..12, turn in 0usize..5, killed in 0usize..20,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let whole = store(folder.path(), "whole.db");
        run(&whole, trials, None, usize::MAX);
        let mut parts: Vec<_> = (1..=of).map(|index| {
            let part = store(folder.path(), &format!("{index}.db"));
            let shard = Some(Shard { index, of });
            run(&part, trials, shard, killed);
            run(&part, trials, shard, usize::MAX);
            part
        }).collect();
        parts.rotate_left(turn % of as usize);
        let into = store(folder.path(), "into.db");
        let merged = into.merge(&parts).unwrap();
        prop_assert_eq!(merged.sources.iter().map(|s| s.trials).sum::<usize>(), 4 * trials as usize);
        prop_assert_eq!(shown(&into), shown(&whole));
        // Again changes nothing.
        let again = into.merge(&parts).unwrap();
        prop_assert!(again.sources.iter().all(|source| source.trials == 0));
        prop_assert_eq!(shown(&into), shown(&whole));
        prop_assert_eq!(into.campaigns().unwrap().len(), 1);
    }
}

#[test]
fn campaigns_with_other_settings_stay_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (store(folder.path(), "1.db"), store(folder.path(), "2.db"));
    run(&one, 3, None, usize::MAX);
    other.begin("p", 8, "settings", "").unwrap().finish().unwrap();
    other.begin("p", 7, "other settings", "").unwrap().finish().unwrap();
    let into = store(folder.path(), "into.db");
    let merged = into.merge(&[one, other]).unwrap();
    assert_eq!(merged.campaigns.len(), 3);
    assert_eq!(into.campaigns().unwrap().len(), 3);
}

#[test]
fn what_is_no_shard_of_it_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (store(folder.path(), "1.db"), store(folder.path(), "2.db"));
    run(&one, 3, None, usize::MAX);
    let running = other.begin("p", 7, "settings", "").unwrap();
    let outcome = Outcome::Miss { evidence: "another".into() };
    running.trial(&TrialRecord { outcome, ..record(KERNELS[0], "rules", 0) }, None).unwrap();
    let into = store(folder.path(), "into.db");
    let error = into.merge(&[Arc::clone(&one), other]).unwrap_err();
    assert!(matches!(error, StoreError::Conflict { trial: 0, .. }), "{error}");
    assert!(matches!(one.merge(&[Arc::clone(&one)]), Err(StoreError::Itself { .. })));
}

#[test]
fn a_verdict_on_a_part_is_none_on_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let part = store(folder.path(), "1.db");
    run(&part, 8, Some(Shard { index: 1, of: 2 }), usize::MAX);
    let mut campaign = document(&part).campaign;
    campaign.verdicts = vec![(KERNELS[0].into(), crate::verdict::Verdict::NotAffected, 0.0)];
    part.resume("settings", None).unwrap().unwrap().0.conclude(&campaign).unwrap();
    assert_eq!(document(&part).campaign.verdicts[0], campaign.verdicts[0], "as it was given");
    let into = store(folder.path(), "into.db");
    into.merge(&[part]).unwrap();
    let verdict = &document(&into).campaign.verdicts[0];
    assert_eq!((&*verdict.0, verdict.1), (KERNELS[0], crate::verdict::Verdict::Affected));
    let ordered = document(&into).ordered.unwrap();
    assert_eq!((ordered.trials, ordered.shard), (8, None));
}
