//! Goal: whoever reads around a page that a rule is about does not touch it.
//! Method: QEMU asks for huge pages, so the first touch of a page of its memory brings in 2 MiB
//! around it, one page at a time. A guest reads the neighbour of a page with a rule: the events
//! must show that others came with it, and the rule must not have fired. Then it reads the page.

use std::time::Duration;

use agent::wire::{Op, Thread, Trial as Order, Workload};
use anyhow::{Context, Result, ensure};
use campaign::device::Device;
use campaign::guest::{Guest, Observed};
use libtest_mimic::Trial;
use pipeline::{Op as Asked, RuleSet, What};

use crate::machine::{Machine, Which, boot, fired};

const KERNEL: &str = "debian-6.12.107";
const PAGE: u64 = 4096;
/// The page with a rule: in the middle of the memory, and of what is read around.
const ARMED: u64 = (32 << 20) / PAGE + 77;
const NEIGHBOUR: u64 = ARMED - 5;
const RULE: &str = "armed";
const DELAY: Duration = Duration::from_millis(20);
/// Pages that come with the neighbour, at least. Without huge pages there is none.
const FEW: usize = 100;
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    [Device::Nvdimm, Device::VirtioPmem]
        .into_iter()
        .map(|device| {
            let name = format!("pmem_pages::read_around_is_no_touch::{device}");
            machine.test(&name, Which::Own, move |machine| read_around(machine, device))
        })
        .collect()
}

fn read_around(machine: &Machine, device: Device) -> Result<()> {
    let mut config = machine.guest(Which::Own, KERNEL, &machine.image(64)?)?;
    config.backend.device = device;
    let mut guest = boot(&config)?;
    let (first, end) = (ARMED * PAGE / 512, (ARMED + 1) * PAGE / 512);
    let rules = format!(
        "[[rule]]\nname = '{RULE}'\nmatch = {{ op = 'fault', sector = '{first}..{end}' }}\n\
         action = {{ delay = '{}ms' }}\n",
        DELAY.as_millis()
    );
    guest.load(&RuleSet::parse(&rules, "pmem_pages")?)?;

    let (_, observed) = read(&mut guest, 1, NEIGHBOUR)?;
    let is_fault = |what: &What| matches!(what, What::Request { op: Asked::Fault, .. });
    let came = observed.events.iter().filter(|event| is_fault(&event.what)).count();
    ensure!(came >= FEW, "only {came} pages came with the neighbour: nobody reads around");
    ensure!(fired(&mut guest, RULE)? == 0, "the page was taken for touched by who read around it");

    let (took, _) = read(&mut guest, 2, ARMED)?;
    ensure!(took >= DELAY, "the page came after {took:?}");
    ensure!(fired(&mut guest, RULE)? == 1, "fired {} times", fired(&mut guest, RULE)?);
    guest.shutdown()?;
    Ok(())
}

/// Reads a page past the guest's page cache, and tells how long that took.
fn read(guest: &mut Guest, trial: u64, page: u64) -> Result<(Duration, Observed)> {
    let read = Op::TimeReads {
        path: "/dev/{disk}".into(),
        offset: page * PAGE,
        step: 0,
        count: 1,
        pause_us: 0,
        name: "took".into(),
    };
    let thread = Thread { name: "reader".into(), ops: vec![read], ..Thread::default() };
    let workload = Workload { threads: vec![thread], ..Workload::default() };
    let observed = guest.run(Order { trial, seed: 1, workload }, LIMIT)?;
    ensure!(observed.result.error.is_none(), "{:?}", observed.result.error);
    let took = observed.result.values.get("took").context("a time")?.parse()?;
    Ok((Duration::from_nanos(took), observed))
}
