//! Tests of the explorer on small models, through its public interface only.
//!
//! `program` is an interpreter of tiny programs, from which most models here are made, written by
//! hand or generated. `oracle` enumerates schedules one by one with neither a visited set nor a
//! reduction: slow, and too simple to be wrong in the same way.

mod audit;
mod bounds;
mod counts;
mod litmus;
mod oracle;
mod program;
mod random;
mod reduction;
mod replay;

use std::ops::ControlFlow;

use explorer::{Model, Options, Progress, Report, Workers, explore};

/// Threads of the operating system, as the command uses them.
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

fn run<M: Model>(model: &M, options: &Options, workers: usize) -> Report {
    let mut on_progress = |_: Progress| ControlFlow::Continue(());
    explore(model, options, &Threads(workers), &mut on_progress).expect("options are sound")
}

/// Exhaustive, all violations, no bounds.
fn all() -> Options {
    Options { stop_at_first: false, ..Options::default() }
}
