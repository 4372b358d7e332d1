//! Fuzz targets: one for each way in which bytes reach racegate that nobody vouches for.
//!
//! In: an input, any bytes. Out: nothing; a panic says that something broke: the code under test,
//! an invariant that the target checks, or the bounds on memory below.
//! Must not know: the fuzzer. The targets are functions, so the seeds and the inputs that once
//! broke something (`regressions/`) run as ordinary tests.
//!
//! An input must not leak a byte nor hold more than the target's bound at a time. That is counted
//! by the allocator, input by input, in the thread that runs it; memory that is mapped is left to
//! the fuzzer's limit on the whole process.

mod agent_link;
mod canary;
mod chains;
mod control;
mod disk;
mod event_log;
mod image;
mod journal;
mod messages;
mod recorded;
mod rules;
mod seed;

use allocation_counter::measure;

/// One way in.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Runs one input; panics if something is wrong.
    run: fn(&[u8]),
    /// Inputs to start from, made by code.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Longest useful input in bytes.
    pub longest: usize,
    /// Most bytes that the thread of one input may hold at a time.
    most_bytes: u64,
    /// Whether that thread must have given back all of them at the end; not where other threads
    /// take part.
    gives_back: bool,
}

const MIB: u64 = 1 << 20;

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "chains",
        run: chains::run,
        seeds: chains::seeds,
        longest: 4096,
        most_bytes: 16 * MIB,
        gives_back: true,
    },
    Target {
        name: "messages",
        run: messages::run,
        seeds: messages::seeds,
        longest: 4096,
        most_bytes: 16 * MIB,
        gives_back: false,
    },
    Target {
        name: "image",
        run: image::run,
        seeds: image::seeds,
        longest: 8192,
        most_bytes: 64 * MIB,
        gives_back: true,
    },
    Target {
        name: "journal",
        run: journal::run,
        seeds: journal::seeds,
        longest: 8192,
        most_bytes: 64 * MIB,
        gives_back: true,
    },
    Target {
        name: "event-log",
        run: event_log::run,
        seeds: event_log::seeds,
        longest: 32 << 10,
        most_bytes: 64 * MIB,
        gives_back: true,
    },
    Target {
        name: "rules",
        run: rules::run,
        seeds: rules::seeds,
        longest: 4096,
        most_bytes: 32 * MIB,
        gives_back: true,
    },
    Target {
        name: "control",
        run: control::run,
        seeds: control::seeds,
        longest: 4096,
        most_bytes: 64 * MIB,
        gives_back: false,
    },
    Target {
        name: "agent",
        run: agent_link::run,
        seeds: agent_link::seeds,
        longest: 4096,
        most_bytes: 16 * MIB,
        gives_back: true,
    },
];

/// Targets with a planted bug, which a fuzzer that works must find.
pub const CANARIES: &[Target] = &[
    canary::target("canary-panic", canary::panics),
    canary::target("canary-leak", canary::leaks),
    canary::target("canary-balloon", canary::balloons),
    canary::target("canary-hang", canary::hangs),
];

/// The target or canary of that name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().chain(CANARIES).find(|target| target.name == name)
}

impl Target {
    /// Runs one input.
    ///
    /// # Panics
    /// Something is wrong.
    pub fn check(&self, input: &[u8]) {
        let run = || measure(|| (self.run)(input));
        let first = run();
        let most = self.most_bytes;
        let peak = first.bytes_max;
        assert!(peak <= most, "{}: {peak} bytes at a time, {most} allowed", self.name);
        // The first time may leave behind what is made once for all.
        if self.gives_back && first.bytes_current != 0 {
            let again = run();
            let lost = again.bytes_current;
            assert_eq!(lost, 0, "{}: the input leaks {lost} bytes", self.name);
        }
    }
}
