//! `racegate bench`: how fast a vhost-user-blk backend is, without a guest or in one.
//!
//! In: backends, jobs. Out: a table or JSON with rates, latencies, the backend's processor time,
//! and ratios with 95 % intervals.
//! Must not know: virtqueues.
//!
//! Speeds of a shared machine are worth little by themselves. So all contenders run in turn, in
//! short windows, many rounds, and are compared round by round.

mod contender;
mod fio;
mod guest;
mod job;
mod limits;
mod load;
mod processors;
mod report;
mod served;
mod spec;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use campaign::interrupt;
use indicatif::{ProgressBar, ProgressStyle};

use contender::{Contender, Place};
use job::{Job, Op, Wait};
use report::Report;

/// The file name that means standard output.
const STDOUT: &str = "-";

/// Arguments of `racegate bench`.
#[derive(clap::Args)]
#[command(after_help = spec::HELP)]
pub struct Args {
    /// What to measure: a name, a name with arguments to add, socket:PATH, or a command with
    /// {socket} in it (and maybe {image}); see below
    #[arg(default_value = "racegate@memory")]
    backend: String,
    /// What to compare it with, in the same run; may be repeated
    #[arg(long, value_name = "BACKEND")]
    vs: Vec<String>,
    /// What requests do: randread, randwrite, read, write, flush, or mixN (N % random reads)
    #[arg(long = "op", value_name = "OP", value_delimiter = ',', default_value = "randread")]
    ops: Vec<Op>,
    /// Bytes of a request, in sectors of 512
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "4k", value_parser = job::bytes)]
    block_size: Vec<u64>,
    /// Requests in flight in each queue
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,32")]
    depth: Vec<u16>,
    /// Queues, each with a thread of its own on this side
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1")]
    queues: Vec<u16>,
    /// How the client learns of completions
    #[arg(long, value_enum, default_value_t = Wait::Event)]
    wait: Wait,
    /// Length of one window of measurement
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = humantime::parse_duration)]
    window: Duration,
    /// How often each job runs on each backend
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Bytes of the disk that are used
    #[arg(long, value_name = "BYTES", default_value = "1g", value_parser = job::bytes)]
    size: u64,
    /// Folder for images on a disk [default: the one for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Use this image as it is, and only read from it
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    image: Option<PathBuf>,
    /// Measure with fio in a guest of that kernel, which has every backend as a disk (--wait does
    /// not apply)
    #[arg(long, value_name = "KERNEL")]
    guest: Option<String>,
    /// Process of a backend that was started elsewhere (socket:PATH), to tell its processor time
    #[arg(long)]
    pid: Option<u32>,
    /// Write results as JSON to FILE ("-" is standard output, in place of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Carries out `racegate bench`.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    interrupt::install().context("Could not take over the interrupt signals")?;
    let jobs = jobs(args)?;
    let folder = tempfile::Builder::new().prefix("racegate-bench-").tempdir()?;
    let place = Place {
        folder: folder.path().to_owned(),
        disk: args.dir.clone().unwrap_or_else(std::env::temp_dir),
        image: args.image.clone(),
        bytes: args.size,
        queues: jobs.iter().map(|job| job.queues).max().unwrap_or(1),
        pid: args.pid,
    };
    let names: Vec<&String> = std::iter::once(&args.backend).chain(&args.vs).collect();
    let mut contenders = match &args.guest {
        Some(kernel) => guest::boot(kernel, &names, &place)?,
        None => names
            .iter()
            .enumerate()
            .map(|(index, text)| spec::open(text, index, &place).with_context(|| (*text).clone()))
            .collect::<anyhow::Result<_>>()?,
    };
    let report = measure(&mut contenders, &jobs, args.rounds, args.window)?;
    drop(contenders);

    let to_stdout = args.json.as_deref() == Some(Path::new(STDOUT));
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", report.to_json());
        if to_stdout {
            std::io::stdout().write_all(text.as_bytes())?;
        } else {
            std::fs::write(path, text)
                .with_context(|| format!("Could not write {}", path.display()))?;
        }
    }
    if !to_stdout {
        report.print();
    }
    Ok(ExitCode::SUCCESS)
}

/// Every combination that was asked for.
fn jobs(args: &Args) -> anyhow::Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for &op in &args.ops {
        if args.image.is_some() && op.writes() {
            bail!("--op {op} writes, and --image is only read: leave one of them out");
        }
        for &block_size in &args.block_size {
            for &depth in &args.depth {
                for &queues in &args.queues {
                    let job = Job { op, block_size, depth, queues, wait: args.wait };
                    job.check(args.size)?;
                    jobs.push(job);
                }
            }
        }
    }
    Ok(jobs)
}

fn measure(
    contenders: &mut [Box<dyn Contender>],
    jobs: &[Job],
    rounds: u32,
    window: Duration,
) -> anyhow::Result<Report> {
    let names = contenders.iter().map(|contender| contender.name().to_owned()).collect();
    let mut report = Report::new(names);
    let windows = jobs.len() as u64 * u64::from(rounds) * contenders.len() as u64;
    let progress = ProgressBar::new(windows).with_style(
        ProgressStyle::with_template("{elapsed_precise} {wide_bar} {pos}/{len} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    for job in jobs {
        for round in 0..rounds {
            // Who begins changes, so that none always runs behind the same one.
            for turn in 0..contenders.len() {
                let index = (turn + round as usize) % contenders.len();
                let contender = &mut contenders[index];
                progress.set_message(format!("{job}: {}", contender.name()));
                if interrupt::requested() {
                    bail!("interrupted");
                }
                let name = contender.name().to_owned();
                let sample =
                    contender.run(job, window).with_context(|| format!("{name}, {job}"))?;
                if let Some(sample) = sample {
                    report.add(*job, index, sample);
                }
                progress.inc(1);
            }
        }
    }
    progress.finish_and_clear();
    Ok(report)
}
