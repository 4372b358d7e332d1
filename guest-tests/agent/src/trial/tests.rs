//! The interpreter as far as it goes without a guest: an ordinary user on a temporary directory.

use agent::wire::{Thread, Workload};

use super::*;

#[derive(Default)]
struct Told(Mutex<Vec<ToHost>>);

impl Host for Told {
    fn tell(&self, message: &ToHost) -> anyhow::Result<()> {
        self.0.lock().unwrap().push(message.clone());
        Ok(())
    }
}

struct Ground {
    stage: Stage,
    told: Arc<Told>,
    dir: tempfile::TempDir,
}

fn ground() -> Ground {
    let dir = tempfile::tempdir().unwrap();
    let told = Arc::new(Told::default());
    let stage = Stage {
        root: dir.path().to_owned(),
        disk: "vdz".into(),
        meeting: Arc::default(),
        host: Arc::clone(&told) as Arc<dyn Host>,
        kernel_log: None,
        tracer: None,
    };
    Ground { stage, told, dir }
}

fn run(ground: &mut Ground, workload: Workload) -> TrialResult {
    workload.check().unwrap();
    run_trial(&mut ground.stage, &Trial { trial: 7, seed: 11, workload })
}

fn ops(json: &str) -> Vec<Op> {
    serde_json::from_str(json).unwrap()
}

fn thread(name: &str, json: &str) -> Thread {
    Thread { name: name.into(), ops: ops(json), ..Thread::default() }
}

#[test]
fn the_raced_operations_do_what_they_say() {
    let mut ground = ground();
    let result = run(
        &mut ground,
        Workload {
            setup: ops(r#"[{"open": {"file": "raced", "path": "raced", "create": true}},
                    {"truncate": {"file": "raced", "bytes": 16384}},
                    {"map": {"file": "raced", "bytes": 16384}}]"#),
            threads: vec![
                thread(
                    "allocator",
                    r#"[{"barrier": {"name": "go"}},
                    {"fallocate": {"file": "raced", "bytes": 4096}}]"#,
                ),
                thread(
                    "storer",
                    r#"[{"barrier": {"name": "go"}},
                    {"delay": {"min_us": 100, "max_us": 200}},
                    {"store": {"file": "raced", "offset": 5, "value": 165}},
                    {"mark": {"name": "stored"}}]"#,
                ),
            ],
            finish: ops(r#"[{"fsync": {"file": "raced"}}, {"syncfs": {}},
                    {"read": {"file": "raced", "offset": 5, "bytes": 1, "expect": 165}},
                    {"read": {"file": "raced", "offset": 6, "bytes": 4000, "expect": 0}}]"#),
            cleanup: ops(r#"[{"close": {"file": "raced"}}, {"unlink": {"path": "raced"}}]"#),
        },
    );
    assert_eq!(result.error, None);
    assert_eq!(result.trial, 7);
    assert_eq!(result.steps.len(), 3 + 2 + 4 + 4 + 2);
    assert!(result.steps.is_sorted_by_key(|step| step.end_ns));
    let step = |op: &str| result.steps.iter().find(|step| step.op.starts_with(op)).unwrap();
    let (delay, store) = (step("delay"), step("store"));
    assert!(delay.end_ns - delay.begin_ns >= 100_000);
    assert!(store.begin_ns >= delay.end_ns);
    assert!(result.began_ns <= step("open").begin_ns && result.ended_ns >= step("unlink").end_ns);
    assert_eq!(ground.dir.path().read_dir().unwrap().count(), 0);
    let told = ground.told.0.lock().unwrap();
    let [ToHost::Mark { name, thread, trial: 7, .. }] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((name.as_str(), thread.as_str()), ("stored", "storer"));
}

#[test]
fn the_first_failure_ends_the_trial_and_cleanup_still_runs() {
    let mut ground = ground();
    let started = std::time::Instant::now();
    let result = run(
        &mut ground,
        Workload {
            setup: ops(r#"[{"open": {"file": "f", "path": "f", "create": true}}]"#),
            threads: vec![
                thread("waiter", r#"[{"await": {"signal": "never", "limit_ms": 60000}}]"#),
                thread("reader", r#"[{"read": {"file": "f", "bytes": 1}}]"#),
            ],
            finish: ops(r#"[{"truncate": {"file": "f", "bytes": 1}}]"#),
            cleanup: ops(r#"[{"close": {"file": "f"}}, {"unlink": {"path": "f"}}]"#),
        },
    );
    let error = result.error.unwrap();
    assert!(error.starts_with("reader: read f 0+1: "), "{error}");
    assert!(result.steps.iter().all(|step| step.thread != "finish"));
    assert_eq!(ground.dir.path().read_dir().unwrap().count(), 0);
    assert!(started.elapsed().as_secs() < 30, "the waiter was not let go");
}

#[test]
fn a_wrong_byte_and_a_system_error_are_told_apart() {
    let mut ground = ground();
    let workload = |finish| Workload {
        setup: ops(r#"[{"open": {"file": "f", "path": "f", "create": true}},
                {"write": {"file": "f", "offset": 4, "bytes": 8, "fill": 7}}]"#),
        finish,
        ..Workload::default()
    };
    let expect = ops(r#"[{"read": {"file": "f", "offset": 2, "bytes": 10, "expect": 7}}]"#);
    let wrong = run(&mut ground, workload(expect));
    assert_eq!(wrong.error.as_deref(), Some("finish: read f 2+10: byte 2 is 0x00, not 0x07"));
    let gone = run(&mut ground, workload(ops(r#"[{"unlink": {"path": "nothing"}}]"#)));
    assert_eq!(gone.steps.last().unwrap().errno, Some(2));
}

#[test]
fn values_are_read_and_written_with_the_name_of_the_disk() {
    let mut ground = ground();
    let setting = ground.dir.path().join("vdz-setting");
    std::fs::write(&setting, "1234\n").unwrap();
    let path = ground.dir.path().join("{disk}-setting");
    let value = |name: &str| Op::ReadValue { path: path.display().to_string(), name: name.into() };
    let result = run(
        &mut ground,
        Workload {
            finish: vec![
                value("before"),
                Op::WriteValue { path: path.display().to_string(), value: "5678".into() },
                value("after"),
            ],
            ..Workload::default()
        },
    );
    assert_eq!(result.error, None);
    assert_eq!(result.values["before"], "1234");
    assert_eq!(result.values["after"], "5678");
}

#[test]
fn a_thread_that_is_not_parked_is_not_taken_for_one() {
    let mut ground = ground();
    let result = run(
        &mut ground,
        Workload {
            threads: vec![
                thread(
                    "sleeper",
                    r#"[{"barrier": {"name": "go"}},
                    {"await": {"signal": "done", "limit_ms": 30000}}]"#,
                ),
                thread(
                    "watcher",
                    r#"[{"barrier": {"name": "go"}},
                    {"await_parked": {"thread": "sleeper", "within": ["x"], "limit_ms": 20}}]"#,
                ),
            ],
            ..Workload::default()
        },
    );
    let error = result.error.unwrap();
    // Reading the stack needs a privilege; without it the look itself fails. Either way: no.
    assert!(error.starts_with("watcher: await_parked sleeper: "), "{error}");
}

#[test]
fn bytes_beyond_the_end_are_wrong_and_a_background_write_ends_once() {
    let mut ground = ground();
    let result = run(
        &mut ground,
        Workload {
            setup: ops(r#"[{"open": {"file": "f", "path": "f", "create": true, "sync": true}},
                    {"write": {"file": "f", "bytes": 1000, "fill": 7}},
                    {"try_fsync": {"file": "f", "name": "synced"}},
                    {"count_wrong": {"file": "f", "bytes": 4096, "expect": 7, "name": "wrong"}}]"#),
            finish: ops(r#"[{"end_write": {"file": "f"}}]"#),
            ..Workload::default()
        },
    );
    assert_eq!((result.values["synced"].as_str(), result.values["wrong"].as_str()), ("0", "3096"));
    assert!(result.error.unwrap().contains("begin_write"));
}
