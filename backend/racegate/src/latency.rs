//! `racegate latency`: how exact delays are on this machine, seen from a guest.
//!
//! In: arguments. Out: a table or JSON.
//! Must not know: how it is measured.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use campaign::backend::BackendConfig;
use campaign::cache::Cache;
use campaign::device::Device;
use campaign::guest::GuestConfig;
use campaign::kernels::{Kernels, Spec};
use campaign::latency::{self, Report, Row, What};
use campaign::qemu::Qemu;
use campaign::{interrupt, setup};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::{Value, json};

/// The file name that means standard output.
const STDOUT: &str = "-";

/// Arguments of `racegate latency`.
#[derive(clap::Args)]
pub struct Args {
    /// Persistent memory to measure, may be repeated [default: nvdimm and virtio-pmem]
    #[arg(long = "device", value_parser = pmem_parser())]
    devices: Vec<Device>,
    /// Kernel of the guest: a name that `racegate kernels list` shows, a Debian package, or the
    /// path of a bzImage
    #[arg(long, default_value = "debian-6.12.107", value_name = "NAME")]
    kernel: String,
    /// Folder with the modules of a kernel that is given by path
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// Another QEMU than that of the machine
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Write the table as JSON to FILE ("-" is standard output, in place of the text)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn pmem_parser() -> impl TypedValueParser<Value = Device> {
    let pmem = Device::ALL.into_iter().filter(|device| device.is_pmem());
    PossibleValuesParser::new(pmem.map(Device::name))
        .map(|name| Device::parse(&name).unwrap_or_default())
}

/// Carries out `racegate latency`.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    interrupt::install().context("Could not take over the interrupt signals")?;
    let cache = Cache::open()?;
    setup::ensure(true, &cache)?;
    let spec = Spec::parse(&args.kernel, args.modules.as_deref())?;
    let kernel = Kernels::new(&cache).fetch(&spec)?;
    let both = [Device::Nvdimm, Device::VirtioPmem];
    let devices = if args.devices.is_empty() { &both[..] } else { &args.devices };
    let mut reports = Vec::new();
    for device in devices {
        let qemu = match &args.qemu {
            Some(path) => Qemu::at(path)?,
            None if *device == Device::VhostUserPmem => Qemu::with_vhost_user_pmem(&cache)?,
            None => Qemu::find(&cache)?,
        };
        let accel = qemu.accel()?;
        // The image is made where it is measured.
        let mut backend = BackendConfig::new(PathBuf::new());
        backend.device = *device;
        eprintln!("{device}: {}, QEMU {} ({})", kernel.name, qemu.version(), accel.name());
        let kernel = kernel.clone();
        reports.push(latency::measure(&GuestConfig {
            qemu,
            accel,
            kernel,
            cmdline: Vec::new(),
            qemu_args: Vec::new(),
            vcpus: 2,
            backend,
            programs: Vec::new(),
            unpacked: Vec::new(),
        })?);
    }
    let to_stdout = args.json.as_deref() == Some(Path::new(STDOUT));
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", to_json(&kernel.name, &reports));
        if to_stdout {
            std::io::stdout().write_all(text.as_bytes())?;
        } else {
            std::fs::write(path, text)
                .with_context(|| format!("Could not write {}", path.display()))?;
        }
    }
    if !to_stdout {
        print(&reports);
    }
    Ok(ExitCode::SUCCESS)
}

fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

/// Kind of request and delay in microseconds, `None` where no rule is about it.
fn named(what: What) -> (&'static str, Option<u128>) {
    match what {
        What::Plain => ("fault", None),
        What::Fault(delay) => ("fault", Some(delay.as_micros())),
        What::Flush(delay) => ("flush", Some(delay.as_micros())),
    }
}

fn print(reports: &[Report]) {
    println!(
        "{:<16} {:<7} {:>8} {:>6} {:>9} {:>9} {:>9} {:>8} {:>8}",
        "device", "request", "delay us", "times", "p50 us", "p99 us", "max us", "late us", "server"
    );
    for report in reports {
        for row in &report.rows {
            let (request, delay) = named(row.what);
            let dash = || "-".to_owned();
            println!(
                "{:<16} {request:<7} {:>8} {:>6} {:>9.1} {:>9.1} {:>9.1} {:>8} {:>8}",
                report.device.name(),
                delay.map_or_else(dash, |us| us.to_string()),
                row.ns.len(),
                us(row.quantile_ns(0.5)),
                us(row.quantile_ns(0.99)),
                us(row.quantile_ns(1.0)),
                report.late_ns(row).map_or_else(dash, |ns| format!("{:.1}", ns as f64 / 1000.0)),
                row.server_late_ns.map_or_else(dash, |ns| format!("{:.1}", us(ns))),
            );
        }
    }
    println!(
        "\nThe guest times a read of the page past its page cache. delay -: no rule is about the \
         page,\nand its neighbours come with it; 0: a rule lets it pass. late: the median less \
         the delay and\nless the median of the pages that pass; server: the median that the rule \
         reports.\n"
    );
    for Report { device, other, .. } in reports {
        println!(
            "{:<16} the other processor, while one waits for pages: {:.0} % of its speed ({:.0} \
             of {:.0} turns in a ms), longest pause {:.1} ms",
            device.name(),
            100.0 * other.ratio(),
            other.stalled_per_ms,
            other.free_per_ms,
            other.longest_gap_us as f64 / 1000.0,
        );
    }
}

fn to_json(kernel: &str, reports: &[Report]) -> Value {
    let row = |report: &Report, row: &Row| {
        let (request, delay) = named(row.what);
        json!({
            "request": request,
            "delay_us": delay,
            "times": row.ns.len(),
            "p50_us": us(row.quantile_ns(0.5)),
            "p99_us": us(row.quantile_ns(0.99)),
            "max_us": us(row.quantile_ns(1.0)),
            "late_us": report.late_ns(row).map(|ns| ns as f64 / 1000.0),
            "server_late_us": row.server_late_ns.map(us),
        })
    };
    let device = |report: &Report| {
        json!({
            "device": report.device.name(),
            "rows": report.rows.iter().map(|r| row(report, r)).collect::<Vec<_>>(),
            "other_vcpu": {
                "free_turns_per_ms": report.other.free_per_ms,
                "stalled_turns_per_ms": report.other.stalled_per_ms,
                "ratio": report.other.ratio(),
                "longest_gap_us": report.other.longest_gap_us,
            },
        })
    };
    json!({
        "schema": 1,
        "kernel": kernel,
        "devices": reports.iter().map(device).collect::<Vec<_>>(),
    })
}
