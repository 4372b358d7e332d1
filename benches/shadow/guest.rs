//! Metadata-heavy work in two guests of the same kernel, one whose disk has a shadow, by turns.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent::wire::{Op, Thread, Trial, Workload};
use campaign::backend::{BackendConfig, Storage};
use campaign::cache::Cache;
use campaign::guest::{Guest, GuestConfig};
use campaign::kernels::{Kernels, Spec};
use campaign::qemu::Qemu;
use pipeline::control::{Request, Response};

const KERNEL: &str = "debian-6.12.107";
/// Longest that a round may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A booted guest, and its rounds so far.
pub(crate) struct Measured {
    guest: Guest,
    rounds: u64,
}

impl Measured {
    /// Boots it.
    pub(crate) fn boot(image: &Path, shadow: bool) -> Measured {
        let cache = Cache::open().expect("a cache");
        let qemu = Qemu::find(&cache).expect("QEMU");
        let accel = qemu.accel().expect("an accelerator");
        let spec = Spec::parse(KERNEL, None).expect("a name");
        let mut backend = BackendConfig::new(PathBuf::from(image));
        backend.storage = Storage::Overlay;
        if shadow {
            backend.extra = vec!["--shadow".into()];
        }
        let config = GuestConfig {
            qemu,
            accel,
            kernel: Kernels::new(&cache).fetch(&spec).expect("a kernel"),
            cmdline: Vec::new(),
            qemu_args: Vec::new(),
            vcpus: 2,
            backend,
            programs: vec![("cat".into(), "coreutils".into())],
            unpacked: Vec::new(),
        };
        let mut guest = Guest::boot(&config).expect("a guest");
        let mount =
            Workload { setup: vec![Op::Mount { options: String::new() }], ..Workload::default() };
        run(&mut guest, 0, mount);
        Measured { guest, rounds: 0 }
    }

    /// One round of work: requests of the disk, by the guest's counts, and requests per second.
    pub(crate) fn round(&mut self) -> (u64, f64) {
        self.rounds += 1;
        let before = self.requests();
        let began = Instant::now();
        run(&mut self.guest, self.rounds, workload(self.rounds));
        let took = began.elapsed().as_secs_f64();
        let made = self.requests() - before;
        (made, made as f64 / took)
    }

    /// Requests that the shadow was told of, and transactions that it has checked.
    pub(crate) fn looked_at(&mut self) -> Option<(u64, u64)> {
        let Response::Stats(stats) = self.guest.control().call(&Request::Stats).expect("stats")
        else {
            return None;
        };
        let shadow = stats.shadow?;
        assert_eq!(shadow.findings, 0, "{:?}", shadow.rules);
        Some((shadow.requests, shadow.commits))
    }

    /// `Documentation/block/stat.rst`: reads, writes, discards, flushes.
    fn requests(&mut self) -> u64 {
        let stat = ["/sys/block/{disk}/stat"];
        let done = self.guest.exec("/bin/cat", &stat, LIMIT).expect("its counts");
        let fields: Vec<u64> =
            done.stdout.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        [0, 4, 11, 15].iter().filter_map(|place| fields.get(*place)).sum()
    }
}

fn run(guest: &mut Guest, trial: u64, workload: Workload) {
    let observed = guest.run(Trial { trial, seed: trial, workload }, LIMIT).expect("a trial");
    let failed = observed.result.steps.iter().find(|step| step.errno.is_some());
    assert!(observed.result.error.is_none() && failed.is_none(), "{:?}", observed.result);
}

/// Three threads that make, write, sync, cut and remove small files: for each fsync a transaction
/// with inode, folder, bitmaps and descriptors.
fn workload(round: u64) -> Workload {
    let thread = |number: u64| {
        let mut ops = Vec::new();
        for at in 0..24_u64 {
            let file = format!("r{round}t{number}f{at}");
            ops.push(Op::Open {
                file: file.clone(),
                path: file.clone(),
                create: true,
                direct: false,
                sync: false,
            });
            ops.push(Op::Write { file: file.clone(), offset: 0, bytes: 9000, fill: 5 });
            ops.push(Op::Fsync { file: file.clone() });
            ops.push(Op::Truncate { file: file.clone(), bytes: 1000 });
            ops.push(Op::Fsync { file: file.clone() });
            ops.push(Op::Close { file: file.clone() });
            ops.push(Op::Unlink { path: file });
        }
        Thread { name: format!("worker{number}"), ops, ..Thread::default() }
    };
    Workload {
        threads: (0..3).map(thread).collect(),
        finish: vec![Op::Syncfs {}],
        ..Workload::default()
    }
}
