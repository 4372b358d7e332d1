//! Goal: a delay of a page is as long as the rule says, as the guest sees it, and stops one
//! processor alone.
//! Method: `racegate latency`'s own measurement. Only relations are asserted, as times belong to
//! the machine: no page comes before its delay is over, longer delays take longer, most of a long
//! delay is the delay, and a processor that counts keeps its speed while the other one waits.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use campaign::device::Device;
use campaign::latency::{self, What};
use libtest_mimic::Trial;

use crate::machine::{Machine, Which};

const KERNEL: &str = "debian-6.12.107";
/// Of the other processor's speed. It keeps all of it where the host has two for the guest; one
/// that waits too would be left with next to nothing.
const LEAST_RATIO: f64 = 0.5;

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    [Device::Nvdimm, Device::VirtioPmem]
        .into_iter()
        .map(|device| {
            let name = format!("pmem_latency::{device}");
            machine.test(&name, Which::Own, move |machine| measured(machine, device))
        })
        .collect()
}

fn measured(machine: &Machine, device: Device) -> Result<()> {
    let mut config = machine.guest(Which::Own, KERNEL, &machine.image(64)?)?;
    config.backend.device = device;
    config.programs.clear();
    let report = latency::measure(&config)?;
    let mut before = 0;
    for (us, largest) in [(0, None), (100, None), (1000, Some(3.0)), (10_000, Some(1.5))] {
        let delay = Duration::from_micros(us);
        let row = report.row(What::Fault(delay)).context("a row for each delay")?;
        let (first, median) = (row.quantile_ns(0.0), row.quantile_ns(0.5));
        ensure!(
            u128::from(first) >= delay.as_nanos(),
            "a page came after {first} ns instead of {delay:?}"
        );
        ensure!(median > before, "{delay:?} took {median} ns, a shorter delay {before} ns");
        let ratio = median as f64 / delay.as_nanos().max(1) as f64;
        ensure!(largest.is_none_or(|largest| ratio < largest), "{delay:?} took {median} ns");
        before = median;
    }
    let flushed = report.rows.iter().find_map(|row| match row.what {
        What::Flush(delay) => Some((delay, row.quantile_ns(0.0))),
        _ => None,
    });
    match (device, flushed) {
        (Device::Nvdimm, flushed) => ensure!(flushed.is_none(), "an NVDIMM was flushed"),
        (_, flushed) => {
            let (delay, first) = flushed.context("a row for flushes")?;
            ensure!(
                u128::from(first) >= delay.as_nanos(),
                "a flush took {first} ns instead of {delay:?}"
            );
        }
    }
    let ratio = report.other.ratio();
    ensure!(ratio >= LEAST_RATIO, "the other processor has {ratio:.2} of its speed: {report:?}");
    Ok(())
}
