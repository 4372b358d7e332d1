//! `racegate bench`: what it says of real backends, and of those that cannot be measured.
//!
//! Goal: every job of every backend is measured and compared, and a backend that does not fit is
//! told of at once, with what to change. Method: the real programs, short windows; no figure is
//! compared with another, but with what follows from them.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A daemon by its command line, with rings of that many descriptors.
fn daemon(queue_size: u16) -> String {
    let program = env!("CARGO_BIN_EXE_racegate-blk");
    format!(
        "{program} --socket-path {{socket}} --blk-file {{image}} --storage memory --num-queues 1 \
         --queue-size {queue_size}"
    )
}

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_racegate"))
        .arg("bench")
        .args(args)
        .args(["--size", "16m", "--window", "100ms", "--rounds", "3", "--json", "-"])
        .output()
        .expect("racegate")
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

#[test]
fn every_job_of_every_backend() {
    let own = daemon(256);
    let others = ["racegate@memory", "memcpy@memory", "ring@memory"];
    let mut args = vec![own.as_str()];
    args.extend(others.iter().flat_map(|name| ["--vs", name]));
    args.extend(["--op", "randread,write", "--depth", "1,8", "--block-size", "4k,64k"]);
    let output = bench(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");

    let runs = told["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 4 * 2 * 2 * 2, "backends, operations, depths, sizes");
    for run in runs {
        let number = |name: &str| run[name].as_f64().unwrap_or_else(|| panic!("{name}: {run}"));
        let bytes_per_s = number("iops") * number("block_size");
        assert!(bytes_per_s > 0.0, "{run}");
        assert!((number("mb_per_s") * 1e6 / bytes_per_s - 1.0).abs() < 1e-6, "{run}");
        assert_eq!(run["failed"], 0, "{run}");
        let served = run["backend"] != "memcpy@memory";
        assert_eq!(run["p50_us"].is_number(), served, "{run}");
        if served {
            assert!(number("p50_us") <= number("p99_us"), "{run}");
        }
    }
    let ratios = told["ratios"].as_array().expect("ratios");
    let iops: Vec<_> = ratios.iter().filter(|ratio| ratio["metric"] == "iops").collect();
    assert_eq!(iops.len(), 3 * 2 * 2 * 2, "others, operations, depths, sizes");
    for ratio in iops {
        let (low, high) = (ratio["ci95"][0].as_f64(), ratio["ci95"][1].as_f64());
        let middle = ratio["ratio"].as_f64();
        assert!(low <= middle && middle <= high, "{ratio}");
        assert_eq!(ratio["a"], own.as_str(), "{ratio}");
    }
}

/// Goal: what does not fit is said at once, not after the time that a backend has to start.
#[test]
fn a_backend_that_does_not_fit() {
    for (backend, depth, what) in [
        (daemon(64), "64", "no ring of 256 descriptors, which 64 requests at a time need"),
        (daemon(64), "64", "--queue-size"),
        ("false {socket}".to_owned(), "1", "ended before it opened its socket"),
        ("racegate@tape".to_owned(), "1", "racegate@tape"),
    ] {
        let began = Instant::now();
        let output = bench(&[&backend, "--depth", depth]);
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{backend}: {said}");
        assert!(said.contains(what), "{backend}: {said}");
        assert!(began.elapsed() < Duration::from_secs(20), "{backend}: {said}");
    }
}
