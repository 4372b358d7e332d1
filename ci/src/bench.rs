//! Benchmarks: criterion's, and the disk beside other disks and the machine's limits.
//!
//! In: nothing. Out: tables on standard output, JSON files in target/bench.
//! Must not know: how anything is measured (`racegate bench` does).

use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{cargo, top};

/// A comparison: name of its file, first contender, the others, options.
type Comparison = (&'static str, &'static str, &'static [&'static str], &'static [&'static str]);

const COMPARISONS: [Comparison; 5] = [
    (
        "memory-4k",
        "racegate@memory",
        &[
            "qsd-threads@tmpfs",
            "qsd-io_uring@tmpfs",
            "qsd-native@tmpfs",
            "qsd-native-iothread@tmpfs",
            "qsd-null@none",
            "ring@memory",
        ],
        &["--op", "randread,randwrite", "--depth", "1,32"],
    ),
    (
        "memory-128k",
        "racegate@memory",
        &["qsd-native@tmpfs", "qsd-io_uring@tmpfs", "memcpy@memory"],
        &["--op", "read,write", "--block-size", "128k", "--depth", "16"],
    ),
    (
        "page-cache",
        "racegate@file",
        &["qsd-threads@file", "qsd-io_uring@file"],
        &["--op", "randread,randwrite", "--depth", "1,32"],
    ),
    (
        "direct",
        "racegate@direct",
        &["qsd-threads@direct", "qsd-io_uring@direct", "qsd-native@direct"],
        // Short: a hypervisor stops a machine that is busy for longer (see `stolen`).
        &["--op", "randread,randwrite", "--depth", "1,32", "--window", "50ms", "--rounds", "50"],
    ),
    (
        "guest",
        "racegate@memory",
        &["qsd-native@tmpfs", "qsd-io_uring@tmpfs", "qemu-native@tmpfs", "qemu-io_uring@tmpfs"],
        &[
            "--guest",
            "debian-6.12.107",
            "--op",
            "randread,randwrite",
            "--depth",
            "1,32",
            "--size",
            "128m",
        ],
    ),
];

/// The criterion benches, the latency table, and every comparison.
pub(crate) fn run() -> Result<()> {
    cargo(&["bench", "--package", "benches"])?;
    let folder = top().join("target/bench");
    std::fs::create_dir_all(&folder).context("cannot make target/bench")?;
    // The limit of the disk itself, where fio is there to find it.
    let has_fio = Command::new("fio").arg("--version").output().is_ok();
    for (name, first, others, options) in COMPARISONS {
        let json = folder.join(format!("{name}.json")).display().to_string();
        let mut args = vec!["run", "--quiet", "--release", "--package", "racegate"];
        args.extend(["--bin", "racegate", "--", "bench", first, "--json", &json]);
        for other in others {
            args.extend(["--vs", other]);
        }
        if name == "direct" {
            if has_fio {
                args.extend(["--vs", "fio@direct"]);
            } else {
                println!("ci: without the disk's own limit: fio is missing (apt-get install fio)");
            }
        }
        args.extend(options);
        cargo(&args)?;
    }
    Ok(())
}
