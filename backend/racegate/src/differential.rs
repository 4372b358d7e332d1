//! `racegate differential`: the engine against a real kernel.
//!
//! In: a kernel, how many lists, a seed. Out: progress on standard error; figures and the shrunk
//! lists that differ on standard output, or JSON: `{"schema":1, "kernel", "variant", "mutant",
//! "seed", "ops", "shapes":[{"geometry", "lists", "operations", "told", "known", "differing",
//! "findings":[{"list", "map", "failure":{"step", "differences", "rows", "known"}}], "e2fsck",
//! "seconds"}]}`.
//! Must not know: how lists are drawn, run, compared or shrunk.
//!
//! Exit status: 0 nothing differs, 1 something does, 2 the comparison could not be carried out.

mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use campaign::cache::Cache;
use campaign::differential::{self, Lists, Order, Report, Shape};
use campaign::kernels::{Kernels, Spec};
use campaign::qemu::Qemu;
use campaign::{interrupt, setup};
use clap::ValueEnum;
use delalloc::{Kernel, Mutant};

/// Arguments of `racegate differential`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exit status: 0 nothing differs, 1 something does, 2 usage or error")]
pub struct Args {
    /// Kernel to run: a name that `racegate kernels list` shows, a Debian package, or the path of
    /// a bzImage
    #[arg(long, value_name = "K")]
    kernel: String,
    /// Folder with the modules of a kernel that is given by path
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// Kernel version that the engine models; that of the kernel if left out
    #[arg(long, value_name = "V")]
    variant: Option<String>,
    /// Historical bug to turn back on in the engine: the comparison must notice
    #[arg(long, value_name = "M")]
    mutant: Option<String>,
    /// File systems to compare on
    #[arg(long, value_enum, default_value_t = Geometry::All)]
    geometry: Geometry,
    /// Lists, shared evenly by the file systems
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    lists: u32,
    /// Operations in a list
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    ops: u32,
    /// Seed of every list
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Run this list only: with the same seed it is what it was before
    #[arg(long, value_name = "N", conflicts_with = "lists")]
    list: Option<u32>,
    /// Another QEMU than that of the machine
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Write JSON to this file, or to standard output for `-`, in place of the text
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A file system, or all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Geometry {
    /// Blocks as long as a page
    #[value(name = "4k")]
    Blocks4k,
    /// Four blocks in a page
    #[value(name = "1k")]
    Blocks1k,
    /// Blocks as long as a page, four in a cluster
    Bigalloc,
    /// All of them
    All,
}

impl Geometry {
    fn shapes(self) -> Vec<Shape> {
        match self {
            Geometry::Blocks4k => vec![Shape::Blocks4k],
            Geometry::Blocks1k => vec![Shape::Blocks1k],
            Geometry::Bigalloc => vec![Shape::Bigalloc],
            Geometry::All => Shape::ALL.to_vec(),
        }
    }
}

/// Carries out `racegate differential`.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    interrupt::install().context("Could not take over the interrupt signals")?;
    let variant = variant(args)?;
    let cache = Cache::open()?;
    let installed = setup::ensure(true, &cache)?;
    if !installed.is_empty() {
        eprintln!("installed: {}", installed.join(", "));
    }
    let spec = Spec::parse(&args.kernel, args.modules.as_deref())?;
    let kernel = Kernels::new(&cache).fetch(&spec)?;
    let qemu = match &args.qemu {
        Some(path) => Qemu::at(path)?,
        None => Qemu::find(&cache)?,
    };
    let accel = qemu.accel()?;
    let shapes = args.geometry.shapes();
    let numbers = match args.list {
        Some(list) => list..list.checked_add(1).context("--list is too large")?,
        None => 0..args.lists.div_ceil(shapes.len() as u32),
    };
    let order = Order {
        kernel,
        variant,
        qemu,
        accel,
        cache,
        shapes,
        lists: Lists::Drawn { numbers, ops: args.ops },
        seed: args.seed,
    };
    let mut meter = show::Meter::new(&order);
    let report = differential::run(&order, |shape, done, differing| {
        meter.update(shape, done, differing);
    })?;
    meter.finish();
    print(args, &order, &report)?;
    Ok(ExitCode::from(u8::from(report.differs())))
}

/// The engine's kernel: asked for, or of the same version as the kernel that runs.
fn variant(args: &Args) -> anyhow::Result<Kernel> {
    let same = args.kernel.strip_prefix("debian-").map(|version| format!("linux-{version}"));
    let variant = match (&args.variant, same) {
        (Some(name), _) => Kernel::find(name)?,
        (None, Some(name)) => Kernel::find(&name).with_context(|| {
            format!("The engine has no {name}; name the nearest version with --variant")
        })?,
        (None, None) => {
            bail!(
                "name the version of {} with --variant: {}",
                args.kernel,
                Kernel::NAMES.join(", ")
            )
        }
    };
    let mutant = args.mutant.as_deref().map(Mutant::find).transpose()?;
    Ok(mutant.map_or(variant, |mutant| variant.without(&mutant.flags())))
}

fn print(args: &Args, order: &Order, report: &Report) -> anyhow::Result<()> {
    if let Some(path) = &args.json {
        let json = serde_json::json!({
            "schema": 1,
            "kernel": order.kernel.name,
            "variant": order.variant.name(),
            "mutant": args.mutant,
            "seed": args.seed,
            "ops": args.ops,
            "shapes": report.shapes,
        });
        let text = format!("{json:#}\n");
        if path.as_os_str() == "-" {
            print!("{text}");
            return Ok(());
        }
        std::fs::write(path, text)
            .with_context(|| format!("Could not write {}", path.display()))?;
    }
    let mut out = std::io::stdout().lock();
    show::report(&mut out, &replay(args), order, report).context("Could not write the report")
}

/// The command that runs one list of a geometry again, up to their names.
fn replay(args: &Args) -> String {
    let path = |path: &PathBuf| path.display().to_string();
    let options = [
        ("modules", args.modules.as_ref().map(path)),
        ("variant", args.variant.clone()),
        ("mutant", args.mutant.clone()),
        ("qemu", args.qemu.as_ref().map(path)),
        ("ops", Some(args.ops.to_string())),
        ("seed", Some(args.seed.to_string())),
    ];
    let given =
        options.into_iter().filter_map(|(name, value)| Some(format!(" --{name} {}", value?)));
    format!("racegate differential --kernel {}{}", args.kernel, given.collect::<String>())
}
