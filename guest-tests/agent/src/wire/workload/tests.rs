use super::*;

fn thread(name: &str, ops: Vec<Op>) -> Thread {
    Thread { name: name.into(), ops, ..Thread::default() }
}

fn store() -> Op {
    Op::Store { file: "raced".into(), offset: 0, value: 1 }
}

fn open() -> Op {
    Op::Open {
        file: "raced".into(),
        path: "raced".into(),
        create: true,
        direct: false,
        sync: false,
    }
}

#[test]
fn a_workload_survives_the_wire() {
    let workload = Workload {
        setup: vec![Op::Mount { options: "noatime".into() }, open()],
        threads: vec![
            thread("storer", vec![Op::Delay { min_us: 2000, max_us: 22000 }, store()]),
            thread("other", vec![Op::Barrier { name: "go".into() }]),
        ],
        finish: vec![Op::Umount {}],
        cleanup: vec![],
    };
    workload.check().unwrap();
    let json = serde_json::to_string(&workload).unwrap();
    assert_eq!(serde_json::from_str::<Workload>(&json).unwrap(), workload);
}

#[test]
fn mistakes_name_their_place() {
    let check = |threads, setup| {
        Workload { setup, threads, ..Workload::default() }.check().unwrap_err().to_string()
    };
    assert_eq!(
        check(vec![thread("a", vec![store()])], vec![]),
        "a, operation 1 (store raced 0): no `open` names the file \"raced\""
    );
    assert_eq!(
        check(vec![thread("a", vec![]), thread("a", vec![])], vec![]),
        "thread name \"a\" is taken; give each thread a name of its own"
    );
    assert!(check(vec![thread("setup", vec![])], vec![]).contains("is taken"));
    assert!(
        check(vec![], vec![Op::Barrier { name: "go".into() }])
            .ends_with("only threads can do this")
    );
    assert!(
        check(vec![], vec![Op::Delay { min_us: 2, max_us: 1 }]).contains("`min_us` 2 is above")
    );
    let parked = Op::AwaitParked { thread: "b".into(), within: vec![], limit_ms: 1 };
    assert!(check(vec![thread("a", vec![parked])], vec![]).contains("no thread \"b\""));
    let await_long = Op::Await { signal: "x".into(), limit_ms: 60_001 };
    assert!(check(vec![], vec![await_long]).contains("at most 60000"));
    for path in ["", "/etc", "../x", "a/../b", "a//b"] {
        let message = check(vec![], vec![Op::Unlink { path: path.into() }]);
        assert!(message.contains("must be relative"), "{path}: {message}");
    }
}

#[test]
fn barriers_count_threads_not_operations() {
    let go = || Op::Barrier { name: "go".into() };
    let workload = Workload {
        threads: vec![
            thread("a", vec![go(), go()]),
            thread("b", vec![go()]),
            thread("c", vec![Op::Syncfs {}]),
        ],
        ..Workload::default()
    };
    assert_eq!(workload.parties("go"), 2);
    assert_eq!(workload.parties("stop"), 0);
}
