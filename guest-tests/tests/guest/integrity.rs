//! Goal: a guest keeps its data on our disk, whatever the rules do to the timing.
//! Method: mkfs, mount, write pattern data, fsync, remount, compare, e2fsck, all in the guest,
//! while half of all requests are delayed by random times; on two QEMUs, with 1 and 4 queues, and
//! on every kind of persistent memory, where one in ten first touches of a page is.

use std::time::Duration;

use agent::wire::{Op, Thread, Workload};
use anyhow::{Result, bail, ensure};
use campaign::device::Device;
use libtest_mimic::Trial;
use pipeline::RuleSet;
use pipeline::control::{Request, Response};

use crate::machine::{Machine, Which, boot, must, run};

const RULES: &str = r#"
[[rule]]
name = "delay-half"
match = { op = ["read", "write", "flush", "discard", "write_zeroes"], probability = 0.5 }
action = { delay = { uniform = ["100us", "8ms"] } }
"#;

const PMEM_RULES: &str = r#"
[[rule]]
name = "delay-some"
match = { op = ["fault", "store", "flush"], probability = 0.1 }
action = { delay = { uniform = ["100us", "2ms"] } }
"#;

const FILES: u32 = 12;
const LIMIT: Duration = Duration::from_secs(240);

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    let mut tests = Vec::new();
    for (which, qemu) in [(Which::Own, "own"), (Which::Other, "other")] {
        for queues in [1, 4] {
            let kernel = if queues == 1 { "debian-6.1.192" } else { "debian-6.12.107" };
            let name = format!("integrity::qemu_{qemu}::queues_{queues}");
            let body =
                move |machine: &Machine| keeps_data(machine, which, Device::Blk, kernel, queues);
            tests.push(machine.test(&name, which, body));
        }
    }
    for device in Device::ALL.into_iter().filter(|device| device.is_pmem()) {
        let which = Which::for_device(device);
        let body =
            move |machine: &Machine| keeps_data(machine, which, device, "debian-6.12.107", 1);
        tests.push(machine.test(&format!("integrity::{device}"), which, body));
    }
    tests
}

fn keeps_data(
    machine: &Machine,
    which: Which,
    device: Device,
    kernel: &str,
    queues: u16,
) -> Result<()> {
    let image = machine.image(128)?;
    let mut config = machine.guest(which, kernel, &image)?;
    config.backend.device = device;
    config.backend.queues = queues;
    config.vcpus = u32::from(queues.min(2));
    config.backend.seed = u64::from(queues);
    let mut guest = boot(&config)?;
    let rules = if device.is_pmem() { PMEM_RULES } else { RULES };
    guest.load(&RuleSet::parse(rules, "integrity")?)?;

    must(&mut guest, "/bin/mkfs.ext4", &["-q", "-F", "/dev/{disk}"])?;
    run(&mut guest, 1, writing(), LIMIT)?;
    run(&mut guest, 2, reading(), LIMIT)?;
    must(&mut guest, "/bin/e2fsck", &["-f", "-n", "/dev/{disk}"])?;

    let Response::Stats(stats) = guest.control().call(&Request::Stats)? else {
        bail!("stats were asked for");
    };
    let fired: u64 = stats.rules.iter().map(|rule| rule.fired).sum();
    ensure!(fired > 100, "only {fired} requests were delayed: the rule did not work");
    guest.shutdown()?;
    Ok(())
}

/// The length of file `index`, in bytes: from a block to some MiB, not block aligned.
fn bytes(index: u32) -> u64 {
    4096 + u64::from(index) * 301_111
}

fn fill(index: u32) -> u8 {
    0x40 + index as u8
}

/// Four threads write and fsync their files; then the file system is unmounted.
pub(crate) fn writing() -> Workload {
    let thread = |number: u32| Thread {
        name: format!("writer{number}"),
        ops: (0..FILES)
            .filter(|index| index % 4 == number)
            .flat_map(|index| {
                let file = format!("f{index}");
                [
                    Op::Open {
                        file: file.clone(),
                        path: file.clone(),
                        create: true,
                        direct: false,
                        sync: false,
                    },
                    Op::Write {
                        file: file.clone(),
                        offset: 0,
                        bytes: bytes(index),
                        fill: fill(index),
                    },
                    Op::Fsync { file: file.clone() },
                    Op::Close { file },
                ]
            })
            .collect(),
        ..Thread::default()
    };
    Workload {
        setup: vec![Op::Mount { options: String::new() }],
        threads: (0..4).map(thread).collect(),
        finish: Vec::new(),
        cleanup: vec![Op::Umount {}],
    }
}

/// A fresh mount: the data comes from the disk, not from the page cache.
pub(crate) fn reading() -> Workload {
    let ops = (0..FILES).flat_map(|index| {
        let file = format!("f{index}");
        [
            Op::Open {
                file: file.clone(),
                path: file.clone(),
                create: false,
                direct: false,
                sync: false,
            },
            Op::Read {
                file: file.clone(),
                offset: 0,
                bytes: bytes(index),
                expect: Some(fill(index)),
            },
            Op::Close { file },
        ]
    });
    Workload {
        setup: std::iter::once(Op::Mount { options: String::new() }).chain(ops).collect(),
        threads: Vec::new(),
        finish: Vec::new(),
        cleanup: vec![Op::Umount {}],
    }
}
