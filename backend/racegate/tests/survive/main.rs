//! Goal: nothing is lost, doubled or corrupt when the daemon, the virtual machine monitor or the
//! guest dies at any time with requests outstanding, held and delayed ones among them.
//! Method: the real daemon on a real image, killed with SIGKILL and started again at once or after
//! two seconds; a front-end that keeps its memory, rings and in-flight area as QEMU and
//! cloud-hypervisor do, speaks as they do, and checks every completion and, at the end, every
//! block.
//!
//! `RACEGATE_DEATHS=300 cargo test --package racegate --test survive` is the long version: so many
//! deaths of each kind. `RACEGATE_SEED` repeats one.

mod load;
mod socket;
#[path = "../support/daemon.rs"]
#[expect(dead_code, reason = "shared with the tests of the command lines")]
mod support;
mod vmm;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent::draws::Draws;
use rustix::process::Signal;

use load::{IMAGE_BYTES, Load, RULES};
use support::{Daemon, Place};
use vmm::{Manners, QUEUES, Vmm};

/// Deaths of each kind without `RACEGATE_DEATHS`.
const FEW: u64 = 10;

fn number(name: &str, or: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(or, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// A place for the daemon, and what is drawn in it.
struct Arena {
    place: Place,
    draws: Draws,
    seed: u64,
    deaths: u64,
}

impl Arena {
    fn new(name: &str) -> Arena {
        let seed = number("RACEGATE_SEED", 1);
        let place = Place::for_program(&[env!("CARGO_BIN_EXE_racegate-blk")]);
        place.file("disk", IMAGE_BYTES);
        std::fs::write(place.path("rules.toml"), RULES).expect("rules");
        let deaths = number("RACEGATE_DEATHS", FEW);
        eprintln!("{name}: seed {seed}, {deaths} deaths");
        Arena { place, draws: Draws::new(seed, name), seed, deaths }
    }

    fn socket(&self) -> PathBuf {
        self.place.path("s")
    }

    /// Starts the daemon, past the page cache every other time.
    fn start(&mut self) -> Daemon {
        let mut args = vec![
            "--blk-file=disk",
            "--socket-path=s",
            "--num-queues=2",
            "--queue-size=128",
            "--rules=rules.toml",
        ];
        if self.draws.between(0, 1) == 1 {
            args.push("--direct");
        }
        self.place.start(&args).0
    }

    /// Runs the load for a random time.
    fn run(&mut self, load: &mut Load, vmm: &mut Vmm, least_ms: u64, most_ms: u64) {
        let time = Duration::from_micros(self.draws.between(least_ms * 1000, most_ms * 1000));
        load.run(vmm, Instant::now() + time);
    }

    fn manners(&mut self) -> Manners {
        if self.draws.between(0, 1) == 0 { Manners::Qemu } else { Manners::CloudHypervisor }
    }

    /// Everything is completed, and the disk holds what it should; and if it did not, that would
    /// be seen.
    fn finish(&self, load: &mut Load, vmm: &mut Vmm, daemon: Daemon) {
        load.drain(vmm);
        vmm.disconnect();
        let output = daemon.terminate();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let disk = self.place.path("disk");
        let written = load.check_image(&disk).unwrap_or_else(|corrupt| panic!("{corrupt}"));
        assert!(written > 100, "only {written} blocks were written");
        load.forge();
        load.check_image(&disk).expect_err("a write that was never made is not missed");
        eprintln!(
            "seed {}: {} requests, {written} blocks compared: 0 lost, 0 doubled, 0 corrupt, \
             0 hangs",
            self.seed, load.completed
        );
    }
}

/// SIGKILL at any time, also while the daemon starts or the front-end speaks to it.
#[test]
fn killed_daemons() {
    let mut arena = Arena::new("killed_daemons");
    let mut load = Load::new(arena.seed);
    let mut vmm = Vmm::new();
    let mut in_flight = 0;
    let (mut soon, mut late) = (0, 0);
    let mut daemon = arena.start();
    for death in 0..arena.deaths {
        let manners = arena.manners();
        // One in eight dies before its front-end has come back.
        if arena.draws.between(0, 7) != 0 {
            vmm.connect(&arena.socket(), manners).expect("the daemon is ready");
            arena.run(&mut load, &mut vmm, 0, 150);
        }
        daemon.signal(Signal::KILL);
        let killed = Instant::now();
        in_flight += load.outstanding;
        if death % 2 == 0 {
            daemon.end();
            vmm.disconnect();
            arena.run(&mut load, &mut vmm, 0, 60);
            soon += u64::from(killed.elapsed() < Duration::from_millis(100));
            daemon = arena.start();
        } else {
            daemon.end();
            vmm.disconnect();
            load.run(&mut vmm, killed + Duration::from_secs(2));
            daemon = arena.start();
            late += 1;
        }
    }
    vmm.connect(&arena.socket(), Manners::Qemu).expect("the daemon is ready");
    eprintln!(
        "{} kills, {soon} followed by a start within 100 ms, {late} after 2 s; {} requests \
         outstanding at a kill on average",
        arena.deaths,
        in_flight / arena.deaths.max(1)
    );
    arena.finish(&mut load, &mut vmm, daemon);
}

/// The virtual machine monitor dies: its requests are carried out or not, and the next one finds
/// a disk in order.
#[test]
fn dead_machines() {
    let mut arena = Arena::new("dead_machines");
    let mut load = Load::new(arena.seed);
    let daemon = arena.start();
    let mut in_flight = 0;
    for _ in 0..arena.deaths {
        let mut vmm = Vmm::new();
        let manners = arena.manners();
        vmm.connect(&arena.socket(), manners).expect("the daemon is there");
        arena.run(&mut load, &mut vmm, 0, 120);
        in_flight += load.outstanding;
        // Memory and socket at once, as a killed process leaves them.
        drop(vmm);
        load.forget();
    }
    let mut vmm = Vmm::new();
    vmm.connect(&arena.socket(), Manners::Qemu).expect("the daemon is there");
    arena.run(&mut load, &mut vmm, 200, 200);
    eprintln!(
        "{} deaths of a VMM; {} requests outstanding at one on average",
        arena.deaths,
        in_flight / arena.deaths.max(1)
    );
    arena.finish(&mut load, &mut vmm, daemon);
}

/// The guest resets the device: what was taken is completed before the index is told. Pauses and
/// daemons that die between resets are mixed in.
#[test]
fn reset_guests() {
    let mut arena = Arena::new("reset_guests");
    let mut load = Load::new(arena.seed);
    let mut vmm = Vmm::new();
    let mut daemon = arena.start();
    vmm.connect(&arena.socket(), Manners::Qemu).expect("the daemon is ready");
    for _ in 0..arena.deaths {
        arena.run(&mut load, &mut vmm, 0, 100);
        let bases = vmm.stop().expect("the daemon answers");
        load.reap(&mut vmm);
        for (queue, base) in bases.into_iter().enumerate() {
            let done = vmm.used_in_memory(queue);
            assert_eq!(base, done, "queue {queue}: taken, and neither completed nor given back");
        }
        if arena.draws.between(0, 3) == 0 {
            // A pause: what was not taken is taken now.
            vmm.start_again(false).expect("the daemon is there");
            continue;
        }
        // What was never taken is gone with the ring.
        load.forget();
        if arena.draws.between(0, 7) == 0 {
            daemon.signal(Signal::KILL);
            daemon.end();
            vmm.disconnect();
            daemon = arena.start();
            vmm.connect(&arena.socket(), Manners::Qemu).expect("the daemon is ready");
            vmm.stop().expect("the daemon answers");
        }
        vmm.start_again(true).expect("the daemon is there");
    }
    assert!(vmm.is_connected() && vmm.rings.len() == QUEUES);
    eprintln!("{} resets and pauses", arena.deaths);
    arena.finish(&mut load, &mut vmm, daemon);
}
