//! Goal: no false alarm. Method: every pair and triple of operation kinds on a small file.

use std::ops::ControlFlow;

use delalloc::{DelallocModel, Kernel, Scenario};
use explorer::{OneWorker, Options, explore, replay};

const KINDS: &[&str] = &[
    r#"{ op = "write", at = 1, len = 2, data = 9 }"#,
    r#"{ op = "write", at = 3, len = 1, data = 8, partial = true }"#,
    r#"{ op = "mkwrite", at = 1, data = 10 }"#,
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
    r#"{ op = "clear-es-cache" }"#,
    r#"{ op = "reclaim", folio = 1 }"#,
    r#"{ op = "remount-nodelalloc" }"#,
    r#"{ op = "evict" }"#,
];

#[test]
fn pairs() {
    let file = std::env::var("PAIR_FILE").unwrap_or("blocks = 4\nsize = 3\nwritten = [{ at = 0, len = 1 }]\nunwritten = [{at = 3, len = 1}]\ndelayed = [{ at = 2, len = 1 }]\ncached=[1]".into());
    let fs = std::env::var("PAIR_FS").unwrap_or("shrinks-max = 1\nfs = {}".into());
    let variant = std::env::var("PAIR_KERNEL").unwrap_or("linux-7.3.4".into());
    let mut total = 0;
    let mut bad = 0;
    for a in KINDS {
        for b in KINDS {
            if a > b || a == b && a.contains("evict") {
                continue;
            }
            let text = format!(
                "name = \"pair\"\nabout = \"\"\n{fs}\n[file]\n{file}\n[[thread]]\nops = [{a}]\n[[thread]]\nops = [{b}]\n"
            );
            let scenario = Scenario::parse(&text).unwrap();
            let model = DelallocModel::new(scenario, Kernel::find(&variant).unwrap(), None);
            let report = explore(
                &model,
                &Options {
                    states_max: Some(300_000),
                    stop_at_first: true,
                    count_states: 0,
                    shrink_states: 100000,
                    ..Options::default()
                },
                &OneWorker,
                &mut |_| ControlFlow::Continue(()),
            )
            .unwrap();
            total += report.coverage.transitions;
            if let Some(v) = report.violations.first() {
                bad += 1;
                println!("== {a} | {b}: {} {}", v.name, v.detail);
                if bad < 8 {
                    for row in &replay(&model, &v.schedule).unwrap().rows {
                        println!("   {} {} | {}", row.step, row.label, row.changed);
                    }
                }
            }
        }
    }
    println!("transitions {total} bad {bad}");
}
