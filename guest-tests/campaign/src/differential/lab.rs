//! A guest with a mounted file system on which lists run undisturbed.
//!
//! In: a kernel, a shape, scripts. Out: results. Writeback happens only when a list says so, reads
//! take single pages, and unwritten extents are never zeroed to spare a split.

use std::time::Duration;

use agent::wire::{ListResult, Op, Trial, Workload};

use super::list::Script;
use super::{DifferentialError, Order, Shape};
use crate::backend::BackendConfig;
use crate::guest::{Guest, GuestConfig, GuestError};
use crate::image::{self, ImageSpec};
use crate::interrupt;

/// How long one batch may take. A list takes some 30 ms.
const BATCH_LIMIT: Duration = Duration::from_secs(120);
/// How long the check of the file system may take.
const CHECK_LIMIT: Duration = Duration::from_secs(120);
/// Guests that one batch may use up.
const MOST_GUESTS: u32 = 3;

/// The guest, booted when it is first needed.
pub(super) struct Lab<'a> {
    order: &'a Order,
    shape: Shape,
    config: GuestConfig,
    guest: Option<Guest>,
    /// Number of the next file.
    number: u64,
}

impl Lab<'_> {
    pub(super) fn new(order: &Order, shape: Shape) -> Result<Lab<'_>, DifferentialError> {
        let spec = ImageSpec { bytes: shape.bytes(), mkfs: shape.mkfs() };
        let config = GuestConfig {
            qemu: order.qemu.clone(),
            accel: order.accel,
            kernel: order.kernel.clone(),
            cmdline: Vec::new(),
            qemu_args: Vec::new(),
            vcpus: 1,
            backend: BackendConfig::new(image::base(&order.cache, &spec)?),
            programs: vec![("e2fsck".to_owned(), "e2fsprogs".to_owned())],
            unpacked: Vec::new(),
        };
        Ok(Lab { order, shape, config, guest: None, number: 0 })
    }

    /// Runs scripts, one result each; in a new guest if the guest fails.
    pub(super) fn run(&mut self, scripts: &[Script]) -> Result<Vec<ListResult>, DifferentialError> {
        let mut failed = 0;
        loop {
            if interrupt::requested() {
                return Err(DifferentialError::Interrupted);
            }
            match self.attempt(scripts) {
                Ok(results) => return Ok(results),
                Err(error) if error.is_interrupt() => return Err(DifferentialError::Interrupted),
                Err(error) => {
                    failed += 1;
                    self.guest = None;
                    if failed == MOST_GUESTS {
                        return Err(DifferentialError::Guest { source: Box::new(error) });
                    }
                    tracing::warn!("the guest failed and is booted anew: {error}");
                }
            }
        }
    }

    /// Gives the guest up: the next lists run in a new one.
    pub(super) fn renew(&mut self) {
        self.guest = None;
    }

    fn attempt(&mut self, scripts: &[Script]) -> Result<Vec<ListResult>, GuestError> {
        let geo = self.shape.geometry(&self.order.variant);
        let mut guest = match self.guest.take() {
            Some(guest) => guest,
            None => self.boot()?,
        };
        let first = self.number;
        self.number += scripts.len() as u64;
        let lists = scripts.iter().zip(first..).map(|(script, number)| script.list(&geo, number));
        let results = guest.lists(u64::from(geo.blocks), lists.collect(), BATCH_LIMIT)?;
        // Delayed blocks that outlive their file would be held against the lists that come next.
        if results.iter().all(|result| result.left == 0) {
            self.guest = Some(guest);
        }
        Ok(results)
    }

    fn boot(&self) -> Result<Guest, GuestError> {
        let mut guest = Guest::boot(&self.config)?;
        let set = |path: &str, value: &str| Op::WriteValue {
            path: path.to_owned(),
            value: value.to_owned(),
        };
        let setup = vec![
            set("/proc/sys/vm/dirty_writeback_centisecs", "0"),
            set("/proc/sys/vm/dirty_expire_centisecs", "360000"),
            set("/sys/block/{disk}/queue/read_ahead_kb", "0"),
            Op::Mount { options: "noatime,commit=3600".to_owned() },
            set("/sys/fs/ext4/{disk}/extent_max_zeroout_kb", "0"),
        ];
        self.workload(&mut guest, 0, setup)?;
        Ok(guest)
    }

    fn workload(&self, guest: &mut Guest, trial: u64, setup: Vec<Op>) -> Result<(), GuestError> {
        let workload = Workload { setup, ..Workload::default() };
        let observed = guest.run(Trial { trial, seed: self.order.seed, workload }, BATCH_LIMIT)?;
        match observed.result.error {
            None => Ok(()),
            Some(reason) => Err(GuestError::Refused { what: "preparing the guest", reason }),
        }
    }

    /// Unmounts, checks the file system with e2fsck and powers the guest off. Out: e2fsck's words
    /// if it is not content.
    pub(super) fn close(mut self) -> Result<Option<String>, DifferentialError> {
        let Some(mut guest) = self.guest.take() else {
            return Ok(None);
        };
        let failed = |error| DifferentialError::Guest { source: Box::new(error) };
        self.workload(&mut guest, 1, vec![Op::Umount {}]).map_err(failed)?;
        let done = guest.exec("/bin/e2fsck", &["-f", "-n", "/dev/{disk}"], CHECK_LIMIT);
        let done = done.map_err(failed)?;
        if let Err(error) = guest.shutdown() {
            // Everything is known; a guest that does not power off is killed by being dropped.
            tracing::warn!("{error}");
        }
        Ok((done.status != 0).then(|| format!("{}{}", done.stdout, done.stderr)))
    }
}
