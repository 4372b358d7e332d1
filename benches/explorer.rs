//! How fast the explorer is, alone and beside its peers.
//!
//! The full engine of delayed allocation on one scenario (`explorer/engine.toml`):
//! 0. transitions a second.
//!
//! One toy model (`explorer/toy.rs`), four questions:
//! 1. transitions a second of each strategy;
//! 2. the same state graph under stateright (the counts of states must agree);
//! 3. complete random schedules a second of the same threads under shuttle;
//! 4. every schedule of one store against fallocate: counted here, executed by shuttle.
//!
//! Most of the time goes into memory that is not in the cache: the visited set is larger than it.
//! `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` puts that on huge pages (measured: a fifth faster).
//!
//! Rates are by processor time of the process (median of three runs), so that a busy machine
//! changes them little; only the line with several workers is by wall clock. Ratios above 1 mean
//! that the explorer is faster.

#[path = "explorer/shuttle_peer.rs"]
mod shuttle_peer;
#[path = "explorer/stateright_peer.rs"]
mod stateright_peer;
#[path = "explorer/toy.rs"]
mod toy;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use delalloc::{DelallocModel, Kernel, Scenario};
use explorer::{Coverage, Model, OneWorker, Options, Strategy, Workers, explore};
use rustix::time::{ClockId, clock_gettime};

use toy::Toy;

const RUNS: usize = 3;
const SCHEDULES: u64 = 50_000;

/// The same program with and without the fix, by size.
const FIXED: Toy = Toy { recheck: true, writeback: true, stores: 4 };
const FIXED_WITHOUT_WRITEBACK: Toy = Toy { recheck: true, writeback: false, stores: 4 };
const ONE_STORE: Toy = Toy { recheck: true, writeback: false, stores: 1 };

struct Threads(usize);

impl Workers for Threads {
    fn count(&self) -> usize {
        self.0
    }

    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for worker in 1..self.0 {
                scope.spawn(move || job(worker));
            }
            job(0);
        });
    }
}

fn main() {
    engine();
    let plain = strategies();
    stateright(plain);
    shuttle_random();
    shuttle_exhaustive();
}

/// Seconds of processor time that the process has used.
fn processor_seconds() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// The result of a job and the median processor time of its runs, in seconds.
fn measure<R>(mut job: impl FnMut() -> R) -> (R, f64) {
    let mut seconds = [0.0; RUNS];
    let mut result = None;
    for run in &mut seconds {
        let start = processor_seconds();
        result = Some(job());
        *run = processor_seconds() - start;
    }
    seconds.sort_by(f64::total_cmp);
    // OK to unwrap: `RUNS` is not 0.
    (result.unwrap(), seconds[RUNS / 2])
}

fn search<M: Model>(model: &M, options: &Options, workers: &dyn Workers) -> Coverage {
    let options = Options { stop_at_first: false, count_states: 0, ..options.clone() };
    let mut on_progress = |_| ControlFlow::Continue(());
    // OK to unwrap: these options are sound.
    explore(model, &options, workers, &mut on_progress).unwrap().coverage
}

fn random(schedules: u64) -> Options {
    Options { strategy: Strategy::Random { seed: 1, schedules }, ..Options::default() }
}

/// Question 0.
fn engine() {
    // OK to unwrap: both are part of this repository.
    let scenario = Scenario::parse(include_str!("explorer/engine.toml")).unwrap();
    let kernel = Kernel::find("linux-6.12.107").unwrap();
    let model = DelallocModel::new(scenario, kernel, None);
    let reduced = Options { strategy: Strategy::PartialOrder, ..Options::default() };
    let (coverage, seconds) = measure(|| search(&model, &Options::default(), &OneWorker));
    let bytes = size_of::<delalloc::State>();
    let (states, transitions) = (coverage.states.unwrap_or(0), coverage.transitions);
    println!("engine: {states} states of {bytes} bytes, {transitions} transitions");
    line("depth first, 1 worker", transitions as f64 / seconds, "transitions");
    let (coverage, seconds) = measure(|| search(&model, &reduced, &OneWorker));
    line("partial order, 1 worker", coverage.transitions as f64 / seconds, "transitions");
    let (coverage, seconds) = measure(|| search(&model, &random(SCHEDULES), &OneWorker));
    line("random, 1 worker", coverage.transitions as f64 / seconds, "transitions");
}

/// Question 1; gives distinct states a second of the plain search.
fn strategies() -> f64 {
    let layered = Options { steps_max: Some(1000), ..Options::default() };
    let (coverage, seconds) = measure(|| search(&FIXED, &Options::default(), &OneWorker));
    let states = coverage.states.unwrap_or(0) as f64;
    let interleavings = coverage.interleavings.unwrap_or(0);
    println!(
        "toy: {states} states, {} transitions, {interleavings} interleavings",
        coverage.transitions
    );
    line("depth first, 1 worker", coverage.transitions as f64 / seconds, "transitions");
    let (coverage, layered_seconds) = measure(|| search(&FIXED, &layered, &OneWorker));
    line("layers, 1 worker", coverage.transitions as f64 / layered_seconds, "transitions");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let start = Instant::now();
    let coverage = search(&FIXED, &layered, &Threads(cores));
    let rate = coverage.transitions as f64 / wall_seconds(start.elapsed());
    line(&format!("layers, {cores} workers, wall clock"), rate, "transitions");
    let (coverage, random_seconds) = measure(|| search(&FIXED, &random(SCHEDULES), &OneWorker));
    line("random, 1 worker", coverage.transitions as f64 / random_seconds, "transitions");
    states / seconds
}

fn wall_seconds(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64()
}

/// Question 2.
fn stateright(explorer_rate: f64) {
    let expected = search(&FIXED, &Options::default(), &OneWorker).states;
    let (states, seconds) = measure(|| stateright_peer::breadth_first(FIXED));
    assert_eq!(Some(states), expected, "stateright and explorer disagree on the graph");
    let rate = states as f64 / seconds;
    line("stateright, breadth first, 1 thread", rate, "states");
    line("explorer, depth first, 1 worker", explorer_rate, "states");
    ratio("explorer / stateright, states a second", explorer_rate / rate);
}

/// Question 3.
fn shuttle_random() {
    let toy = FIXED_WITHOUT_WRITEBACK;
    let (coverage, seconds) = measure(|| search(&toy, &random(SCHEDULES), &OneWorker));
    let explorer_rate = coverage.ends as f64 / seconds;
    let schedules = 2_000;
    let (ran, seconds) = measure(|| shuttle_peer::random(toy.stores, schedules));
    let rate = ran as f64 / seconds;
    line("shuttle, random, 5 threads", rate, "schedules");
    line("explorer, random, 5 threads", explorer_rate, "schedules");
    ratio("explorer / shuttle, random schedules a second", explorer_rate / rate);
}

/// Question 4.
fn shuttle_exhaustive() {
    let (coverage, seconds) = measure(|| search(&ONE_STORE, &Options::default(), &OneWorker));
    let interleavings = coverage.interleavings.unwrap_or(0) as f64;
    let (ran, shuttle_seconds) = measure(|| shuttle_peer::exhaustive(ONE_STORE.stores));
    println!(
        "one store against fallocate: {interleavings} interleavings here, {ran} in shuttle (which also schedules spawn and join)"
    );
    line("shuttle, depth first", ran as f64 / shuttle_seconds, "schedules");
    line("explorer, depth first, counted", interleavings / seconds, "schedules");
    ratio("explorer / shuttle, all schedules", (shuttle_seconds / seconds).max(0.0));
}

fn line(what: &str, rate: f64, of: &str) {
    println!("{what:<44}{:>12.3} M {of}/s", rate / 1e6);
}

fn ratio(what: &str, ratio: f64) {
    println!("{what:<44}{ratio:>12.1} x");
}
