use super::*;
use explorer::{OneWorker, Report};

/// The first violation among the orders that a disk can bring about.
fn steered(scenario: &str, variant: &str) -> (Picked, Report) {
    let picked = Picked::new(Some(scenario), Some(variant), None).unwrap();
    let options = Options { strategy: Strategy::Exhaustive, ..Options::default() };
    let go_on = &mut |_| ControlFlow::Continue(());
    let report = explorer::explore(&Steered(&picked.model), &options, &OneWorker, go_on).unwrap();
    (picked, report)
}

fn written(scenario: &str, variant: &str) -> anyhow::Result<String> {
    let (picked, report) = steered(scenario, variant);
    let found = report.violations.first().context("no violation")?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("compiled.toml");
    write(&path, &picked, &found.schedule, &found.name, &Threads::new(Some(1)))?;
    Ok(fs::read_to_string(path)?)
}

#[test]
fn the_founding_bug_is_one_read_that_is_held_until_the_store_waits() {
    let text = written("mkwrite-fallocate", "linux-5.10.223").unwrap();
    let plan = Plan::parse(&text, "compiled.toml").unwrap();
    assert_eq!(plan.kernels.affected, ["debian-5.10.223"]);
    assert!(plan.kernels.fixed.contains(&"debian-5.10.262".to_owned()), "{:?}", plan.kernels);
    let rules: Vec<&str> = plan.arms[0].rules.names().collect();
    assert_eq!(rules, ["bitmap-read-1"]);
    assert_eq!(plan.hit.shadow, ["A4"]);
    for part in [
        "until b waits in ext4_da_get_block_prep",
        "{ await = { signal = \"held:bitmap-read-1\", limit_ms = 20000 } },\n    { store = ",
        "within = [\"ext4_da_get_block_prep\"]",
        "{ mark = { name = \"go-bitmap-read-1\" } }",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn a_log_copy_is_held_until_two_threads_wait_behind_it() {
    let text = written("mkwrite-fallocate-shadow", "linux-5.10.223").unwrap();
    let rule = "class = \"journal_copy\", of = \"block_bitmap\", nth = 1";
    let waits = "within = [\"jbd2_journal_get_write_access\"]";
    assert!(text.contains(rule) && text.contains(waits), "{text}");
}

#[test]
fn one_thread_alone_needs_nothing_held_and_a_failed_write_is_failed() {
    let text = written("truncate-inline", "linux-5.10.262").unwrap();
    assert!(text.contains("Nothing is held") && !text.contains("[[rule]]"), "{text}");
    let text = written("writeback-eio", "linux-6.1.192").unwrap();
    assert!(text.contains("fail = \"EIO\""), "{text}");
}

#[test]
fn what_no_disk_can_do_is_refused_with_the_step() {
    // The shortest counterexample of all stops the store where it waits for nothing.
    let (picked, _) = steered("mkwrite-fallocate-shadow", "linux-5.10.223");
    let options = Options { strategy: Strategy::Exhaustive, ..Options::default() };
    let go_on = &mut |_| ControlFlow::Continue(());
    let report = explorer::explore(&picked.model, &options, &OneWorker, go_on).unwrap();
    let found = &report.violations[0];
    let path = Path::new("never-written.toml");
    let error = write(path, &picked, &found.schedule, &found.name, &Threads::new(Some(1)));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("no I/O to hold") && error.contains("step 6 (A)"), "{error}");
    assert!(!path.exists());
    // In this one no order helps: a read must slip in between two steps that wait for nothing.
    let (_, report) = steered("punch-read", "linux-5.10.262");
    assert!(report.violations.is_empty() && report.coverage.truncated.is_empty());
}

/// A steered order is an order of the model: leaving steps out invents nothing.
#[test]
fn every_order_that_is_found_breaks_the_whole_model_too() {
    let mut found = 0;
    for scenario in delalloc::scenarios() {
        let (picked, report) = steered(&scenario.name, "linux-5.10.223");
        for violation in &report.violations {
            let trace = replay(&picked.model, &violation.schedule).unwrap();
            let explorer::Outcome::Violation { name, .. } = trace.outcome else {
                panic!("{}: {}", scenario.name, violation.schedule);
            };
            assert_eq!(name, violation.name);
            found += 1;
        }
    }
    assert!(found >= 5, "only {found}");
}
