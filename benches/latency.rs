//! Requested against achieved latency, through the whole real path: virtio-driver client, socket,
//! virtqueue, engine, timer, storage, and back.
//!
//! `cargo bench -p benches --bench latency` prints, for each requested delay, how much later than
//! requested things happened, at a low load (one request at a time, a pause after each):
//!
//! - `client`: from the kick to the completion, less the delay, less the median of the same
//!   without any delay (first row). What a guest sees.
//! - `backend`: from arrival to the hand-over to storage, less the delay. What the rules report.
//!
//! Nothing is asserted: times belong to the machine. The aim is a median within 20 us and a 99th
//! percentile within 200 us on an idle one.

#[path = "latency/client.rs"]
mod client;
#[path = "connect.rs"]
mod connect;

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use device::blk::{Device, DeviceOptions, Transport};
use device::engine::{Engine, EngineOptions};
use device::stop::Stop;
use device::storage::memory::MemoryStorage;
use hdrhistogram::Histogram;
use pipeline::event::RulesText;

use client::Client;

const DISK_BYTES: u64 = 64 << 20;
/// Sectors that one rule is about.
const STRIDE: u64 = 64;
/// Between two requests, so that threads are asleep when the next one comes.
const PAUSE: Duration = Duration::from_micros(500);

/// Longer than any request takes, in nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;

/// Delay and number of requests; 0: no rule.
const ROWS: [(Duration, u32); 6] = [
    (Duration::ZERO, 2000),
    (Duration::from_micros(20), 2000),
    (Duration::from_micros(100), 2000),
    (Duration::from_millis(1), 1000),
    (Duration::from_millis(10), 300),
    (Duration::from_millis(100), 60),
];

fn main() {
    let folder = tempfile::tempdir().expect("folder");
    let socket = folder.path().join("blk.sock");
    let listener = UnixListener::bind(&socket).expect("socket");
    let storage = Arc::new(MemoryStorage::new(DISK_BYTES).expect("memory"));
    let options =
        EngineOptions { queues: 1, seed: 0, storage: storage.clone(), log: None, shadow: None };
    let engine = Engine::new(options).expect("engine");
    let text = RulesText { file: "latency.toml".into(), text: rules(), ..RulesText::default() };
    engine.load(&text).expect("rules");
    let options = DeviceOptions { num_queues: 1, ..DeviceOptions::default() };
    let device = Device::new(options, storage, Some(Arc::clone(&engine))).expect("device");
    let stop = Stop::new().expect("stop");
    std::thread::scope(|scope| {
        scope.spawn(|| device.serve(Transport::Listener(listener), stop.as_fd()).expect("served"));
        measure(&socket, &engine);
        stop.set();
    });
}

/// One rule for each delay, told apart by where the request goes.
fn rules() -> String {
    let rule = |(row, (delay, _)): (usize, &(Duration, u32))| {
        let first = row as u64 * STRIDE;
        format!(
            "[[rule]]\nname = \"{}\"\nmatch = {{ op = \"read\", sector = \"{first}..{}\" }}\n\
             action = {{ delay = \"{}us\" }}\n",
            name(*delay),
            first + STRIDE,
            delay.as_micros()
        )
    };
    ROWS.iter().enumerate().filter(|(_, (delay, _))| !delay.is_zero()).map(rule).collect()
}

fn name(delay: Duration) -> String {
    format!("{}us", delay.as_micros())
}

fn measure(socket: &std::path::Path, engine: &Engine) {
    let mut client = Client::connect(socket);
    for _ in 0..200 {
        client.read(0);
    }
    println!(
        "{:>10} {:>8} | {:>10} {:>10} {:>10} | {:>10} {:>10} {:>10}   (microseconds late)",
        "requested", "requests", "client p50", "p99", "max", "backend p50", "p99", "max"
    );
    let mut baseline_ns = 0;
    for (row, (delay, requests)) in ROWS.into_iter().enumerate() {
        let mut latencies =
            Histogram::<u64>::new_with_bounds(1, LONGEST_NS, 3).expect("a histogram");
        for _ in 0..requests {
            let began = Instant::now();
            client.read(row as u64 * STRIDE * 512);
            let took = began.elapsed();
            let late = took.saturating_sub(delay).as_nanos() as u64;
            latencies.saturating_record(late.saturating_sub(baseline_ns));
            std::thread::sleep(PAUSE);
        }
        let us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
        print!(
            "{:>10} {requests:>8} | {:>10.1} {:>10.1} {:>10.1} |",
            if delay.is_zero() { "none".to_owned() } else { name(delay) },
            us(0.5),
            us(0.99),
            us(1.0)
        );
        let stats = engine.stats();
        let rule = stats.rules.iter().find(|rule| *rule.name == *name(delay));
        if let Some(late) = rule.and_then(|rule| rule.late.as_ref()) {
            let us = |ns: u64| ns as f64 / 1000.0;
            println!(
                " {:>10.1} {:>10.1} {:>10.1}",
                us(late.p50_ns),
                us(late.p99_ns),
                us(late.max_ns)
            );
        } else {
            baseline_ns = latencies.value_at_quantile(0.5);
            println!(" (the whole way of a request without a rule)");
        }
    }
}
