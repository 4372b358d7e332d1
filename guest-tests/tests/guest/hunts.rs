//! Goal: a hunt finds the founding bug, of which the grammar knows nothing, and finds nothing on a
//! kernel without it.
//! Method: the part of the grammar in which the later operation is a store into a hole that another
//! thread allocates, every request tried; the whole grammar takes longer than a test may.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use campaign::hunt::{self, Format, Memory, Operation, Settings, State};
use libtest_mimic::Trial;

use crate::machine::{Machine, Which};

const SEED: u64 = 2;
/// Requests that are held come first: each twice, and some more.
const TRIALS: u32 = 26;
const LIMIT: Duration = Duration::from_secs(240);
const KERNELS: [(&str, bool); 2] = [("debian-5.10.223", true), ("debian-5.10.262", false)];

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    let test = |(kernel, affected)| {
        let name = format!("hunts::{kernel}");
        machine.test(&name, Which::Own, move |machine| hunted(machine, kernel, affected))
    };
    KERNELS.into_iter().map(test).collect()
}

fn hunted(machine: &Machine, kernel: &str, affected: bool) -> Result<()> {
    let mut order = machine.campaign(hunt::any_plan(Format::Extents)?, [kernel], 1)?;
    order.seed = SEED;
    let settings = Settings {
        format: Format::Extents,
        states: vec![State::Hole],
        earlier: vec![Operation::Allocate],
        later: vec![Operation::Store],
        trials: Some(TRIALS),
        deadline: Some(Instant::now() + LIMIT),
        smaller: false,
    };
    let mut memory = Memory::default();
    let found = hunt::run(&order, &order.kernels[0], &settings, &mut memory, &|_| ())?;
    let replay = format!(
        "repeat with: cargo racegate hunt --kernel {kernel} --state hole --earlier allocate --later \
         store --trials {TRIALS} --seed {SEED} --as-found --memory none.json"
    );
    ensure!(memory.open() > 0, "no window has opened in {} trials; {replay}", memory.trials());
    let founding = found.iter().any(|found| found.rule == "A4" && found.hits >= 8);
    ensure!(founding == affected, "{found:?}; {replay}");
    ensure!(affected || found.is_empty(), "{found:?}; {replay}");
    Ok(())
}
