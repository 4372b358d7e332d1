//! From options to a finished campaign: setup, kernels, image, trials, report.
//!
//! In: a plan and [`Options`]. Out: the report, printed; the [`Campaign`].

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use campaign::cache::Cache;
use campaign::device::Device;
use campaign::image::{self, ImageSpec};
use campaign::isolation::Isolation;
use campaign::kernels::{Kernel, Kernels, Spec};
use campaign::plan::{Plan, RULES_ARM};
use campaign::qemu::Qemu;
use campaign::runner::{self, Campaign, Limits, Order, Outcome, RunError, TrialRecord, UntilSure};
use campaign::sequential::Sequential;
use campaign::store::Shard;
use campaign::{interrupt, report, setup};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::results;
use crate::report::Formats;

/// The file name that means standard output.
const STDOUT: &str = "-";

/// What both `campaign run` and `reproduce` can be told.
#[derive(clap::Args, Clone, Debug)]
// Each is a switch of the command line.
#[allow(clippy::struct_excessive_bools)]
pub struct Options {
    /// Trials per arm and kernel; the plan has a default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub trials: Option<u32>,
    /// Kernel to run on, may be repeated: a name that `racegate kernels list` shows, a Debian
    /// package, or the path of a bzImage; the plan has a default
    #[arg(long = "kernel", value_name = "NAME")]
    pub kernels: Vec<String>,
    /// Folder with the modules of a kernel that is given by path
    #[arg(long, value_name = "DIR")]
    pub modules: Option<PathBuf>,
    /// What the guest keeps its file system on
    #[arg(long, default_value = "blk", value_parser = device_parser())]
    pub device: Device,
    /// Which trials share a guest: "shared", all of a kernel; "fresh", none, each has a guest of its
    /// own with the disk in its first state. The plan says, if this does not
    #[arg(long, value_name = "KIND", value_parser = isolation_parser())]
    pub isolation: Option<Isolation>,
    /// Mount with `-o dax`: the guest's programs map the memory itself, and no allocation is
    /// delayed
    #[arg(long)]
    pub dax: bool,
    /// Virtual CPUs of each guest
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub vcpus: u32,
    /// Virtqueues of the disk
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub queues: u16,
    /// Run this arm of the plan only, may be repeated
    #[arg(long = "arm", value_name = "NAME")]
    pub arms: Vec<String>,
    /// Run this trial only, counted from 0: with the same seed it draws what it drew before
    #[arg(long, value_name = "N")]
    pub trial: Option<u32>,
    /// Seed of every random draw; drawn from the clock if not given
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Guests that run side by side; default: one per host processor, at most one per kernel
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Follow what the kernel does in memory with probes, and tell what it gets wrong when it does
    #[arg(long)]
    pub shadow: bool,
    /// Run this part of the trials only, INDEX of COUNT ("2/8"); needs --seed, the same for all.
    /// `racegate merge` puts the parts together
    #[arg(long, value_name = "INDEX/COUNT", value_parser = shard, requires = "seed", conflicts_with = "trial")]
    pub shard: Option<Shard>,
    /// Stop after this long ("10m"), with what is known by then
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub budget: Option<Duration>,
    /// Stop a kernel as soon as its verdict is certain: wrong with at most this probability
    #[arg(long, value_name = "ERROR", num_args = 0..=1, default_missing_value = "0.01", value_parser = results::probability)]
    pub until_sure: Option<f64>,
    /// Go on where the newest campaign with the same plan, kernels and options stopped; a new one
    /// if there is none
    #[arg(long)]
    pub resume: bool,
    /// Go on with the other kernels when one does not boot or its guest fails again and again
    #[arg(long)]
    pub keep_going: bool,
    /// Database of results; default: racegate/results.db in $XDG_STATE_HOME or ~/.local/state
    #[arg(long, value_name = "FILE")]
    pub db: Option<PathBuf>,
    /// Another QEMU than that of the machine
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// Write the report as JSON to FILE ("-" is standard output, in place of the text)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Reports besides the text.
    #[command(flatten)]
    pub formats: Formats,
    /// Keep consoles, event logs and trials, and say where they are
    #[arg(long)]
    pub keep: bool,
}

impl Options {
    /// What `campaign run` has without any option.
    pub(crate) fn for_replay() -> Options {
        #[derive(clap::Parser)]
        struct Bare {
            #[command(flatten)]
            options: Options,
        }
        <Bare as clap::Parser>::parse_from(["replay"]).options
    }
}

/// Takes the names of [`Device`]s, and lists them in help and errors.
fn device_parser() -> impl TypedValueParser<Value = Device> {
    PossibleValuesParser::new(Device::ALL.map(Device::name))
        .map(|name| Device::parse(&name).unwrap_or_default())
}

/// Takes the names of [`Isolation`], and lists them in help and errors.
fn isolation_parser() -> impl TypedValueParser<Value = Isolation> {
    PossibleValuesParser::new(Isolation::ALL.map(Isolation::name))
        .map(|name| Isolation::parse(&name).unwrap_or_default())
}

/// `INDEX/COUNT`, from `1/1` on.
fn shard(text: &str) -> Result<Shard, String> {
    let parts = text
        .split_once('/')
        .and_then(|(index, of)| Some(Shard { index: index.parse().ok()?, of: of.parse().ok()? }));
    let is_one = |shard: &Shard| (1..=shard.of).contains(&shard.index);
    parts.filter(is_one).ok_or_else(|| "give INDEX/COUNT, such as 1/8 to 8/8".to_owned())
}

/// A campaign that ran to its end.
pub(crate) struct Finished {
    /// The plan.
    pub(crate) plan: Plan,
    /// What came out.
    pub(crate) campaign: Campaign,
}

/// Runs a plan and reports. `command` is what the operator typed so far, for the line that
/// replays a failure.
pub(crate) fn run_plan(plan: Plan, options: &Options, command: &str) -> anyhow::Result<Finished> {
    let (mut order, cache) = prepare(plan, options)?;
    order.kernels = kernels(&order.plan, options, &cache)?;
    order.limits.until_sure = options.until_sure.map(|error| UntilSure {
        arm: RULES_ARM.to_owned(),
        test: Sequential::new(order.plan.rate_if_affected, error),
        at_least: 0,
    });
    let asked = names(&order.kernels);
    results::attach(&mut order, options, &asked)?;
    eprintln!(
        "plan {}{}: {} on {}{}, QEMU {} ({}), {} vCPU{}, seed {}",
        order.plan.name,
        options.shard.map_or_else(String::new, |s| format!(", shard {} of {}", s.index, s.of)),
        names(&order.kernels),
        order.device,
        if options.dax { " with -o dax" } else { "" },
        order.qemu.version(),
        order.accel.name(),
        order.vcpus,
        if order.isolation.is_shared() { "" } else { ", a guest for each trial" },
        order.seed,
    );
    order.limits.deadline = options.budget.map(|budget| Instant::now() + budget);
    let outcome = run_with_progress(&order);
    if let Some(keep) = &order.keep {
        eprintln!("consoles, event logs and trials are kept in {}", keep.display());
    }
    let campaign = match outcome {
        Ok(campaign) => campaign,
        Err(error) => {
            results::how_to_resume(&order, options);
            return Err(replayable(error, &order, options, command));
        }
    };
    results::conclude(&order, &campaign)?;
    print(&campaign, options.json.as_deref())?;
    results::report(&order, &options.formats)?;
    Ok(Finished { plan: order.plan, campaign })
}

/// Everything of an order but kernels and results: what must be installed is, and the base image
/// is made.
pub(crate) fn prepare(mut plan: Plan, options: &Options) -> anyhow::Result<(Order, Cache)> {
    if options.dax {
        // A label-less NVDIMM is a raw namespace, for which the kernel makes no page structs.
        if !matches!(options.device, Device::VirtioPmem | Device::VhostUserPmem) {
            bail!(
                "--dax does not go with {}: only memory with page structs can be mapped; take \
                 --device virtio-pmem or --device vhost-user-pmem",
                options.device
            );
        }
        plan.mount_with("dax");
    }
    interrupt::install().context("Could not take over the interrupt signals")?;
    let cache = Cache::open()?;
    let installed = setup::ensure(true, &cache)?;
    if !installed.is_empty() {
        eprintln!("installed: {}", installed.join(", "));
    }
    let qemu = match &options.qemu {
        Some(path) => Qemu::at(path)?,
        None if options.device == Device::VhostUserPmem => Qemu::with_vhost_user_pmem(&cache)?,
        None => Qemu::find(&cache)?,
    };
    let accel = qemu.accel()?;
    let spec = ImageSpec { bytes: plan.filesystem.bytes, mkfs: plan.filesystem.mkfs.clone() };
    let seed = options.seed.unwrap_or_else(seed_from_clock);
    let keep = options.keep.then(|| keep_folder(&plan, seed)).transpose()?;
    let order = Order {
        device: options.device,
        isolation: options.isolation.unwrap_or(plan.guest.isolation),
        image: image::base(&cache, &spec)?,
        trials: options.trials.unwrap_or(plan.trials),
        plan,
        kernels: Vec::new(),
        accel,
        vcpus: options.vcpus,
        queues: options.queues,
        only_trial: options.trial,
        only_arms: options.arms.clone(),
        seed,
        keep,
        shadow: options.shadow,
        jobs: options
            .jobs
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        qemu,
        limits: Limits { shard: options.shard, ..Limits::default() },
    };
    Ok((order, cache))
}

/// The kernels that were asked for, or those that the plan names.
pub(crate) fn kernels(
    plan: &Plan,
    options: &Options,
    cache: &Cache,
) -> anyhow::Result<Vec<Kernel>> {
    let known = plan.kernels.affected.iter().chain(&plan.kernels.fixed);
    let names: Vec<&String> =
        if options.kernels.is_empty() { known.collect() } else { options.kernels.iter().collect() };
    if names.is_empty() {
        bail!("plan {} names no kernels; give --kernel NAME", plan.name);
    }
    let store = Kernels::new(cache);
    names
        .into_iter()
        .map(|name| Ok(store.fetch(&Spec::parse(name, options.modules.as_deref())?)?))
        .collect()
}

fn run_with_progress(order: &Order) -> Result<Campaign, RunError> {
    let arms =
        if order.only_arms.is_empty() { order.plan.arms.len() } else { order.only_arms.len() };
    let trials = if order.only_trial.is_some() { 1 } else { order.limits.of(order.trials) };
    let trials = trials * (order.limits.again as usize + 1);
    let bar = ProgressBar::new((arms * trials * order.kernels.len()) as u64);
    // A constant; the default style serves if it were wrong.
    if let Ok(style) =
        ProgressStyle::with_template("{bar:24} {pos}/{len} [{elapsed}, {eta} left] {msg}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    // Without a terminal the bar shows nothing; then every tenth round is a line.
    let lines = !std::io::stderr().is_terminal();
    let counts: Mutex<Vec<(String, u32, u32)>> = Mutex::default();
    let campaign = runner::run(order, &|record: &TrialRecord| {
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let key = format!("{} {}", record.kernel, record.arm);
        if !counts.iter().any(|(known, ..)| *known == key) {
            counts.push((key.clone(), 0, 0));
        }
        for (known, hits, done) in counts.iter_mut() {
            if *known == key {
                *hits += u32::from(matches!(record.outcome, Outcome::Hit { .. }));
                *done += 1;
            }
        }
        let so_far = counts.iter().map(|(key, hits, done)| format!("{key} {hits}/{done}"));
        let so_far = so_far.collect::<Vec<_>>().join(", ");
        bar.inc(1);
        if lines && bar.position().is_multiple_of(30) {
            let (of, left) = (bar.length().unwrap_or_default(), HumanDuration(bar.eta()));
            eprintln!("{}/{of}, {left:#} left: {so_far}", bar.position());
        }
        bar.set_message(so_far);
    });
    bar.finish_and_clear();
    campaign
}

/// Runs one trial of one arm on one kernel that many times; results are not stored.
pub(crate) fn run_again(plan: Plan, options: &Options, times: u32) -> anyhow::Result<Campaign> {
    let (mut order, cache) = prepare(plan, options)?;
    order.kernels = kernels(&order.plan, options, &cache)?;
    order.limits.again = times.saturating_sub(1);
    order.limits.deadline = options.budget.map(|budget| Instant::now() + budget);
    let campaign = run_with_progress(&order);
    if let Some(keep) = &order.keep {
        eprintln!("consoles, event logs and trials are kept in {}", keep.display());
    }
    Ok(campaign?)
}

/// Adds the one command that runs the failed trial again.
fn replayable(error: RunError, order: &Order, options: &Options, command: &str) -> anyhow::Error {
    let (kernel, what) = match &error {
        RunError::Guest { kernel, arm, trial, .. } => {
            (kernel, format!(" --arm {arm} --trial {trial}"))
        }
        RunError::Boot { kernel, .. } => (kernel, " --trials 1".to_owned()),
        _ => return error.into(),
    };
    // As it was asked for: the name in the table may be that of a path, shortened.
    let index = order.kernels.iter().position(|known| known.name == *kernel);
    let given = index.and_then(|index| options.kernels.get(index)).unwrap_or(kernel);
    let modules = options.modules.as_ref();
    let modules = modules.map_or_else(String::new, |path| format!(" --modules {}", path.display()));
    let line = format!(
        "{command} --kernel {given}{modules}{what} --seed {} --device {}{}{} --vcpus {} \
         --queues {} --keep",
        order.seed,
        order.device,
        if options.dax { " --dax" } else { "" },
        options.isolation.map_or_else(String::new, |kind| format!(" --isolation {kind}")),
        order.vcpus,
        order.queues
    );
    let error = anyhow::Error::new(error);
    anyhow::anyhow!("{error:#}\nrepeat with: {line}")
}

fn print(campaign: &Campaign, json: Option<&Path>) -> anyhow::Result<()> {
    if let Some(path) = json {
        write_json(&report::json(campaign), path)?;
    }
    if json != Some(Path::new(STDOUT)) {
        let text = report::text(campaign);
        std::io::stdout().write_all(text.as_bytes()).context("Could not write the report")?;
    }
    Ok(())
}

/// Writes JSON to a file, or to standard output for `-`.
pub(crate) fn write_json(value: &serde_json::Value, path: &Path) -> anyhow::Result<()> {
    let text = format!("{value:#}\n");
    if path == Path::new(STDOUT) {
        std::io::stdout().write_all(text.as_bytes()).context("Could not write the report")
    } else {
        fs::write(path, text).with_context(|| format!("Could not write {}", path.display()))
    }
}

fn keep_folder(plan: &Plan, seed: u64) -> anyhow::Result<PathBuf> {
    Ok(std::env::current_dir()?.join(format!("racegate-{}-{seed}", plan.name)))
}

fn names(kernels: &[Kernel]) -> String {
    kernels.iter().map(|kernel| kernel.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// A seed that is short enough to type.
pub(super) fn seed_from_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ (now.as_secs() & 0xffff_ffff)
}
