//! `racegate campaign matrix`: several plans on many kernels, one table, compared with the sources.
//!
//! In: arguments. Out: progress with the time left, the table on standard output, files, an exit
//! status. Must not know: how a cell is decided, how a table looks.

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use campaign::kernels::{self, Kernels, Spec};
use campaign::matrix::{self, BUILT_IN, Cell, Expected, Matrix, Settings, Step};
use campaign::plan::Plan;
use campaign::report;
use campaign::runner::Order;
use campaign::verdict::Verdict;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::order::{Options, prepare, write_json};
use super::results;

/// The value of `--expect` that means what comes with the program.
const OWN: &str = "built-in";

/// Arguments of `racegate campaign matrix`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Plans: names that `list` shows, or TOML files; default: those that `--expect` knows
    #[arg(value_name = "PLAN")]
    plans: Vec<String>,
    /// Kernels of this series ("6.1"), may be repeated; with neither this nor --kernel, of every
    /// series that Debian has
    #[arg(long, value_name = "SERIES")]
    series: Vec<String>,
    /// How many kernels of each series: the oldest, the newest, and what lies evenly between
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    per_series: u16,
    /// The largest probability that any verdict of the table is wrong
    #[arg(long, default_value = "0.05", value_name = "ERROR", value_parser = results::probability)]
    error: f64,
    /// Compare with what the sources say, by the versions of fixes: a TOML file, or what comes with
    /// the program
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = OWN)]
    expect: Option<String>,
    #[command(flatten)]
    options: Options,
}

/// Carries out `racegate campaign matrix`.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let options = &args.options;
    if options.shard.is_some()
        || options.trial.is_some()
        || options.until_sure.is_some()
        || !options.arms.is_empty()
        || options.formats.junit.is_some()
        || options.formats.ktap.is_some()
    {
        bail!(
            "--shard, --trial, --until-sure, --arm, --junit and --ktap are for racegate campaign run; \
             a table has --error"
        );
    }
    let expected = expected(args.expect.as_deref())?;
    let plans = plans(args, expected.as_ref())?;
    let mut names = options.kernels.clone();
    names.extend(of_series(args)?);
    let (orders, missing) = orders(args, plans, &names)?;
    // Of a series those are taken that are there; who names a kernel wants to know of that one.
    let gone = |name: &String| missing.iter().any(|(of, _)| of == name);
    names.retain(|name| options.kernels.contains(name) || !gone(name));
    let settings = Settings {
        error: args.error,
        most_trials: options.trials.unwrap_or(100),
        most_invalid: 6,
        missing,
    };
    let bar = bar(orders.len() * orders.first().map_or(0, |order| order.kernels.len()));
    let resumed = AtomicU64::new(0);
    let outcome = matrix::run(&orders, &names, &settings, &|step| tell(&bar, &resumed, step));
    bar.finish_and_clear();
    let (matrix, campaigns) = match outcome {
        Ok(done) => done,
        Err(error) => {
            orders.iter().take(1).for_each(|order| results::how_to_resume(order, options));
            return Err(error.into());
        }
    };
    for (order, campaign) in orders.iter().zip(&campaigns) {
        results::conclude(order, campaign)?;
    }
    let differs = expected.map(|expected| expected.disagreements(&matrix));
    print(&matrix, differs.as_deref(), options)?;
    let undecided = matrix.cells.iter().any(|cell| cell.verdict == Verdict::Inconclusive);
    let wrong = differs.is_some_and(|differs| {
        differs.iter().any(|differs| differs.verdict != Verdict::Inconclusive)
    });
    Ok(ExitCode::from(match (wrong, undecided) {
        (true, _) => 1,
        (false, true) => 2,
        (false, false) => 0,
    }))
}

fn expected(from: Option<&str>) -> anyhow::Result<Option<Expected>> {
    let Some(file) = from else {
        return Ok(None);
    };
    if file == OWN {
        return Ok(Some(Expected::parse(BUILT_IN, file)?));
    }
    let text = fs::read_to_string(file).with_context(|| format!("Could not read {file}"))?;
    Ok(Some(Expected::parse(&text, file)?))
}

/// The plans that were asked for, or those of which something is expected.
fn plans(args: &Args, expected: Option<&Expected>) -> anyhow::Result<Vec<Plan>> {
    if !args.plans.is_empty() {
        return args.plans.iter().map(|name| Ok(Plan::find(name)?)).collect();
    }
    let own = Expected::parse(BUILT_IN, OWN)?;
    let names = expected.unwrap_or(&own).plans();
    names.map(|name| Ok(Plan::find(name)?)).collect()
}

/// Kernels of the series that were asked for; of all, if no kernel was named either.
fn of_series(args: &Args) -> anyhow::Result<Vec<String>> {
    let all = kernels::series();
    if args.series.is_empty() && !args.options.kernels.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(unknown) = args.series.iter().find(|name| all.iter().all(|(of, _)| of != *name)) {
        let known: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        bail!("Debian has no kernels of series {unknown}; there are {}", known.join(", "));
    }
    let wanted =
        all.iter().filter(|(name, _)| args.series.is_empty() || args.series.contains(name));
    let wanted: Vec<Vec<&str>> =
        wanted.map(|(_, names)| names.iter().map(String::as_str).collect()).collect();
    let spread = matrix::spread(&wanted, usize::from(args.per_series));
    Ok(spread.into_iter().map(str::to_owned).collect())
}

/// Kernels that cannot be had, and why.
type Missing = Vec<(String, String)>;

/// An order for each plan with every kernel that can be had, and why the others cannot.
fn orders(
    args: &Args,
    plans: Vec<Plan>,
    names: &[String],
) -> anyhow::Result<(Vec<Order>, Missing)> {
    // All plans draw from one seed.
    let mut options = args.options.clone();
    options.seed = Some(options.seed.unwrap_or_else(super::order::seed_from_clock));
    let (mut orders, mut cache) = (Vec::new(), None);
    for plan in plans {
        let (order, of) = prepare(plan, &options)?;
        orders.push(order);
        cache = Some(of);
    }
    let cache = cache.context("no plan is given")?;
    let store = Kernels::new(&cache);
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in names {
        if campaign::interrupt::requested() {
            bail!("interrupted");
        }
        match store.fetch(&Spec::parse(name, options.modules.as_deref())?) {
            Ok(mut kernel) => {
                // Under the name that was given: that of a path is shortened in tables.
                name.clone_into(&mut kernel.name);
                found.push(kernel);
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                eprintln!("{name} cannot be had: {error}");
                missing.push((name.clone(), error));
            }
        }
    }
    if found.is_empty() {
        bail!("none of these kernels can be had");
    }
    let all = names.join(", ");
    for order in &mut orders {
        order.kernels.clone_from(&found);
        results::attach(order, &options, &all)?;
    }
    let deadline = args.options.budget.map(|budget| Instant::now() + budget);
    for order in &mut orders {
        order.limits.deadline = deadline;
    }
    if let Some(order) = orders.first() {
        eprintln!(
            "{} plans on {} kernels on {}, QEMU {} ({}), {} vCPU, {} side by side, seed {}",
            orders.len(),
            found.len(),
            order.device,
            order.qemu.version(),
            order.accel.name(),
            order.vcpus,
            order.jobs,
            order.seed
        );
    }
    Ok((orders, missing))
}

fn bar(cells: usize) -> ProgressBar {
    let bar = ProgressBar::new(cells as u64);
    // A constant; the default style serves if it were wrong.
    if let Ok(style) =
        ProgressStyle::with_template("{bar:24} {pos}/{len} cells [{elapsed}, {eta} left] {msg}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn tell(bar: &ProgressBar, resumed: &AtomicU64, step: &Step<'_>) {
    match step {
        Step::Trial(plan, record) => {
            bar.set_message(format!("{plan} on {}, trial {}", record.kernel, record.trial));
        }
        Step::Cell(Cell { plan, kernel, verdict, hits, trials, .. }) => {
            bar.inc(1);
            // Without a terminal the bar shows nothing; then every cell is a line.
            if !std::io::stderr().is_terminal() {
                let (done, all) = (bar.position(), bar.length().unwrap_or_default());
                let left = left(resumed, bar.elapsed(), done, all)
                    .map_or_else(String::new, |left| format!(", {} left", HumanDuration(left)));
                eprintln!(
                    "{done}/{all}{left}: {plan} on {kernel}: {verdict}, {hits} of {trials} hit"
                );
            }
        }
    }
}

/// How long the rest takes, at the pace of the cells that were run; those that were stored before are
/// over at once, before any guest can have booted. `None` while nobody can tell.
fn left(resumed: &AtomicU64, elapsed: Duration, done: u64, all: u64) -> Option<Duration> {
    const NO_BOOT: Duration = Duration::from_secs(2);
    if elapsed < NO_BOOT {
        resumed.store(done, Ordering::Relaxed);
    }
    let run = done.saturating_sub(resumed.load(Ordering::Relaxed));
    (run >= 4).then(|| elapsed.mul_f64(all.saturating_sub(done) as f64 / run as f64))
}

fn print(
    matrix: &Matrix,
    differs: Option<&[matrix::Disagreement]>,
    options: &Options,
) -> anyhow::Result<()> {
    let put = |path: &PathBuf, text: String| {
        if path == Path::new("-") {
            std::io::stdout().write_all(text.as_bytes()).context("Could not write the table")
        } else {
            fs::write(path, text).with_context(|| format!("Could not write {}", path.display()))
        }
    };
    if let Some(path) = &options.formats.html {
        put(path, report::matrix::page(matrix, differs))?;
    }
    if let Some(path) = &options.formats.markdown {
        put(path, report::matrix::markdown(matrix, differs))?;
    }
    if let Some(path) = &options.json {
        write_json(&report::matrix::json(matrix, differs), path)?;
    }
    let files = [&options.formats.html, &options.formats.markdown, &options.json];
    if !files.into_iter().flatten().any(|path| path == Path::new("-")) {
        print!("{}", report::matrix::text(matrix, differs));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_that_of_cells_that_ran() {
        let (resumed, second) = (AtomicU64::new(0), Duration::from_secs(1));
        assert_eq!(left(&resumed, second / 10, 50, 100), None);
        assert_eq!(left(&resumed, 30 * second, 53, 100), None);
        // Ten of them in 100 s, and 40 are left.
        assert_eq!(left(&resumed, 100 * second, 60, 100), Some(400 * second));
    }
}
