//! How fast the explorer is, alone and beside its peers.
//!
//! The full engine of delayed allocation on one scenario (`explorer/engine.toml`):
//! 0. transitions a second of each strategy, and what a second worker brings.
//!
//! One toy model (`explorer/toy.rs`), four questions:
//! 1. transitions a second of each strategy;
//! 2. the same state graph under stateright (the counts of states must agree);
//! 3. complete random schedules a second of the same threads under shuttle;
//! 4. every schedule of one store against fallocate: counted here, executed by shuttle.
//!
//! Rates are by processor time of the process, so that a busy machine changes them little: the
//! median of five runs, and the slowest and fastest. Where several workers are compared it is by
//! wall clock, and the machine should have a core for each. Ratios above 1 mean that the explorer
//! is faster. `cargo bench -p benches --bench explorer -- engine` stops after question 0.

#[path = "explorer/shuttle_peer.rs"]
mod shuttle_peer;
#[path = "explorer/stateright_peer.rs"]
mod stateright_peer;
#[path = "explorer/toy.rs"]
mod toy;

use std::ops::ControlFlow;
use std::time::Instant;

use delalloc::{DelallocModel, Kernel, Scenario};
use explorer::{Coverage, Model, OneWorker, Options, Strategy, Workers, explore};
use rustix::time::{ClockId, clock_gettime};

use toy::Toy;

const RUNS: usize = 5;
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
    if std::env::args().any(|argument| argument == "engine") {
        return;
    }
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

/// Seconds that runs of one job took, in ascending order.
struct Seconds([f64; RUNS]);

impl Seconds {
    fn median(&self) -> f64 {
        self.0[RUNS / 2]
    }

    /// Prints so many things a second.
    fn line(&self, what: &str, things: f64, of: &str) {
        let [median, slowest, fastest] =
            [self.median(), self.0[RUNS - 1], self.0[0]].map(|seconds| things / seconds / 1e6);
        println!("{what:<44}{median:>10.3} M {of}/s  ({slowest:.3} to {fastest:.3})");
    }
}

/// The result of a job and how long its runs took by this clock, which gives seconds.
fn timed<R>(clock: impl Fn() -> f64, mut job: impl FnMut() -> R) -> (R, Seconds) {
    let mut seconds = [0.0; RUNS];
    let mut result = None;
    for run in &mut seconds {
        let start = clock();
        result = Some(job());
        *run = clock() - start;
    }
    seconds.sort_by(f64::total_cmp);
    // OK to unwrap: `RUNS` is not 0.
    (result.unwrap(), Seconds(seconds))
}

/// The result of a job and the processor time of its runs.
fn measure<R>(job: impl FnMut() -> R) -> (R, Seconds) {
    timed(processor_seconds, job)
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
    let (states, transitions) = (coverage.states.unwrap_or(0), coverage.transitions);
    let bytes = size_of::<delalloc::State>();
    println!("engine: {states} states of {bytes} bytes, {transitions} transitions");
    seconds.line("depth first, 1 worker", transitions as f64, "transitions");
    workers(&model, &coverage);
    let (coverage, seconds) = measure(|| search(&model, &reduced, &OneWorker));
    seconds.line("partial order, 1 worker", coverage.transitions as f64, "transitions");
    let (coverage, seconds) = measure(|| search(&model, &random(SCHEDULES), &OneWorker));
    seconds.line("random, 1 worker", coverage.transitions as f64, "transitions");
}

/// All of the graph, layer by layer, on one worker and on one for each core. By wall clock; the
/// processor time says what the workers cost each other, on a busy machine, too.
fn workers<M: Model>(model: &M, depth_first: &Coverage) {
    let layered = Options { steps_max: Some(1000), ..Options::default() };
    let start = Instant::now();
    let clock = || start.elapsed().as_secs_f64();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let [one, all] = [1, cores].map(|count| {
        let before = processor_seconds();
        let (coverage, seconds) = timed(clock, || search(model, &layered, &Threads(count)));
        let processor = processor_seconds() - before;
        let figures = |coverage: &Coverage| (coverage.states, coverage.transitions, coverage.ends);
        assert_eq!(figures(&coverage), figures(depth_first), "{count} workers");
        let workers = if count == 1 { "worker" } else { "workers" };
        let what = format!("layers, {count} {workers}, wall clock");
        seconds.line(&what, coverage.transitions as f64, "transitions");
        (seconds.median(), processor)
    });
    ratio(&format!("{cores} workers / 1 worker, wall clock"), one.0 / all.0);
    ratio(&format!("{cores} workers / 1 worker, processor time"), all.1 / one.1);
}

/// Question 1; gives distinct states a second of the plain search.
fn strategies() -> f64 {
    let (coverage, seconds) = measure(|| search(&FIXED, &Options::default(), &OneWorker));
    let states = coverage.states.unwrap_or(0) as f64;
    let interleavings = coverage.interleavings.unwrap_or(0);
    println!(
        "toy: {states} states, {} transitions, {interleavings} interleavings",
        coverage.transitions
    );
    seconds.line("depth first, 1 worker", coverage.transitions as f64, "transitions");
    workers(&FIXED, &coverage);
    let (coverage, random_seconds) = measure(|| search(&FIXED, &random(SCHEDULES), &OneWorker));
    random_seconds.line("random, 1 worker", coverage.transitions as f64, "transitions");
    states / seconds.median()
}

/// Question 2.
fn stateright(explorer_rate: f64) {
    let expected = search(&FIXED, &Options::default(), &OneWorker).states;
    let (states, seconds) = measure(|| stateright_peer::breadth_first(FIXED));
    assert_eq!(Some(states), expected, "stateright and explorer disagree on the graph");
    seconds.line("stateright, breadth first, 1 thread", states as f64, "states");
    let rate = states as f64 / seconds.median();
    println!("{:<44}{:>10.3} M states/s", "explorer, depth first, 1 worker", explorer_rate / 1e6);
    ratio("explorer / stateright, states a second", explorer_rate / rate);
}

/// Question 3.
fn shuttle_random() {
    let toy = FIXED_WITHOUT_WRITEBACK;
    let (coverage, seconds) = measure(|| search(&toy, &random(SCHEDULES), &OneWorker));
    let (ran, shuttle_seconds) = measure(|| shuttle_peer::random(toy.stores, 2_000));
    shuttle_seconds.line("shuttle, random, 5 threads", ran as f64, "schedules");
    seconds.line("explorer, random, 5 threads", coverage.ends as f64, "schedules");
    let (rate, peer) =
        (coverage.ends as f64 / seconds.median(), ran as f64 / shuttle_seconds.median());
    ratio("explorer / shuttle, random schedules a second", rate / peer);
}

/// Question 4.
fn shuttle_exhaustive() {
    let (coverage, seconds) = measure(|| search(&ONE_STORE, &Options::default(), &OneWorker));
    let interleavings = coverage.interleavings.unwrap_or(0);
    let (ran, shuttle_seconds) = measure(|| shuttle_peer::exhaustive(ONE_STORE.stores));
    println!(
        "one store against fallocate: {interleavings} interleavings here, {ran} in shuttle (which also schedules spawn and join)"
    );
    shuttle_seconds.line("shuttle, depth first", ran as f64, "schedules");
    seconds.line("explorer, depth first, counted", interleavings as f64, "schedules");
    ratio("explorer / shuttle, all schedules", shuttle_seconds.median() / seconds.median());
}

fn ratio(what: &str, ratio: f64) {
    println!("{what:<44}{ratio:>12.1} x");
}
