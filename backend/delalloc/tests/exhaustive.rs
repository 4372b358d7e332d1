//! Goal: no false alarm, and the bound of the exhaustive search with three threads. Every
//! combination of operation kinds runs on one small file whose blocks are written, hole, delayed
//! and unwritten (behind the end of file), on the kernel that has every fix.
//! Method: exhaustive search of each combination; any violation is either a bug of the model or a
//! bug of the kernel that nobody has fixed.

use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow;

use delalloc::{DelallocModel, Kernel, Scenario};
use explorer::{Model, OneWorker, Options, StepBuf, Strategy, audit, explore};

const KINDS: &[&str] = &[
    r#"{ op = "write", at = 1, len = 2, data = 9 }"#,
    r#"{ op = "write", at = 3, len = 1, data = 8, partial = true }"#,
    r#"{ op = "mkwrite", at = 1, data = 10 }"#,
    r#"{ op = "mkwrite", at = 2, data = 10, behind-eof = true }"#,
    r#"{ op = "read", at = 0, len = 4 }"#,
    r#"{ op = "fallocate", at = 0, len = 4 }"#,
    r#"{ op = "fallocate", at = 1, len = 3, keep-size = true }"#,
    r#"{ op = "zero-range", at = 1, len = 2 }"#,
    r#"{ op = "punch-hole", at = 1, len = 2 }"#,
    r#"{ op = "collapse-range", at = 1, len = 1 }"#,
    r#"{ op = "insert-range", at = 1, len = 1 }"#,
    r#"{ op = "truncate", size = 1 }"#,
    r#"{ op = "truncate", size = 4 }"#,
    r#"{ op = "dio-write", at = 1, len = 2, data = 11 }"#,
    r#"{ op = "dio-read", at = 0, len = 4 }"#,
    r#"{ op = "writepages", at = 0, len = 4 }"#,
    r#"{ op = "fsync" }"#,
    r#"{ op = "commit" }"#,
    r#"{ op = "fiemap", at = 0, len = 4 }"#,
    r#"{ op = "get-es-cache", at = 0, len = 4 }"#,
    r#"{ op = "precache-extents" }"#,
    r#"{ op = "clear-es-cache" }"#,
    r#"{ op = "reclaim", folio = 1 }"#,
    r#"{ op = "remount-nodelalloc" }"#,
    r#"{ op = "evict" }"#,
];

/// `fs` goes before the file's table, `file` into it.
fn scenario([fs, file]: [&str; 2], kinds: &[usize]) -> Scenario {
    let threads: Vec<String> =
        kinds.iter().map(|&kind| format!("[[thread]]\nops = [{}]", KINDS[kind])).collect();
    let threads = threads.join("\n");
    let text = format!(
        r#"name = "combination"
about = "every combination of operation kinds"
{fs}
[file]
blocks = 4
size = 3
written = [{{ at = 0, len = 1 }}]
delayed = [{{ at = 2, len = 1 }}]
unwritten = [{{ at = 3, len = 1 }}]
cached = [1]
{file}
{threads}"#
    );
    Scenario::parse(&text).unwrap()
}

/// Two evictions of one inode cannot be.
fn possible(kinds: &[usize]) -> bool {
    kinds.iter().filter(|&&kind| kind == KINDS.len() - 1).count() < 2
}

fn sweep(file: [&str; 2], combinations: impl Iterator<Item = Vec<usize>>) -> (u64, u64, u64) {
    let newest = Kernel::find("linux-7.3.4").unwrap();
    let options = Options { count_states: 0, ..Options::default() };
    let (mut number, mut states, mut transitions) = (0, 0, 0);
    for kinds in combinations.filter(|kinds| possible(kinds)) {
        let model = DelallocModel::new(scenario(file, &kinds), newest, None);
        let report =
            explore(&model, &options, &OneWorker, &mut |_| ControlFlow::Continue(())).unwrap();
        let ops: Vec<_> = kinds.iter().map(|&kind| KINDS[kind]).collect();
        assert!(report.violations.is_empty(), "{ops:?} with {file:?}: {:?}", report.violations);
        assert!(report.coverage.complete());
        number += 1;
        states += report.coverage.states.unwrap_or(0);
        transitions += report.coverage.transitions;
    }
    (number, states, transitions)
}

fn pairs() -> impl Iterator<Item = Vec<usize>> {
    (0..KINDS.len()).flat_map(|a| (a..KINDS.len()).map(move |b| vec![a, b]))
}

#[test]
fn every_pair_of_operations_is_clean_on_the_fixed_kernel() {
    for fs in [
        "fs = { leaf-blocks = 2 }",
        "shrinks-max = 1",
        "fs = { fair = true }",
        "fs = { dioread-nolock = false }",
        "fs = { block-bytes = 1024 }",
        "fs = { cluster-blocks = 2, clusters = 6 }",
        "faults = [\"write-eio\", \"restart\", \"split-enomem\", \"split-enospc\", \"split-second\"]\n\
         faults-max = 1\nfs = { leaf-blocks = 2 }",
    ] {
        let (number, ..) = sweep([fs, ""], pairs());
        assert_eq!(number, 324);
    }
    let (number, ..) = sweep(["", "half = true"], pairs());
    assert_eq!(number, 324);
}

/// What this search has found in the newest kernel, confirmed in its source and nowhere reported as
/// far as we know; not reproduced on a real kernel yet.
/// - A4: zero range drops the page cache of its range first. If it then cannot go on, delayed blocks
///   are left without a page, and their reservation is held until the next write or the inode's
///   end.
/// - B5: `ext4_map_create_blocks` believes `EXT4_MAP_DELAYED` of a lookup made before it held
///   `i_data_sem`. If writeback has given the block up meanwhile (after an error, "Data will be
///   lost"), fallocate takes the space as reserved, and nobody accounts it to the inode.
fn unfixed(kinds: &[usize], invariant: &str) -> bool {
    let does = |op: &str| kinds.iter().any(|&kind| KINDS[kind].contains(op));
    match invariant {
        "A4" => does("zero-range"),
        "B5" => does("\"fallocate\"") && (does("writepages") || does("fsync")),
        _ => false,
    }
}

#[test]
fn reads_that_fail_break_no_rule_but_those_of_two_unfixed_bugs() {
    let newest = Kernel::find("linux-7.3.4").unwrap();
    let options =
        Options { stop_at_first: false, shrink_states: 0, count_states: 0, ..Options::default() };
    let mut seen = BTreeSet::new();
    for (fs, file) in [
        ("fs = { leaf-blocks = 2, bitmap-cached = false }", "leaves-on-disk = [0, 1]"),
        ("fs = { block-bytes = 1024 }", ""),
    ] {
        let fs = format!("faults = [\"read-eio\"]\nfaults-max = 1\n{fs}");
        for kinds in pairs().filter(|kinds| possible(kinds)) {
            let model = DelallocModel::new(scenario([&fs, file], &kinds), newest, None);
            let report =
                explore(&model, &options, &OneWorker, &mut |_| ControlFlow::Continue(())).unwrap();
            assert!(report.coverage.complete());
            for found in report.violations {
                assert!(unfixed(&kinds, &found.name), "{}: {}", found.detail, found.schedule);
                seen.insert(found.name);
            }
        }
    }
    assert_eq!(seen, ["A4", "B5"].map(str::to_owned).into());
}

/// Labels of the failing requests that one thread alone can meet with this operation.
fn failures(op: &str) -> BTreeSet<String> {
    let fs = "faults = [\"read-eio\"]\nfaults-max = 1\n\
              fs = { leaf-blocks = 2, bitmap-cached = false }";
    let kind = KINDS.iter().position(|kind| kind.contains(op)).unwrap();
    let scenario = scenario([fs, "leaves-on-disk = [0, 1]"], &[kind]);
    let model = DelallocModel::new(scenario, Kernel::find("linux-7.3.4").unwrap(), None);
    let (mut todo, mut seen) = (vec![model.initial()], HashSet::new());
    let mut labels = BTreeSet::new();
    while let Some(state) = todo.pop() {
        let mut steps = StepBuf::default();
        model.enabled(&state, &mut steps);
        for &step in steps.as_slice() {
            let label = model.step_label(&state, step);
            if label.ends_with(" fails") {
                labels.insert(label);
            }
            let mut next = state;
            model.apply(&mut next, step);
            if seen.insert(next) {
                todo.push(next);
            }
        }
    }
    labels
}

#[test]
fn every_kind_of_read_can_fail() {
    let leaf = "read of extent leaf fails";
    for (op, expected) in [
        ("\"read\"", vec!["read of data fails", leaf]),
        ("\"dio-read\"", vec!["direct read fails", "read of block bitmap fails", leaf]),
        ("\"fallocate\"", vec!["read of block bitmap fails", leaf]),
        ("\"writepages\"", vec!["read of block bitmap fails", leaf]),
        ("\"mkwrite\"", vec![leaf]),
        ("\"fiemap\"", vec![leaf]),
        ("\"precache-extents\"", vec![leaf]),
    ] {
        let expected: BTreeSet<String> = expected.into_iter().map(str::to_owned).collect();
        assert_eq!(failures(op), expected, "{op}");
    }
}

fn triples() -> impl Iterator<Item = Vec<usize>> {
    let kinds = KINDS.len();
    (0..kinds)
        .flat_map(move |a| (a..kinds).flat_map(move |b| (b..kinds).map(move |c| vec![a, b, c])))
}

#[test]
fn every_triple_of_operations_is_clean_on_the_fixed_kernel() {
    let (number, states, transitions) = sweep(["", ""], triples());
    println!("{number} combinations, {states} states, {transitions} transitions");
    assert_eq!(number, 2900);
}

#[test]
fn footprints_cover_what_steps_do() {
    for (n, kinds) in pairs().enumerate().filter(|(n, kinds)| n % 7 == 0 && possible(kinds)) {
        let fs = [
            "faults = [\"read-eio\"]\nfaults-max = 1\nfs = { leaf-blocks = 2 }",
            "shrinks-max = 1",
            "fs = { block-bytes = 1024 }",
        ];
        for kernel in Kernel::all() {
            let model = DelallocModel::new(
                scenario([fs[n % 3], "half = true\nleaves-on-disk = [0]"], &kinds),
                kernel,
                None,
            );
            if let Err(fault) = audit(&model, n as u64, 4) {
                panic!("{kinds:?} on {kernel}: {fault:?}");
            }
        }
    }
}

#[test]
fn reduction_reaches_the_same_verdict() {
    for (n, kinds) in pairs().enumerate().filter(|(n, kinds)| n % 5 == 0 && possible(kinds)) {
        // Old kernels too: these break rules.
        let kernel = Kernel::all()[n % 5];
        let model =
            DelallocModel::new(scenario(["fs = { leaf-blocks = 2 }", ""], &kinds), kernel, None);
        let search = |strategy| {
            let options = Options {
                strategy,
                stop_at_first: false,
                shrink_states: 0,
                count_states: 0,
                ..Options::default()
            };
            let report =
                explore(&model, &options, &OneWorker, &mut |_| ControlFlow::Continue(())).unwrap();
            !report.violations.is_empty()
        };
        let full = search(Strategy::Exhaustive);
        assert_eq!(search(Strategy::PartialOrder), full, "{kinds:?} on {kernel}");
    }
}
