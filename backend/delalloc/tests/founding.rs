//! Goal: the founding bug (page_mkwrite against fallocate) is found on the kernel that has it, its
//! schedule is short and reads like the changelog's figure, and the kernels that have the fix are
//! clean over a stated number of interleavings.

use std::fmt::Write;
use std::ops::ControlFlow;

use delalloc::{DelallocModel, Selection};
use explorer::{OneWorker, Options, Outcome, Report, Schedule, explore, replay};

fn model(scenario: &str, variant: &str) -> DelallocModel {
    DelallocModel::select(Selection {
        scenario: Some(scenario),
        variant: Some(variant),
        mutant: None,
    })
    .unwrap()
}

fn search(model: &DelallocModel) -> Report {
    explore(model, &Options::default(), &OneWorker, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// A is fallocate, B page_mkwrite, D the device.
const FIGURE: &str = "\
A down_write(i_rwsem)
A ext4_journal_start
A ext4_es_lookup_extent(0) -> miss
A down_read(i_data_sem), ext4_ext_map_blocks(0) -> hole 0-1
A ext4_es_insert_extent(hole 0-1); up_read(i_data_sem) | es[0]: - -> H, es[1]: - -> H
A down_write(i_data_sem)
A ext4_read_block_bitmap: submit
B down_read(invalidate_lock)
B lock folio 0
B ext4_es_lookup_extent(0) -> hole
D read of block bitmap done
A ext4_mb_new_blocks, ext4_ext_insert_extent -> unwritten 0-1 at 1 | disk[0]: - -> U1, disk[1]: - -> U2, i_blocks: 0 -> 2
A ext4_es_insert_extent(unwritten 0-1 at 1); up_write(i_data_sem); ext4_journal_stop; up_write(i_rwsem) | es[0]: H -> U, es[1]: H -> U
B down_write(i_data_sem)
B ext4_da_reserve_space | reserved: 0 -> 1
B ext4_es_insert_delayed_block(0); up_write(i_data_sem) | es[0]: U -> D
";

#[test]
fn the_schedule_reads_like_the_figure() {
    let model = model("mkwrite-fallocate", "linux-5.10.223");
    let report = search(&model);
    let violation = &report.violations[0];
    assert!(violation.minimal);
    let text = violation.schedule.to_string();
    let schedule: Schedule = text.parse().unwrap();
    let trace = replay(&model, &schedule).unwrap();
    let mut figure = String::new();
    for row in &trace.rows {
        let changed =
            if row.changed.is_empty() { String::new() } else { format!(" | {}", row.changed) };
        writeln!(figure, "{} {}{changed}", row.step, row.label).unwrap();
    }
    assert_eq!(figure, FIGURE);
    assert_eq!(trace.rows.len(), 16);
    let Outcome::Violation { name, detail, .. } = trace.outcome else {
        panic!("{:?}", trace.outcome);
    };
    assert_eq!(name, "A4");
    // The block, the values, the two steps that conflict.
    assert!(detail.contains("block 0: extent status D, on disk U1, reserved 1 for 1 delayed"));
    assert!(detail.contains("step 13, fallocate(0, 0, 2): ext4_es_insert_extent"));
    assert!(detail.contains("step 16, page_mkwrite(0): ext4_es_insert_delayed_block(0)"));
}

#[test]
fn fixed_kernels_are_clean_over_every_interleaving() {
    for (variant, interleavings) in [
        ("linux-5.10.262", 4260),
        ("linux-6.1.192", 4260),
        ("linux-6.12.107", 3809),
        ("linux-7.3.4", 3809),
    ] {
        let report = search(&model("mkwrite-fallocate", variant));
        assert!(report.violations.is_empty(), "{variant}: {:?}", report.violations);
        assert!(report.coverage.complete());
        assert_eq!(report.coverage.interleavings, Some(interleavings), "{variant}");
    }
}

#[test]
fn a_held_log_copy_opens_the_same_window() {
    let buggy = search(&model("mkwrite-fallocate-shadow", "linux-5.10.223"));
    assert_eq!(buggy.violations[0].name, "A4");
    for variant in ["linux-5.10.262", "linux-7.3.4"] {
        let fixed = search(&model("mkwrite-fallocate-shadow", variant));
        assert!(fixed.violations.is_empty() && fixed.coverage.complete());
    }
}

#[test]
fn the_same_search_gives_the_same_answer() {
    let model = model("mkwrite-fallocate", "linux-5.10.223");
    assert_eq!(search(&model), search(&model));
}
