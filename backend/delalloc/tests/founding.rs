//! Goal: the founding bug (page_mkwrite against fallocate) is found on the kernel that has it, its
//! schedule is short and reads like the changelog's figure, and the kernels that have the fix are
//! clean over a stated number of interleavings.

use std::ops::ControlFlow;

use delalloc::{DelallocModel, Selection};
use explorer::{OneWorker, Options, Outcome, explore, replay};

fn model(variant: &str) -> DelallocModel {
    DelallocModel::select(Selection {
        scenario: Some("mkwrite-fallocate"),
        variant: Some(variant),
        mutant: None,
    })
    .unwrap()
}

#[test]
fn figure() {
    let model = model("linux-5.10.223");
    let report = explore(&model, &Options::default(), &OneWorker, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    let violation = &report.violations[0];
    assert!(violation.minimal);
    assert!(violation.schedule.steps.len() <= 16);
    let trace = replay(&model, &violation.schedule).unwrap();
    let mut text = String::new();
    for row in &trace.rows {
        text += &format!("{} {} | {}\n", row.step, row.label, row.changed);
    }
    print!("{text}");
    let Outcome::Violation { detail, .. } = &trace.outcome else {
        panic!("{:?}", trace.outcome);
    };
    print!("{detail}");
}

#[test]
fn fixed() {
    for variant in [
        "linux-5.10.262",
        "linux-6.1.192",
        "linux-6.12.107",
        "linux-7.3.4",
    ] {
        let model = model(variant);
        let report = explore(&model, &Options::default(), &OneWorker, &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
        println!("{variant} {:?}", report.coverage);
    }
}
