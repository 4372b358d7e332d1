//! Threads of this machine for a search.

use std::num::NonZeroUsize;
use std::thread;

use explorer::Workers;

/// So many threads, started for each job and joined at its end.
pub(super) struct Threads(usize);

impl Threads {
    /// As many as asked for, else as many as the machine runs at once.
    pub(super) fn new(count: Option<u16>) -> Threads {
        let available = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Threads(count.map_or_else(available, usize::from))
    }
}

impl Workers for Threads {
    fn count(&self) -> usize {
        self.0
    }

    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        thread::scope(|scope| {
            for worker in 1..self.0 {
                scope.spawn(move || job(worker));
            }
            job(0);
        });
    }
}
