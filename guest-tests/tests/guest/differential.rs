//! Goal: the engine predicts what real kernels show after each operation of random lists; an
//! engine that is wrong is caught.
//! Method: short runs of the comparison on every file system, on the oldest and the newest kernel
//! of the engine that Debian packages. Canaries: the engine of another version, and one with a
//! historical bug.

use anyhow::{Result, ensure};
use campaign::differential::{self, Order, Shape};
use delalloc::{Kernel, Mutant};
use libtest_mimic::Trial;

use crate::machine::{Machine, Which};

const SEED: u64 = 1;
const OPS: u32 = 20;

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    let mut tests = Vec::new();
    for version in ["5.10.223", "6.12.107"] {
        let name = format!("differential::linux_{version}");
        tests.push(machine.test(&name, Which::Own, move |machine| predicts(machine, version)));
    }
    tests.push(machine.test("differential::canary_other_version", Which::Own, |machine| {
        let other = Kernel::find("linux-5.10.262")?;
        is_caught(machine, Shape::Blocks4k, other, "--variant linux-5.10.262")
    }));
    tests.push(machine.test("differential::canary_mutant", Which::Own, |machine| {
        let mutant = Mutant::find("M08")?;
        let wrong = Kernel::find("linux-6.12.107")?.without(&mutant.flags());
        is_caught(machine, Shape::Bigalloc, wrong, "--mutant M08")
    }));
    tests
}

fn order(machine: &Machine, version: &str, variant: Kernel, lists: u32) -> Result<Order> {
    Ok(Order {
        kernel: machine.kernel(&format!("debian-{version}"))?,
        variant,
        qemu: machine.qemu().clone(),
        accel: machine.accel(),
        cache: machine.cache().clone(),
        shapes: Shape::ALL.to_vec(),
        lists: 0..lists,
        ops: OPS,
        seed: SEED,
    })
}

fn predicts(machine: &Machine, version: &str) -> Result<()> {
    let variant = Kernel::find(&format!("linux-{version}"))?;
    let report = differential::run(&order(machine, version, variant, 60)?, |_, _, _| ())?;
    for shape in &report.shapes {
        let replay = format!(
            "repeat with: cargo racegate differential --kernel debian-{version} --geometry {} \
             --lists 60 --ops {OPS} --seed {SEED}",
            shape.geometry
        );
        ensure!(shape.lists == 60, "{}: {} lists; {replay}", shape.geometry, shape.lists);
        ensure!(shape.differing == 0, "{:#?}; {replay}", shape.findings);
        ensure!(shape.e2fsck.is_none(), "e2fsck: {:?}; {replay}", shape.e2fsck);
    }
    Ok(())
}

fn is_caught(machine: &Machine, shape: Shape, wrong: Kernel, option: &str) -> Result<()> {
    let mut order = order(machine, "6.12.107", wrong, 24)?;
    order.shapes = vec![shape];
    let report = differential::run(&order, |_, _, _| ())?;
    let caught = report.shapes.iter().any(|shape| shape.differing != 0);
    ensure!(
        caught,
        "a wrong engine was not noticed; repeat with: cargo racegate differential --kernel \
         debian-6.12.107 {option} --geometry {} --lists 24 --ops {OPS} --seed {SEED}",
        shape.name()
    );
    // What is found is short.
    for finding in report.shapes.iter().flat_map(|shape| &shape.findings) {
        ensure!(finding.failure.rows.len() < OPS as usize, "not shrunk: {finding:#?}");
    }
    Ok(())
}
