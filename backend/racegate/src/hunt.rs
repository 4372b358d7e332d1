//! `racegate hunt`: plans from a grammar, tried on one kernel; what the shadows find becomes a plan.
//!
//! In: a kernel and limits. Out: progress on standard error, plans in a folder, JSON, what was
//! learned in a file, an exit status.
//! Must not know: the grammar's plans, which case is next.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use campaign::hunt::{self, Format, Found, Memory, Operation, Progress, Settings, State};
use campaign::plan::Plan;
use campaign::store::Store;
use campaign::{interrupt, progress};
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::campaign::{Options, kernels, prepare, write_json};

/// Arguments of `racegate hunt`. Exit status: 0 nothing was found, 1 something was, 2 the hunt
/// could not go on, 130 interrupted.
#[derive(clap::Args)]
pub struct Args {
    /// Kernel: a name that `racegate kernels list` shows, a Debian package, or the path of a bzImage
    #[arg(long, value_name = "NAME")]
    kernel: String,
    /// Folder with the modules of a kernel that is given by path
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// How the file system is made
    #[arg(long, default_value = "extents", value_parser = of(Format::ALL, |of| of.name()))]
    format: Format,
    /// Take files in this state only, may be repeated
    #[arg(long, value_parser = of(State::ALL, |of| of.name()))]
    state: Vec<State>,
    /// Take this for the earlier operation only, may be repeated
    #[arg(long, value_parser = of(Operation::ALL, |of| of.name()))]
    earlier: Vec<Operation>,
    /// Take this for the later operation only, may be repeated
    #[arg(long, value_parser = of(Operation::ALL, |of| of.name()))]
    later: Vec<Operation>,
    /// Stop trying new cases after this long; the last finding is still tried again and made
    /// smaller, which can take minutes
    #[arg(long, default_value = "10m", value_name = "TIME", value_parser = humantime::parse_duration)]
    budget: Duration,
    /// Stop after so many trials
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    trials: Option<u32>,
    /// Seed of every random draw; drawn from the clock if not given
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Save what is found as it is, and do not make it smaller
    #[arg(long)]
    as_found: bool,
    /// Write plans of findings into this folder
    #[arg(long, value_name = "DIR", default_value = "racegate-hunt")]
    save: PathBuf,
    /// What earlier hunts learned, read and written; default: racegate/hunt-KERNEL-FORMAT.json in
    /// $`XDG_STATE_HOME` or ~/.local/state
    #[arg(long, value_name = "FILE")]
    memory: Option<PathBuf>,
    /// Another QEMU than that of the machine
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Write findings as JSON to FILE ("-" is standard output, in place of the text)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Carries out `racegate hunt`.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let file = memory_file(args)?;
    let mut memory = read(&file)?;
    let (mut order, cache) = prepare(hunt::any_plan(args.format)?, &options(args))?;
    order.kernels = kernels(&order.plan, &options(args), &cache)?;
    let kernel = order.kernels.first().context("no kernel")?.clone();
    fs::create_dir_all(&args.save)
        .with_context(|| format!("Could not make {}", args.save.display()))?;
    eprintln!(
        "hunt on {}, {}, seed {}; {} trials are known from {}",
        kernel.name,
        args.format.name(),
        order.seed,
        memory.trials(),
        file.display()
    );
    let settings = Settings {
        format: args.format,
        states: args.state.clone(),
        earlier: args.earlier.clone(),
        later: args.later.clone(),
        trials: args.trials,
        deadline: Some(Instant::now() + args.budget),
        smaller: !args.as_found,
    };
    let bar = progress::bar("hunt");
    let (began, made) = (Instant::now(), Cell::new(0_u32));
    let plans = RefCell::new(Vec::new());
    let tell = |step: &Progress<'_>| match step {
        Progress::Trial(case, _, memory) => {
            made.set(made.get() + 1);
            bar.set_message(format!(
                "{} trials, {} windows, {} behaviours, {} left: {}",
                made.get(),
                memory.open(),
                memory.behaviours(),
                humantime::format_duration(Duration::from_secs(
                    args.budget.saturating_sub(began.elapsed()).as_secs()
                )),
                case.name(args.format)
            ));
        }
        other => {
            bar.suspend(|| eprintln!("{}", line(other, args.format)));
            // At once: what ends the hunt later does not lose it.
            if let Progress::Found(found) = other {
                plans.borrow_mut().push(save(&args.save, found));
            }
        }
    };
    let found = hunt::run(&order, &kernel, &settings, &mut memory, &tell);
    bar.finish_and_clear();
    // What was learned is kept, whatever ended the hunt.
    write(&file, &memory)?;
    let found = found?;
    let plans = plans.into_inner().into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    report(args, &found, &plans, made.get(), began.elapsed(), &memory)?;
    Ok(match (interrupt::requested(), found.is_empty()) {
        (true, _) => ExitCode::from(interrupt::EXIT_CODE as u8),
        (false, empty) => ExitCode::from(u8::from(!empty)),
    })
}

/// Takes the names of a list of choices, and lists them in help and errors.
fn of<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(&T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(all.iter().map(name)).try_map(move |text| {
        all.iter().find(|of| name(of) == text).copied().ok_or("no such choice")
    })
}

fn options(args: &Args) -> Options {
    let mut options = Options::for_replay();
    options.kernels = vec![args.kernel.clone()];
    options.modules.clone_from(&args.modules);
    options.seed = args.seed;
    options.qemu.clone_from(&args.qemu);
    options
}

fn memory_file(args: &Args) -> anyhow::Result<PathBuf> {
    if let Some(file) = &args.memory {
        return Ok(file.clone());
    }
    let kernel = campaign::cache::file_name(&args.kernel);
    Ok(Store::usual_path()?.with_file_name(format!("hunt-{kernel}-{}.json", args.format.name())))
}

/// Nothing is known if there is no such file.
fn read(file: &Path) -> anyhow::Result<Memory> {
    match fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
            format!("{} is not what a hunt has learned; give another --memory", file.display())
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Memory::default()),
        Err(error) => Err(error).with_context(|| format!("Could not read {}", file.display())),
    }
}

/// Written beside and renamed, so that a crash leaves the old one.
fn write(file: &Path, memory: &Memory) -> anyhow::Result<()> {
    let write = || {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        let new = file.with_extension("new");
        fs::write(&new, serde_json::to_vec(memory)?)?;
        fs::rename(new, file)
    };
    write().with_context(|| format!("Could not write {}", file.display()))
}

/// Saves a plan under its name; one that is there already is another hunt's, and stays.
fn save(folder: &Path, found: &Found) -> anyhow::Result<PathBuf> {
    let name = Plan::parse(&found.plan, "found")?.name;
    let files = (1..).map(|number| match number {
        1 => folder.join(format!("{name}-{}.toml", found.rule)),
        number => folder.join(format!("{name}-{}-{number}.toml", found.rule)),
    });
    let path = files.into_iter().find(|path| !path.exists()).context("no free name")?;
    fs::write(&path, &found.plan).with_context(|| format!("Could not write {}", path.display()))?;
    Ok(path)
}

fn line(step: &Progress<'_>, format: Format) -> String {
    match step {
        Progress::Trial(case, ..) => case.name(format),
        Progress::Suspect(case, rule) => format!("{rule}? {}", case.summary()),
        Progress::Found(found) => {
            let smaller = if found.smaller { ", made smaller" } else { "" };
            format!("{} {}/{}{smaller}", found.rule, found.hits, found.trials)
        }
        Progress::Gone(_, rule) => format!("{rule} was not seen again"),
        Progress::Failed(case, error) => {
            format!("the guest failed in {}: {error}", case.name(format))
        }
    }
}

fn report(
    args: &Args,
    found: &[Found],
    plans: &[PathBuf],
    made: u32,
    took: Duration,
    memory: &Memory,
) -> anyhow::Result<()> {
    if let Some(path) = &args.json {
        let value = serde_json::json!({
            "schema": 1, "kernel": args.kernel, "format": args.format.name(), "trials": made,
            "seconds": took.as_secs_f64(), "windows": memory.open(),
            "behaviours": memory.behaviours(), "found": found, "plans": plans,
        });
        write_json(&value, path)?;
    }
    if args.json.as_deref() != Some(Path::new("-")) {
        for (found, plan) in found.iter().zip(plans) {
            println!("{} {}/{} {}", found.rule, found.hits, found.trials, found.case.summary());
            println!("  first in trial {} after {:.0} s", found.trial, found.after_seconds);
            println!("  {}", found.text.lines().next().unwrap_or_default());
            println!("  {}", plan.display());
        }
        println!(
            "{}: {} findings in {made} trials ({:.0} s), {} windows open, {} ways to behave",
            args.kernel,
            found.len(),
            took.as_secs_f64(),
            memory.open(),
            memory.behaviours()
        );
    }
    Ok(())
}
