//! Goal: `racegate bench --guest` measures disks of all kinds in one guest.
//! Method: a racegate disk, one of qemu-storage-daemon and one of QEMU's own, a short window each;
//! every one must have served requests, and the two daemons have worked for theirs: fio was at the
//! disk of that name. How fast is not asked.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use crate::campaigns::racegate_alone;
use crate::machine::{Machine, Which};

const KERNEL: &str = "debian-6.12.107";
const DISKS: [&str; 3] = ["racegate@memory", "qsd-threads@tmpfs", "qemu-threads@tmpfs"];
/// Whose work can be told from that of the machine.
const DAEMONS: usize = 2;
/// Processor time of a daemon for one request: an idle one has none.
const LEAST_CPU_US: f64 = 1.0;
const LIMIT: Duration = Duration::from_secs(300);

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    vec![machine.test("benched::in_a_guest", Which::Own, |_| in_a_guest())]
}

fn in_a_guest() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let json = folder.path().join("bench.json");
    let mut command = racegate_alone()?;
    command.args(["bench", DISKS[0], "--vs", DISKS[1], "--vs", DISKS[2], "--guest", KERNEL]);
    command.args(["--op", "randread,randwrite", "--depth", "4", "--size", "8m"]);
    command.args(["--rounds", "1", "--window", "300ms", "--json"]).arg(&json);
    campaign::process::run(command, LIMIT)?;
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(&json)?)?;
    let runs = told["runs"].as_array().map_or(&[][..], Vec::as_slice);
    for (index, disk) in DISKS.iter().enumerate() {
        let of = runs.iter().filter(|run| run["backend"] == *disk);
        let served = of.filter(|run| {
            let worked = run["backend_cpu_us_per_request"].as_f64() > Some(LEAST_CPU_US);
            run["iops"].as_f64() > Some(0.0) && run["failed"] == 0 && worked == (index < DAEMONS)
        });
        ensure!(served.count() == 2, "{disk}: {told}");
    }
    Ok(())
}
