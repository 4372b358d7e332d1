//! How a search gets more than one core without starting threads of its own.
//!
//! The search hands out a job; the caller runs it on as many threads as it likes. With
//! `std::thread::scope` that is:
//!
//! ```
//! struct Threads(usize);
//!
//! impl explorer::Workers for Threads {
//!     fn count(&self) -> usize {
//!         self.0
//!     }
//!
//!     fn run(&self, job: &(dyn Fn(usize) + Sync)) {
//!         std::thread::scope(|scope| {
//!             for worker in 1..self.0 {
//!                 scope.spawn(move || job(worker));
//!             }
//!             job(0);
//!         });
//!     }
//! }
//! ```

/// Runs a job on several threads.
pub trait Workers {
    /// How many threads `run` uses, at least 1.
    fn count(&self) -> usize;

    /// Calls `job` once with each number below `count`, at the same time if it can, and returns
    /// when all calls have.
    fn run(&self, job: &(dyn Fn(usize) + Sync));
}

/// The calling thread alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct OneWorker;

impl Workers for OneWorker {
    fn count(&self) -> usize {
        1
    }

    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        job(0);
    }
}
