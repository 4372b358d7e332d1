//! fio: the limit of a disk of this machine, and the words it is asked in anywhere.
//!
//! In: a job. Out: what fio did with it.
//! Must not know: vhost-user.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use campaign::process;
use serde_json::Value;
use tempfile::TempPath;

use super::contender::{Contender, Place, Sample, latencies};
use super::job::{Job, Op};
use super::processors::Processors;

/// How long a disk may take to be filled.
const FILL_LIMIT: Duration = Duration::from_secs(300);

/// Least time that it runs before it is measured.
const WARM_UP: Duration = Duration::from_millis(100);

/// fio with an image, with io_uring and O_DIRECT, straight on a file.
pub(super) struct Fio {
    image: PathBuf,
    bytes: u64,
    filled: bool,
    _guard: Option<TempPath>,
}

/// What every run is asked for.
pub(super) fn options(file: &str, bytes: u64) -> Vec<String> {
    let plain = ["--name=limit", "--direct=1", "--thread=1"];
    let output = ["--output-format=json", "--group_reporting=1"];
    let mut options: Vec<String> = plain.iter().chain(&output).map(ToString::to_string).collect();
    options.push(format!("--filename={file}"));
    options.push(format!("--size={bytes}"));
    options
}

/// Every block is written once.
pub(super) fn fill() -> Vec<String> {
    ["--rw=write", "--bs=1m", "--iodepth=4", "--refill_buffers"].map(str::to_owned).into()
}

/// A job, if it is one that fio can be asked for.
pub(super) fn job(job: &Job, window: Duration) -> Option<Vec<String>> {
    let rw = match job.op {
        Op::RandRead => "randread".to_owned(),
        Op::RandWrite => "randwrite".to_owned(),
        Op::Read => "read".to_owned(),
        Op::Write => "write".to_owned(),
        Op::Mix(reads) => format!("randrw --rwmixread={reads}"),
        Op::Flush => return None,
    };
    let mut options: Vec<String> = format!("--rw={rw}").split(' ').map(str::to_owned).collect();
    options.push(format!("--bs={}", job.block_size));
    options.push(format!("--iodepth={}", job.depth));
    options.push(format!("--numjobs={}", job.queues));
    options.push("--time_based".to_owned());
    options.push("--norandommap".to_owned());
    options.push(format!("--runtime={}ms", window.as_millis()));
    // Its own start is not the disk's, and a short window would show it.
    options.push(format!("--ramp_time={}ms", (window / 5).max(WARM_UP).as_millis()));
    Some(options)
}

/// What fio says of a run.
pub(super) struct Report(Value);

impl Report {
    /// Reads what it printed, behind whatever it warned of.
    pub(super) fn parse(text: &str) -> anyhow::Result<Report> {
        let json = text.find('{').map_or("", |at| &text[at..]);
        Ok(Report(serde_json::from_str(json).context("fio gave no JSON")?))
    }

    pub(super) fn sample(&self) -> Sample {
        let part = &self.0["jobs"][0];
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        let sides = [&part["read"], &part["write"]];
        let requests = sides.map(|side| number(&side["total_ios"])).iter().sum::<f64>();
        let elapsed_ms = sides.map(|side| number(&side["runtime"])).into_iter().fold(0.0, f64::max);
        let mut histogram = latencies();
        for side in sides {
            if let Some(bins) = side["clat_ns"]["percentile"].as_object() {
                // Only what the report shows: fio gives no bins here.
                for (percent, count) in [("50.000000", 49), ("99.000000", 51)] {
                    if let Some(ns) = bins.get(percent).and_then(Value::as_u64) {
                        let _ = histogram.record_n(ns, count);
                    }
                }
            }
        }
        let cpu = (number(&part["usr_cpu"]) + number(&part["sys_cpu"])) / 100.0;
        let elapsed = Duration::from_secs_f64(elapsed_ms / 1000.0);
        Sample {
            requests: requests as u64,
            failed: 0,
            elapsed,
            latencies: histogram,
            backend_cpu: None,
            client_cpu: elapsed.mul_f64(cpu.max(0.0)),
            others_cpus: f64::NAN,
            stolen: Duration::ZERO,
        }
    }
}

impl Fio {
    pub(super) fn new(
        image: PathBuf,
        guard: Option<TempPath>,
        place: &Place,
    ) -> anyhow::Result<Fio> {
        // Missing programs are told of at once.
        process::command("fio", "fio")?;
        Ok(Fio { image, bytes: place.bytes, filled: place.image.is_some(), _guard: guard })
    }

    fn fio(&self, asked: &[String], limit: Duration) -> anyhow::Result<Report> {
        let mut command = process::command("fio", "fio")?;
        command
            .arg("--ioengine=io_uring")
            .args(options(&self.image.to_string_lossy(), self.bytes))
            .args(asked);
        let output = process::run(command, limit)?;
        Report::parse(&String::from_utf8_lossy(&output.stdout))
    }
}

impl Contender for Fio {
    fn name(&self) -> &'static str {
        "fio@direct"
    }

    fn run(&mut self, asked: &Job, window: Duration) -> anyhow::Result<Option<Sample>> {
        let Some(options) = job(asked, window) else { return Ok(None) };
        if !self.filled {
            self.fio(&fill(), FILL_LIMIT)?;
            self.filled = true;
        }
        let (before, began) = (Processors::now(), Instant::now());
        let sample = self.fio(&options, window + Duration::from_secs(60))?.sample();
        let stolen = Processors::stolen_in(sample.elapsed, before, began);
        Ok(Some(Sample { stolen, ..sample }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::job::Wait;

    #[test]
    fn reads_what_fio_prints() {
        let text = r#"fio: a note
            {"jobs": [{"usr_cpu": 10.0, "sys_cpu": 15.0,
             "read": {"total_ios": 300, "runtime": 2000, "clat_ns": {"percentile":
                {"50.000000": 1000, "99.000000": 9000}}},
             "write": {"total_ios": 100, "runtime": 1990}}]}"#;
        let sample = Report::parse(text).expect("a report").sample();
        assert_eq!((sample.requests, sample.elapsed), (400, Duration::from_secs(2)));
        assert_eq!(sample.client_cpu, Duration::from_millis(500));
        assert_eq!(sample.latencies.value_at_quantile(0.2), 1000);
        assert!(Report::parse("no such file").is_err());
    }

    #[test]
    fn asks_for_the_job() {
        let asked =
            Job { op: Op::Mix(70), block_size: 4096, depth: 8, queues: 2, wait: Wait::Event };
        let options = job(&asked, Duration::from_millis(300)).expect("options");
        for wanted in [
            "--rw=randrw",
            "--rwmixread=70",
            "--bs=4096",
            "--iodepth=8",
            "--runtime=300ms",
            "--ramp_time=100ms",
        ] {
            assert!(options.iter().any(|option| option == wanted), "{wanted}: {options:?}");
        }
        assert_eq!(job(&Job { op: Op::Flush, ..asked }, Duration::ZERO), None);
    }
}
