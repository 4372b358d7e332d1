//! Goal: a fault hits the request that the rule names, and the guest learns of it; a resize
//! reaches the guest.
//! Method: fail data writes of one inode and see fsync fail in the guest; change the size of the
//! disk and read it in the guest's sysfs.

use std::time::{Duration, Instant};

use agent::wire::{Op, Trial as Order, Workload};
use anyhow::{Result, ensure};
use campaign::backend::Storage;
use campaign::image;
use libtest_mimic::Trial;
use pipeline::RuleSet;
use pipeline::control::Request;

use crate::machine::{Machine, Which, boot, must};

const KERNEL: &str = "debian-6.12.107";
const LIMIT: Duration = Duration::from_secs(120);
const EIO: i32 = 5;

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    vec![
        machine.test("faults::failed_data_write_reaches_fsync", Which::Own, failed_write),
        machine.test("faults::resize_reaches_the_guest", Which::Own, resize),
    ]
}

fn failed_write(machine: &Machine) -> Result<()> {
    let config = machine.guest(Which::Own, KERNEL, &machine.image(64)?)?;
    let mut guest = boot(&config)?;
    // The blocks must belong to the file before the write: what no committed metadata claims is
    // `free` to the device. So the file is written and synchronised once without a fault.
    let workload = |fill| Workload {
        setup: vec![
            Op::Mount { options: String::new() },
            Op::Open {
                file: "f".into(),
                path: "f".into(),
                create: true,
                direct: false,
                sync: false,
            },
            Op::Write { file: "f".into(), offset: 0, bytes: 65536, fill },
            Op::Fsync { file: "f".into() },
        ],
        threads: Vec::new(),
        finish: Vec::new(),
        cleanup: vec![Op::Close { file: "f".into() }, Op::Umount {}],
    };
    let clean = guest.run(Order { trial: 1, seed: 1, workload: workload(1) }, LIMIT)?;
    ensure!(clean.result.error.is_none(), "{:?}", clean.result.error);

    // The first file of a fresh file system is inode 12 (after lost+found, 11).
    let rules = r#"
        [[rule]]
        name = "fail-data"
        match = { op = "write", class = "file_data", inode = 12 }
        action = { fail = "EIO" }
    "#;
    guest.load(&RuleSet::parse(rules, "faults")?)?;
    let failed = guest.run(Order { trial: 2, seed: 1, workload: workload(2) }, LIMIT)?;
    let fsync = failed.result.steps.iter().find(|step| step.op.starts_with("fsync"));
    ensure!(
        fsync.is_some_and(|step| step.errno == Some(EIO)),
        "fsync should have failed with EIO: {:?}",
        failed.result.steps
    );
    guest.shutdown()?;
    Ok(())
}

fn resize(machine: &Machine) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    image::copy(&machine.image(64)?, &disk)?;
    let mut config = machine.guest(Which::Own, KERNEL, &disk)?;
    config.backend.storage = Storage::File;
    let mut guest = boot(&config)?;
    let sectors = |guest: &mut campaign::guest::Guest| -> Result<u64> {
        let text = must(guest, "/bin/cat", &["/sys/block/{disk}/size"])?.stdout;
        Ok(text.trim().parse()?)
    };
    ensure!(sectors(&mut guest)? == (64 << 20) / 512, "the disk has another size at start");
    for mib in [96_u64, 80] {
        guest.control().call(&Request::Resize { bytes: mib << 20 })?;
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let seen = sectors(&mut guest)?;
            if seen == (mib << 20) / 512 {
                break;
            }
            ensure!(Instant::now() < deadline, "the guest sees {seen} sectors, not {mib} MiB");
        }
    }
    guest.shutdown()?;
    Ok(())
}
