//! What the on-disk shadow (`--shadow`) costs, each as a ratio of requests per second with it to
//! those without, taken by turns in one run.
//!
//! `cargo bench -p benches --bench shadow` prints
//!
//! - `file data`: a host-side client (virtio-driver) with 16 random 4 KiB requests in flight to the
//!   data of one file. Nothing there is of interest to the shadow: a lookup in the map tells.
//! - `metadata`: two guests of one kernel, three threads of each making, syncing and removing small
//!   files, so that nearly every request belongs to the journal.
//! - `pipeline`: nanoseconds of layout and shadow for each request of a recorded guest, without
//!   any device.
//!
//! Nothing is asserted about times: they belong to the machine. The aims are at least 0.97 for file
//! data and 0.90 for metadata. `--bench shadow -- file` and `-- metadata` and `-- pipeline` take
//! one part.

#[path = "shadow/client.rs"]
mod client;
#[path = "connect.rs"]
mod connect;
#[path = "shadow/guest.rs"]
mod guest;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use device::blk::{Device, DeviceOptions, Transport};
use device::engine::{Engine, EngineOptions};
use device::stop::Stop;
use device::storage::overlay::OverlayStorage;
use ext4_layout::{Class, Home, Layout, ReadAt, ReadError};
use pipeline::Event;
use pipeline::shadow::{Checker, Options};

use client::{BLOCK_BYTES, Client, Mix};
use guest::Measured;

const MIB: u64 = 1 << 20;
const IMAGE_BYTES: u64 = 384 * MIB;
const FILE_BYTES: u64 = 192 * MIB;
/// Pairs of measurements of file data, and how long each of a pair takes.
const PAIRS: usize = 24;
const TURN: Duration = Duration::from_millis(400);
/// Pairs of rounds of guests.
const GUEST_PAIRS: usize = 16;
/// Times that a recorded log is gone through.
const REPLAYS: usize = 20;

fn main() -> ExitCode {
    let own = || std::env::args_os().skip(1);
    if own().next().is_some_and(|mode| mode == "blk") {
        // The guests' backends are started as `THIS_PROGRAM blk ...`.
        return racegate::blk::main(own());
    }
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wants = |part: &str| asked.is_empty() || asked.iter().any(|of| part.starts_with(of));
    let folder = tempfile::tempdir().expect("a folder");
    if wants("pipeline") {
        recorded();
    }
    let image = folder.path().join("image");
    let blocks = make(folder.path(), &image);
    if wants("file data") {
        file_data(folder.path(), &image, &blocks);
    }
    if wants("metadata") {
        metadata(&image);
    }
    ExitCode::SUCCESS
}

/// An image with one large file, and the byte offsets of the file's blocks.
fn make(folder: &Path, image: &Path) -> Vec<u64> {
    let top = folder.join("top");
    fs::create_dir(&top).expect("a folder");
    let data = vec![0x5a; FILE_BYTES as usize];
    fs::write(top.join("data"), data).expect("a file");
    let file = fs::File::create(image).expect("an image");
    file.set_len(IMAGE_BYTES).expect("its size");
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-b", "4096", "-d"]).arg(&top).arg(image);
    let path = std::env::var("PATH").unwrap_or_default();
    let made = mkfs.env("PATH", format!("{path}:/usr/sbin:/sbin")).status().expect("mkfs.ext4");
    assert!(made.success(), "mkfs.ext4 failed");
    let layout = Layout::open(&mut Image(image.to_owned()), IMAGE_BYTES).expect("ext4");
    let map = layout.map();
    let mut blocks = Vec::new();
    map.classify(0, IMAGE_BYTES / 512, &mut |span| {
        if matches!(span.class, Class::Home(Home::FileData { .. })) {
            let first = span.first_sector * 512;
            blocks.extend((first..first + span.sectors * 512).step_by(BLOCK_BYTES as usize));
        }
    });
    assert!(blocks.len() as u64 >= FILE_BYTES / BLOCK_BYTES, "{} blocks", blocks.len());
    blocks
}

struct Image(PathBuf);

impl ReadAt for Image {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        use std::os::unix::fs::FileExt as _;
        let length = buf.len();
        let read = fs::File::open(&self.0).and_then(|file| file.read_exact_at(buf, offset));
        read.map_err(|source| ReadError { offset, length, source: source.into() })
    }
}

/// A backend in this process, until `stop` is set.
fn serve(folder: &Path, image: &Path, shadow: bool, stop: &Stop, body: impl FnOnce(&Path)) {
    let socket = folder.join(if shadow { "shadow.sock" } else { "plain.sock" });
    let listener = UnixListener::bind(&socket).expect("a socket");
    let storage = Arc::new(OverlayStorage::open(image).expect("the image"));
    let options = EngineOptions {
        queues: 1,
        seed: 0,
        storage: storage.clone(),
        log: None,
        shadow: shadow.then(Options::default),
    };
    let engine = Engine::new(options).expect("an engine");
    let options = DeviceOptions { num_queues: 1, ..DeviceOptions::default() };
    let device = Device::new(options, storage, Some(engine)).expect("a device");
    std::thread::scope(|scope| {
        scope.spawn(|| device.serve(Transport::Listener(listener), stop.as_fd()).expect("served"));
        body(&socket);
        stop.set();
    });
}

fn file_data(folder: &Path, image: &Path, blocks: &[u64]) {
    let (stop_plain, stop_shadow) = (Stop::new().expect("stop"), Stop::new().expect("stop"));
    serve(folder, image, false, &stop_plain, |plain| {
        serve(folder, image, true, &stop_shadow, |shadow| {
            let mut clients = [Client::connect(plain), Client::connect(shadow)];
            // The overlay's pages are made by the first write to each.
            for client in &mut clients {
                client.fill(blocks);
            }
            for mix in [Mix::Read, Mix::Write] {
                let turn = |client: &mut Client| client.random(mix, blocks, TURN);
                let name = format!("file data, {mix:?}").to_lowercase();
                by_turns(&name, PAIRS, &mut clients, turn);
            }
            drop(clients);
        });
    });
}

fn metadata(image: &Path) {
    let mut guests = [Measured::boot(image, false), Measured::boot(image, true)];
    for guest in &mut guests {
        guest.round();
    }
    let mut requests = 0;
    by_turns("metadata, in a guest", GUEST_PAIRS, &mut guests, |guest| {
        let (made, per_second) = guest.round();
        requests += made;
        per_second
    });
    let [_, shadowed] = &mut guests;
    let (looked_at, commits) = shadowed.looked_at().expect("a shadow");
    println!("  {requests} requests by both; the shadow looked at {looked_at}, {commits} commits");
}

/// Measures both by turns, first one and then the other first, and prints the ratio.
fn by_turns<T>(name: &str, pairs: usize, both: &mut [T; 2], mut turn: impl FnMut(&mut T) -> f64) {
    let (mut ratios, mut plain) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        let order = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
        let mut rates = [0.0; 2];
        for which in order {
            rates[which] = turn(&mut both[which]);
        }
        plain.push(rates[0]);
        ratios.push(rates[1] / rates[0]);
    }
    ratios.sort_by(f64::total_cmp);
    plain.sort_by(f64::total_cmp);
    let at = |of: &[f64], part: f64| of[((of.len() - 1) as f64 * part).round() as usize];
    println!(
        "{name:<22} with shadow / without: {:.3} (quartiles {:.3} to {:.3}, {pairs} pairs), \
         {:.0} requests/s without",
        at(&ratios, 0.5),
        at(&ratios, 0.25),
        at(&ratios, 0.75),
        at(&plain, 0.5)
    );
}

/// Layout and shadow alone, on the logs of real guests.
fn recorded() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../backend/pipeline/tests/data");
    for name in ["guest-plain", "guest-checksums", "guest-journaled"] {
        let text = fs::read_to_string(data.join(format!("{name}.jsonl"))).expect("a log");
        let events: Vec<Event> =
            text.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
        let mut best = f64::MAX;
        let mut requests = 0;
        for _ in 0..REPLAYS {
            let mut checker = Checker::new(Options::default());
            let events = events.clone();
            let began = Instant::now();
            for event in events {
                checker.event(event).expect("a sound log");
            }
            let took = began.elapsed().as_secs_f64();
            let stats = checker.finish().expect("bytes").stats;
            requests = stats.requests;
            best = best.min(took * 1e9 / requests as f64);
        }
        println!("pipeline, {name:<16} {best:>8.0} ns for each of {requests} requests");
    }
}
