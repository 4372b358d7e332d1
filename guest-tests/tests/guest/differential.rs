//! Goal: the engine predicts what real kernels show after each operation of random lists; an
//! engine that is wrong is caught.
//! Method: short runs of the comparison on every file system, on the oldest and the newest kernel
//! of the engine that Debian packages. Canaries: the engine of another version, and one with a
//! historical bug, each on a list of its own that must tell it from the kernel.

use anyhow::{Result, ensure};
use campaign::differential::{self, Lists, Order, Script, Shape};
use delalloc::{Kernel, Mutant, Op};
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
        // The first kernel says that the hole is one, the second forgets.
        let lists = vec![
            vec![write(0, 2), Op::Fsync],
            vec![write(0, 4), Op::Fsync, write(2, 1), Op::PunchHole { at: 0, len: 1 }, Op::Fsync],
        ];
        is_caught(machine, Shape::Blocks4k, Kernel::find("linux-5.10.262")?, lists)
    }));
    tests.push(machine.test("differential::canary_mutant", Which::Own, |machine| {
        let mutant = Mutant::find("M08")?;
        let wrong = Kernel::find("linux-6.12.107")?.without(&mutant.flags());
        // The front of a delayed entry goes, and a cluster's reservation with it.
        let lists = vec![
            vec![write(0, 1), Op::Fsync],
            vec![write(12, 1), Op::Fsync, write(0, 8), Op::PunchHole { at: 0, len: 4 }, Op::Fsync],
        ];
        is_caught(machine, Shape::Bigalloc, wrong, lists)
    }));
    tests
}

fn write(at: u8, len: u8) -> Op {
    Op::Write { at, len, data: 9, partial: false }
}

fn order(machine: &Machine, version: &str, variant: Kernel, lists: Lists) -> Result<Order> {
    Ok(Order {
        kernel: machine.kernel(&format!("debian-{version}"))?,
        variant,
        qemu: machine.qemu().clone(),
        accel: machine.accel(),
        cache: machine.cache().clone(),
        shapes: Shape::ALL.to_vec(),
        lists,
        seed: SEED,
    })
}

fn predicts(machine: &Machine, version: &str) -> Result<()> {
    let variant = Kernel::find(&format!("linux-{version}"))?;
    let lists = Lists::Drawn { numbers: 0..60, ops: OPS };
    let report = differential::run(&order(machine, version, variant, lists)?, |_, _, _| ())?;
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

/// Of two lists the kernel and the wrong engine agree on the first; the other is shrunk to a write
/// and a punch.
fn is_caught(machine: &Machine, shape: Shape, wrong: Kernel, lists: Vec<Vec<Op>>) -> Result<()> {
    let scripts = lists.into_iter().map(|ops| Script { ops, map: true });
    let mut order = order(machine, "6.12.107", wrong, Lists::Given(scripts.collect()))?;
    order.shapes = vec![shape];
    let report = differential::run(&order, |_, _, _| ())?;
    let found = &report.shapes[0];
    ensure!((found.lists, found.differing) == (2, 1), "not noticed, or too often: {found:#?}");
    let finding = &found.findings[0];
    ensure!(finding.list == 1, "the wrong list: {finding:#?}");
    ensure!(finding.failure.rows.len() == 2, "not shrunk: {finding:#?}");
    Ok(())
}
