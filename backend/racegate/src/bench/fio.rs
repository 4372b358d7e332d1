//! The limit of a disk, as fio finds it.
//!
//! In: a job. Out: what fio did with it, with io_uring and O_DIRECT, straight on a file.
//! Must not know: vhost-user.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use campaign::process;
use serde_json::Value;
use tempfile::TempPath;

use super::contender::{Contender, Place, Sample, latencies};
use super::job::{Job, Op};

/// fio with an image.
pub(super) struct Fio {
    image: PathBuf,
    bytes: u64,
    filled: bool,
    _guard: Option<TempPath>,
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

    fn fio(&self, options: &[String], limit: Duration) -> anyhow::Result<Value> {
        let mut command = process::command("fio", "fio")?;
        command
            .args(["--name=limit", "--ioengine=io_uring", "--direct=1", "--thread=1"])
            .args(["--output-format=json", "--group_reporting=1"])
            .arg(format!("--filename={}", self.image.display()))
            .arg(format!("--size={}", self.bytes))
            .args(options);
        let output = process::run(command, limit)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let json = text.find('{').map_or("", |at| &text[at..]);
        serde_json::from_str(json).context("fio gave no JSON")
    }
}

impl Contender for Fio {
    fn name(&self) -> &'static str {
        "fio@direct"
    }

    fn run(&mut self, job: &Job, window: Duration) -> anyhow::Result<Option<Sample>> {
        let rw = match job.op {
            Op::RandRead => "randread".to_owned(),
            Op::RandWrite => "randwrite".to_owned(),
            Op::Read => "read".to_owned(),
            Op::Write => "write".to_owned(),
            Op::Mix(reads) => format!("randrw --rwmixread={reads}"),
            Op::Flush => return Ok(None),
        };
        if !self.filled {
            let options = ["--rw=write", "--bs=1m", "--iodepth=4", "--refill_buffers"];
            self.fio(&options.map(str::to_owned), Duration::from_secs(300))?;
            self.filled = true;
        }
        let mut options: Vec<String> = format!("--rw={rw}").split(' ').map(str::to_owned).collect();
        options.push(format!("--bs={}", job.block_size));
        options.push(format!("--iodepth={}", job.depth));
        options.push(format!("--numjobs={}", job.queues));
        options.push("--time_based".to_owned());
        options.push("--norandommap".to_owned());
        options.push(format!("--runtime={}ms", window.as_millis()));
        let report = self.fio(&options, window + Duration::from_secs(60))?;
        let part = &report["jobs"][0];
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
        Ok(Some(Sample {
            requests: requests as u64,
            failed: 0,
            elapsed,
            latencies: histogram,
            backend_cpu: None,
            client_cpu: elapsed.mul_f64(cpu.max(0.0)),
            others_cpus: f64::NAN,
        }))
    }
}
