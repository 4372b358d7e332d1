//! What a run has shown.
//!
//! In: samples. Out: medians, ratios with intervals, as a table and as JSON.
//! Must not know: how samples are taken.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::contender::{Sample, latencies};
use super::job::Job;

/// Samples of all contenders, by job.
pub(super) struct Report {
    names: Vec<String>,
    jobs: Vec<(Job, Vec<Vec<Sample>>)>,
}

/// Figures of one contender and one job.
struct Row {
    iops: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    /// Processors that the backend kept busy.
    backend_cpu: Option<f64>,
    client_cpu: f64,
    others_cpus: f64,
    /// Processors that a hypervisor took away.
    stolen_cpus: f64,
    /// Processor time of the backend for one request, in microseconds.
    cpu_us: Option<f64>,
    failed: u64,
}

/// More stolen processors than this change what is measured.
const STOLEN_MUCH: f64 = 0.01;

/// How two contenders compare, with a 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ratio {
    pub(super) value: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// The geometric mean of paired ratios; the interval is Student's, of their logarithms.
pub(super) fn ratio(pairs: &[(f64, f64)]) -> Option<Ratio> {
    let logs: Vec<f64> =
        pairs.iter().filter(|(a, b)| *a > 0.0 && *b > 0.0).map(|(a, b)| (a / b).ln()).collect();
    let n = logs.len() as f64;
    if logs.is_empty() {
        return None;
    }
    let mean = logs.iter().sum::<f64>() / n;
    let half = if logs.len() > 1 {
        let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let t = StudentsT::new(0.0, 1.0, n - 1.0).ok()?.inverse_cdf(0.975);
        t * (variance / n).sqrt()
    } else {
        f64::INFINITY
    };
    Some(Ratio { value: mean.exp(), low: (mean - half).exp(), high: (mean + half).exp() })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.filter(|value| !value.is_nan()).collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

fn cpu_us(sample: &Sample) -> Option<f64> {
    sample.backend_cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / sample.requests.max(1) as f64)
}

impl Row {
    fn of(samples: &[Sample]) -> Option<Row> {
        if samples.is_empty() {
            return None;
        }
        let mut all = latencies();
        for sample in samples {
            // All have the same bounds.
            let _ = all.add(&sample.latencies);
        }
        let us = |quantile| {
            if all.is_empty() { f64::NAN } else { all.value_at_quantile(quantile) as f64 / 1000.0 }
        };
        let known = samples.iter().all(|sample| sample.backend_cpu.is_some());
        let share =
            |cpu: Duration, sample: &Sample| cpu.as_secs_f64() / sample.elapsed.as_secs_f64();
        // Not a median: it comes in lumps.
        let (stolen, elapsed) =
            samples.iter().fold((Duration::ZERO, Duration::ZERO), |(stolen, elapsed), sample| {
                (stolen + sample.stolen, elapsed + sample.elapsed)
            });
        Some(Row {
            iops: median(samples.iter().map(Sample::rate)),
            p50_us: us(0.5),
            p99_us: us(0.99),
            p999_us: us(0.999),
            backend_cpu: known.then(|| {
                median(samples.iter().map(|s| share(s.backend_cpu.unwrap_or_default(), s)))
            }),
            client_cpu: median(samples.iter().map(|s| share(s.client_cpu, s))),
            others_cpus: median(samples.iter().map(|s| s.others_cpus)),
            stolen_cpus: stolen.as_secs_f64() / elapsed.as_secs_f64(),
            cpu_us: known.then(|| median(samples.iter().filter_map(cpu_us))),
            failed: samples.iter().map(|sample| sample.failed).sum(),
        })
    }
}

impl Report {
    pub(super) fn new(names: Vec<String>) -> Report {
        Report { names, jobs: Vec::new() }
    }

    /// Adds what contender `index` did of that job in the next round.
    pub(super) fn add(&mut self, job: Job, index: usize, sample: Sample) {
        if self.jobs.last().is_none_or(|(last, _)| *last != job) {
            self.jobs.push((job, self.names.iter().map(|_| Vec::new()).collect()));
        }
        if let Some((_, samples)) = self.jobs.last_mut() {
            samples[index].push(sample);
        }
    }

    /// Every comparison of the first contender with another: job, metric, index of the other.
    fn ratios(&self) -> Vec<(&Job, &'static str, usize, Ratio)> {
        let mut ratios = Vec::new();
        for (job, samples) in &self.jobs {
            let first = &samples[0];
            for (index, other) in samples.iter().enumerate().skip(1) {
                let pairs = |of: &dyn Fn(&Sample) -> Option<f64>| -> Vec<(f64, f64)> {
                    first.iter().zip(other).filter_map(|(a, b)| of(a).zip(of(b))).collect()
                };
                if let Some(found) = ratio(&pairs(&|sample| Some(sample.rate()))) {
                    ratios.push((job, "iops", index, found));
                }
                if let Some(found) = ratio(&pairs(&cpu_us)) {
                    ratios.push((job, "cpu_per_request", index, found));
                }
            }
        }
        ratios
    }

    pub(super) fn to_json(&self) -> Value {
        let mut runs = Vec::new();
        for (job, samples) in &self.jobs {
            for (name, samples) in self.names.iter().zip(samples) {
                let Some(row) = Row::of(samples) else { continue };
                runs.push(json!({
                    "backend": name,
                    "op": job.op.to_string(),
                    "block_size": job.block_size,
                    "depth": job.depth,
                    "queues": job.queues,
                    "rounds": samples.len(),
                    "iops": row.iops,
                    "mb_per_s": row.iops * job.block_size as f64 / 1e6,
                    "p50_us": number(row.p50_us),
                    "p99_us": number(row.p99_us),
                    "p999_us": number(row.p999_us),
                    "backend_cpu": row.backend_cpu,
                    "backend_cpu_us_per_request": row.cpu_us,
                    "client_cpu": row.client_cpu,
                    "others_cpus": number(row.others_cpus),
                    "stolen_cpus": number(row.stolen_cpus),
                    "failed": row.failed,
                }));
            }
        }
        let ratios: Vec<Value> = self
            .ratios()
            .into_iter()
            .map(|(job, metric, other, found)| {
                json!({
                    "op": job.op.to_string(),
                    "block_size": job.block_size,
                    "depth": job.depth,
                    "queues": job.queues,
                    "metric": metric,
                    "a": self.names[0],
                    "b": self.names[other],
                    "ratio": found.value,
                    "ci95": [number(found.low), number(found.high)],
                })
            })
            .collect();
        json!({ "schema": 1, "runs": runs, "ratios": ratios })
    }

    pub(super) fn print(&self) {
        print!("{}", self.to_text());
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        let wide = self.names.iter().map(String::len).max().unwrap_or(0).max("backend".len());
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{:<28} {:<wide$} {:>9} {:>8} {:>8} {:>8} {:>9} {:>8} {:>7} {:>7} {:>7}",
            "job",
            "backend",
            "IOPS",
            "MB/s",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "CPU",
            "us/req",
            "others",
            "stolen"
        );
        let dash = |value: Option<f64>, digits: usize| match value {
            Some(value) if value.is_finite() => format!("{value:.digits$}"),
            _ => "-".to_owned(),
        };
        let mut stolen = false;
        for (job, samples) in &self.jobs {
            for (name, samples) in self.names.iter().zip(samples) {
                let Some(row) = Row::of(samples) else { continue };
                stolen |= row.stolen_cpus > STOLEN_MUCH;
                let _ = writeln!(
                    text,
                    "{:<28} {name:<wide$} {:>9.0} {:>8.0} {:>8} {:>8} {:>9} {:>8} {:>7} {:>7} {:>7}{}",
                    job.to_string(),
                    row.iops,
                    row.iops * job.block_size as f64 / 1e6,
                    dash(Some(row.p50_us), 1),
                    dash(Some(row.p99_us), 1),
                    dash(Some(row.p999_us), 1),
                    dash(row.backend_cpu.map(|cpu| cpu * 100.0), 0),
                    dash(row.cpu_us, 2),
                    dash(Some(row.others_cpus * 100.0), 0),
                    dash(Some(row.stolen_cpus * 100.0), 1),
                    if row.failed > 0 { format!("  {} FAILED", row.failed) } else { String::new() },
                );
            }
        }
        let ratios = self.ratios();
        if !ratios.is_empty() {
            let _ = writeln!(text, "\n{} against:", self.names[0]);
        }
        for (job, metric, other, found) in ratios {
            let what = if metric == "iops" { "" } else { "  CPU per request" };
            let _ = writeln!(
                text,
                "{:<28} {:<wide$} {:>6.3}  ({:.3} to {:.3}){what}",
                job.to_string(),
                self.names[other],
                found.value,
                found.low,
                found.high,
            );
        }
        let _ = writeln!(
            text,
            "\nIOPS, CPU (of the backend) and others (everything else on the machine) in per cent of \
             one\nprocessor: medians of rounds. Ratios: geometric means over rounds, 95 % intervals."
        );
        if stolen {
            let _ = writeln!(
                text,
                "\nA hypervisor took processors away (stolen, in per cent of one): it may stop the \
                 whole machine\nfor tens of milliseconds once processors and disk together have \
                 used what they may. What is\nmeasured then is that limit; windows that end before \
                 (--window 50ms, more --rounds) escape it."
            );
        }
        text
    }
}

/// As JSON: what is no number is null.
fn number(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::job::{Op, Wait};

    #[test]
    fn ratios_are_paired() {
        // The machine slows down tenfold; the ratio stays.
        let pairs = [(200.0, 100.0), (20.0, 10.0), (202.0, 100.0), (19.8, 10.0)];
        let found = ratio(&pairs).expect("a ratio");
        assert!((found.value - 2.0).abs() < 0.01, "{found:?}");
        assert!(found.low > 1.97 && found.high < 2.03, "{found:?}");
    }

    #[test]
    fn one_round_says_nothing_of_the_spread() {
        let found = ratio(&[(3.0, 2.0)]).expect("a ratio");
        assert!((found.value - 1.5).abs() < 1e-9);
        assert!(found.high.is_infinite());
        assert_eq!(ratio(&[]), None);
    }

    #[test]
    fn stolen_processors_are_told_of() {
        let job =
            Job { op: Op::RandRead, block_size: 4096, depth: 1, queues: 1, wait: Wait::Event };
        let report = |stolen_ms| {
            let mut report = Report::new(vec!["a disk".to_owned()]);
            for ms in [0, 0, stolen_ms] {
                let sample = Sample {
                    requests: 1000,
                    failed: 0,
                    elapsed: Duration::from_millis(500),
                    latencies: latencies(),
                    backend_cpu: None,
                    client_cpu: Duration::ZERO,
                    others_cpus: f64::NAN,
                    stolen: Duration::from_millis(ms),
                };
                report.add(job, 0, sample);
            }
            report
        };
        // One round of three is enough: 100 ms of 1500.
        let text = report(100).to_text();
        assert!(text.contains("  6.7\n") && text.contains("--window 50ms"), "{text}");
        assert_eq!(report(1500).to_json()["runs"][0]["stolen_cpus"], 1.0);
        // A tick is nothing.
        assert!(!report(10).to_text().contains("hypervisor"));
    }

    #[test]
    fn medians() {
        assert!((median([3.0, 1.0, 2.0].into_iter()) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, f64::NAN].into_iter()) - 2.5).abs() < 1e-9);
        assert!(median(std::iter::empty()).is_nan());
    }
}
