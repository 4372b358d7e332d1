//! Requested against achieved latency of page faults and flushes, through the whole real path:
//! a mapped file, the kernel's FUSE, `racegate-pmem` in a process of its own, and back.
//!
//! `cargo bench -p benches --bench pmem` prints, for each requested delay, how much later than
//! requested things happened, one touch at a time and a pause after each:
//!
//! - `touch`: from the first touch of a page to its value, less the delay. What a guest sees; the
//!   row `none` is the whole way without a rule, `armed` the same for a page that a rule is about
//!   and lets pass: two requests instead of one.
//! - `server`: from arrival to the hand-over to storage, less the delay. What the rules report.
//!
//! Nothing is asserted: times belong to the machine. The aim is a median within 20 us on an idle
//! one.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use device::dax::{DaxFile, Writer};
use hdrhistogram::Histogram;
use pipeline::control::{Request, Response};

const PAGE: u64 = 4096;
/// Pages of the file.
const PAGES: u64 = 16 << 10;
/// Pages of one row.
const STRIDE: u64 = 2000;
/// Between two touches, so that threads are asleep when the next one comes.
const PAUSE: Duration = Duration::from_micros(500);
/// Longer than anything takes, in nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;

/// Name, delay, touches; each row has pages of its own.
const ROWS: [(&str, Option<Duration>, u64); 5] = [
    ("none", None, STRIDE),
    ("armed", Some(Duration::ZERO), STRIDE),
    ("100us", Some(Duration::from_micros(100)), STRIDE),
    ("1ms", Some(Duration::from_millis(1)), 1000),
    ("10ms", Some(Duration::from_millis(10)), 300),
];
const FLUSH: Duration = Duration::from_millis(5);
const FLUSHES: u64 = 200;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|mode| mode == "pmem") {
        let program = std::ffi::OsString::from("racegate-pmem");
        return racegate::pmem::main(std::iter::once(program).chain(words));
    }
    let folder = tempfile::tempdir().expect("folder");
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("mount")).expect("mount point");
    std::fs::write(at("rules.toml"), rules()).expect("rules");
    let image = std::fs::File::create(at("image")).expect("image");
    image.set_len(PAGES * PAGE).expect("image");
    let mut server = Command::new(std::env::current_exe().expect("this program"))
        .args(["pmem", "--pmem-file=image", "--mount-point=mount", "--control-socket=c"])
        .args(["--storage=memory", "--rules=rules.toml", "--ready-fd=1"])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program");
    let mut line = String::new();
    let said = server.stdout.take().expect("a pipe");
    BufReader::new(said).read_line(&mut line).expect("a line");
    if let Some(file) = line.trim_end().strip_prefix("ready ") {
        measure(Path::new(file), &at("c"));
        ask(&at("c"), &Request::Shutdown);
    } else {
        println!("skipped: no page server");
    }
    server.wait().expect("the server ends");
    ExitCode::SUCCESS
}

/// One rule for each delay, told apart by the page.
fn rules() -> String {
    let mut rules = format!(
        "[[rule]]\nname = \"flush\"\nmatch = {{ op = \"flush\" }}\naction = {{ delay = \"{}us\" }}\n",
        FLUSH.as_micros()
    );
    for (row, (name, delay, _)) in (0..).zip(ROWS) {
        let Some(delay) = delay else { continue };
        let first = row * STRIDE * (PAGE / 512);
        let action = if delay.is_zero() {
            "pass = true".to_owned()
        } else {
            format!("delay = \"{}us\"", delay.as_micros())
        };
        let end = first + STRIDE * (PAGE / 512);
        let _ = write!(
            rules,
            "[[rule]]\nname = \"{name}\"\nmatch = {{ op = \"fault\", sector = \"{first}..{end}\" }}\n\
             action = {{ {action} }}\n"
        );
    }
    rules
}

fn ask(socket: &Path, request: &Request) -> Response {
    let mut socket = UnixStream::connect(socket).expect("the control socket");
    let mut text = serde_json::to_string(request).expect("JSON");
    text.push('\n');
    socket.write_all(text.as_bytes()).expect("sent");
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).expect("an answer");
    serde_json::from_str(&line).expect("JSON")
}

fn measure(file: &Path, control: &Path) {
    let mapped = DaxFile::open(file).expect("the file can be mapped");
    // Threads, caches and leads warm up on pages that no row has.
    for page in (ROWS.len() as u64 * STRIDE)..PAGES {
        mapped.read_word(page * PAGE).expect("read");
    }
    println!(
        "{:>10} {:>8} | {:>10} {:>10} {:>10} | {:>10} {:>10} {:>10}   (microseconds late)",
        "requested", "touches", "touch p50", "p99", "max", "server p50", "p99", "max"
    );
    for (row, (name, delay, touches)) in (0..).zip(ROWS) {
        let delay = delay.unwrap_or_default();
        let latencies = timed(touches, delay, |touch| {
            mapped.read_word((row * STRIDE + touch) * PAGE).expect("read");
        });
        print_row(name, &latencies, control);
    }
    let mut writer = Writer::new(&mapped);
    let latencies = timed(FLUSHES, FLUSH, |_| {
        writer.note(0..PAGE);
        writer.drain().expect("flushed");
    });
    print_row("flush", &latencies, control);
}

fn timed(count: u64, delay: Duration, mut what: impl FnMut(u64)) -> Histogram<u64> {
    let mut latencies = Histogram::<u64>::new_with_bounds(1, LONGEST_NS, 3).expect("a histogram");
    for number in 0..count {
        let began = Instant::now();
        what(number);
        latencies.saturating_record(began.elapsed().saturating_sub(delay).as_nanos() as u64);
        std::thread::sleep(PAUSE);
    }
    latencies
}

fn print_row(name: &str, latencies: &Histogram<u64>, control: &Path) {
    let us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    let count = latencies.len();
    print!("{name:>10} {count:>8} | {:>10.1} {:>10.1} {:>10.1} |", us(0.5), us(0.99), us(1.0));
    let Response::Stats(stats) = ask(control, &Request::Stats) else {
        panic!("no statistics");
    };
    let rule = stats.rules.iter().find(|rule| *rule.name == *name);
    if let Some(late) = rule.and_then(|rule| rule.late.as_ref()) {
        let us = |ns: u64| ns as f64 / 1000.0;
        print!(" {:>10.1} {:>10.1} {:>10.1}", us(late.p50_ns), us(late.p99_ns), us(late.max_ns));
    }
    println!();
}
