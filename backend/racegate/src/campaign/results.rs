//! Where the results of a campaign are kept, and going on with them.
//!
//! In: an order and options. Out: an order whose results are stored, from where it stopped before;
//! a list of what is stored.
//! Must not know: how a database looks.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use campaign::device::Device;
use campaign::interrupt;
use campaign::isolation::Isolation;
use campaign::plan::Plan;
use campaign::runner::{Campaign, Order};
use campaign::store::{Ordered, Store, StoredTrial, Summary};
use serde::{Deserialize, Serialize};

use super::Options;
use super::jobs::quote;
use crate::report::{self, Formats};

/// Everything that decides what a trial is; as JSON it tells campaigns apart.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// The text of the plan's file.
    pub(crate) plan: String,
    /// The kernels as they were asked for, or the series.
    pub(crate) kernels: String,
    /// Folder of modules of a kernel that was given by path.
    pub(crate) modules: Option<PathBuf>,
    /// What the guest keeps its file system on.
    pub(crate) device: String,
    /// Which trials share a guest. Left out where all do, as in the results of an older racegate.
    #[serde(default, skip_serializing_if = "Isolation::is_shared")]
    pub(crate) isolation: Isolation,
    pub(crate) dax: bool,
    pub(crate) vcpus: u32,
    pub(crate) queues: u16,
    pub(crate) arms: Vec<String>,
    pub(crate) shadow: bool,
    pub(crate) qemu: Option<PathBuf>,
}

/// A number above 0 and below 1.
pub(crate) fn probability(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number < 1.0 => Ok(number),
        _ => Err("give a probability above 0 and below 1, such as 0.01".to_owned()),
    }
}

/// Has the results of `order` stored; with `--resume`, takes over those of before, and their seed.
/// `kernels` names the kernels.
pub(crate) fn attach(order: &mut Order, options: &Options, kernels: &str) -> anyhow::Result<()> {
    // One trial that is looked at again is no campaign.
    if order.only_trial.is_some() {
        return Ok(());
    }
    let store = match open(options.db.as_deref()) {
        Ok(store) => store,
        // Results on the screen are better than none.
        Err(error) if options.db.is_none() && !options.resume => {
            eprintln!("results are not kept: {error:#}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let settings = serde_json::to_string(&Settings {
        plan: order.plan.source.clone(),
        kernels: kernels.to_owned(),
        modules: options.modules.clone(),
        device: order.device.name().to_owned(),
        isolation: order.isolation,
        dax: options.dax,
        vcpus: order.vcpus,
        queues: order.queues,
        arms: order.only_arms.clone(),
        shadow: order.shadow,
        qemu: options.qemu.clone(),
    })?;
    let ordered =
        Ordered { trials: order.trials, sure: options.until_sure, shard: order.limits.shard };
    if options.resume {
        match store.resume(&settings, options.seed)? {
            Some((running, seed)) => {
                order.seed = seed;
                order.limits.earlier = running.earlier()?;
                let trials = order.limits.earlier.trials.len();
                eprintln!(
                    "going on with campaign {}: {trials} trials are there",
                    running.campaign()
                );
                running.ordered(&ordered)?;
                order.limits.results = Some(running);
                return Ok(());
            }
            None => eprintln!("no campaign with these settings is there; this one is new"),
        }
    }
    let running = store.begin(&order.plan.name, order.seed, &settings, &command_line())?;
    running.ordered(&ordered)?;
    order.limits.results = Some(running);
    Ok(())
}

/// The campaign ran to its end.
pub(crate) fn finish(order: &Order) -> anyhow::Result<()> {
    Ok(order.limits.results.as_ref().map_or(Ok(()), campaign::store::Running::finish)?)
}

/// The campaign ran to its end, with these verdicts.
pub(super) fn conclude(order: &Order, campaign: &Campaign) -> anyhow::Result<()> {
    let results = order.limits.results.as_ref();
    Ok(results.map_or(Ok(()), |running| running.conclude(campaign))?)
}

/// Writes reports of the campaign that has just ended.
pub(super) fn report(order: &Order, formats: &Formats) -> anyhow::Result<()> {
    match &order.limits.results {
        Some(running) if formats.any() => {
            let document = report::document(running.store(), running.campaign())?;
            report::write(&[document], formats)
        }
        None if formats.any() => bail!("a report needs stored results; leave out --trial"),
        _ => Ok(()),
    }
}

/// Says that nothing is lost, and what to type.
pub(crate) fn how_to_resume(order: &Order, options: &Options) {
    if order.limits.results.is_some() && interrupt::requested() {
        let resume = if options.resume { "" } else { " --resume" };
        eprintln!("every trial that was over is kept; go on with: {}{resume}", command_line());
    }
}

fn open(path: Option<&Path>) -> anyhow::Result<Arc<Store>> {
    let path = path.map_or_else(Store::usual_path, |path| Ok(path.to_owned()))?;
    Ok(Arc::new(Store::open(&path)?))
}

/// A database that is there.
pub(crate) fn existing(path: Option<&Path>) -> anyhow::Result<Arc<Store>> {
    let place = path.map_or_else(Store::usual_path, |path| Ok(path.to_owned()))?;
    if !place.is_file() {
        bail!("{} is not there: no campaign has been run yet, or give --db FILE", place.display());
    }
    open(Some(&place))
}

/// What it takes to run a stored result again: its plan, its kernel, device, seed, and itself.
pub(crate) fn of_result(
    id: i64,
    db: Option<&Path>,
) -> anyhow::Result<(Plan, Options, StoredTrial)> {
    let stored = existing(db)?.result(id)?;
    let settings = Settings::read(&stored.settings)?;
    let plan = Plan::parse(&settings.plan, "the stored plan")?;
    let mut options = Options::for_replay();
    options.kernels = vec![stored.record.kernel.clone()];
    options.modules.clone_from(&settings.modules);
    options.device = Device::parse(&settings.device).unwrap_or_default();
    options.isolation = Some(settings.isolation);
    options.dax = settings.dax;
    options.vcpus = settings.vcpus;
    options.queues = settings.queues;
    options.seed = Some(stored.seed);
    options.shadow = settings.shadow;
    options.qemu.clone_from(&settings.qemu);
    Ok((plan, options, stored))
}

/// What was typed, as a line for a shell.
fn command_line() -> String {
    let words = std::env::args_os().skip(1).map(|word| quote(&word.to_string_lossy()));
    std::iter::once("racegate".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

/// Lists the campaigns of a database.
pub(crate) fn list(db: Option<&Path>, json: bool) -> anyhow::Result<()> {
    let store = existing(db)?;
    let campaigns = store.campaigns()?;
    if json {
        let campaigns: Vec<_> = campaigns
            .iter()
            .map(|Summary { id, started, finished, plan, seed, trials, hits, first_hit }| {
                serde_json::json!({
                    "id": id, "started": started, "finished": finished, "plan": plan,
                    "seed": seed, "trials": trials, "hits": hits, "first_hit": first_hit,
                })
            })
            .collect();
        let all = serde_json::json!({ "schema": 1, "campaigns": campaigns });
        println!("{all:#}");
        return Ok(());
    }
    let mut text = format!(
        "{:<5} {:<21} {:<28} {:<9} {:<7} {:<10} {}\n",
        "id", "started", "plan", "trials", "hits", "first hit", "seed"
    );
    for Summary { id, started, finished, plan, seed, trials, hits, first_hit } in campaigns {
        let since = std::time::Duration::from_secs(started.cast_unsigned());
        let started = humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since);
        let open = if finished { "" } else { " (not finished)" };
        let first = first_hit.map_or_else(String::new, |id| id.to_string());
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{id:<5} {started:<21} {plan:<28} {trials:<9} {hits:<7} {first:<10} {seed}{open}"
        );
    }
    print!("{text}");
    Ok(())
}

impl Settings {
    /// Reads what [`attach`] stored.
    pub(crate) fn read(text: &str) -> anyhow::Result<Settings> {
        serde_json::from_str(text).context("The result was stored by another version of racegate")
    }
}
