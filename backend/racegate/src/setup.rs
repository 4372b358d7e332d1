//! `racegate setup`: sees to it that the programs that racegate runs are installed.
//!
//! In: arguments. Out: what is there, what was installed, or the line to type.
//! Must not know: how packages are installed.

use std::process::ExitCode;

use anyhow::Context as _;
use campaign::cache::Cache;
use campaign::qemu::Qemu;
use campaign::{interrupt, setup};

/// Arguments of `racegate setup`.
#[derive(Clone, Copy, clap::Args)]
pub struct Args {
    /// Install nothing; print the line to type if something is missing
    #[arg(long)]
    no_install: bool,
    /// Also what `racegate kernels build` needs
    #[arg(long)]
    kernel_build: bool,
    /// Also what `cargo ci fuzz` needs
    #[arg(long)]
    fuzz: bool,
}

/// Carries out `racegate setup`.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { no_install, kernel_build, fuzz } = args;
    interrupt::install().context("Could not take over the interrupt signals")?;
    let cache = Cache::open()?;
    let mut installed = setup::ensure(!no_install, &cache)?;
    let more = [(kernel_build, setup::BUILD_NEEDS), (fuzz, setup::FUZZ_NEEDS)];
    let wanted = more.iter().filter(|(wanted, _)| *wanted);
    let more: Vec<_> = wanted.flat_map(|(_, needs)| *needs).copied().collect();
    installed.extend(setup::ensure_more(&more, !no_install)?);
    if !installed.is_empty() {
        println!("installed: {}", installed.join(", "));
    }
    for need in setup::NEEDS.iter().chain(&more) {
        println!("{:<20} {}", need.program, need.purpose);
    }
    let qemu = Qemu::find(&cache)?;
    let accel = qemu.accel()?;
    println!(
        "QEMU {} ({}) runs guests with {}",
        qemu.version(),
        qemu.program().display(),
        accel.name().to_uppercase()
    );
    Ok(ExitCode::SUCCESS)
}
