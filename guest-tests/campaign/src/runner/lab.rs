//! One guest for many plans: each is tried once, and nobody judges.
//!
//! In: an [`Order`] for what does not change, plans that agree with it about image and guest.
//! Out: [`Seen`]. Must not know: why the plans are tried, hits.

use agent::wire::{Trial, TrialResult};
use pipeline::Event;

use super::session::{complains, config};
use super::{Noticed, Order, shadow};
use crate::guest::{Guest, GuestError, Observed};
use crate::kernels::Kernel;
use crate::plan::{Plan, RULES_ARM};

/// What a trial showed.
#[derive(Debug)]
pub struct Seen {
    /// What the guest saw.
    pub result: TrialResult,
    /// What the device saw.
    pub events: Vec<Event>,
    /// What the shadows noticed.
    pub noticed: Vec<Noticed>,
    /// What they noticed of the trial before, and told after it had ended.
    pub late: Vec<Noticed>,
    /// Lines of the kernel log that are complaints.
    pub complaints: Vec<String>,
}

/// A guest with shadows, booted when it is needed.
#[derive(Debug)]
pub struct Lab<'a> {
    order: &'a Order,
    kernel: &'a Kernel,
    guest: Option<Guest>,
    trials: u32,
}

impl<'a> Lab<'a> {
    /// A lab for `kernel`; the order's plan, kernels and trials are not looked at.
    pub fn new(order: &'a Order, kernel: &'a Kernel) -> Lab<'a> {
        Lab { order, kernel, guest: None, trials: 0 }
    }

    /// Tries a plan's arm `rules` once.
    ///
    /// # Errors
    /// The guest failed; the next try boots another.
    pub fn attempt(&mut self, plan: &Plan, seed: u64) -> Result<Seen, GuestError> {
        let mut guest = match self.guest.take() {
            Some(guest) => guest,
            None => self.boot(plan)?,
        };
        if let Some(arm) = plan.arms.iter().find(|arm| arm.name == RULES_ARM) {
            guest.load_seeded(&arm.rules, seed)?;
        }
        let trial = self.trials;
        self.trials += 1;
        let order = Trial { trial: trial.into(), seed, workload: plan.workload.clone() };
        let Observed { result, events, clock, findings } =
            guest.run(order, plan.guest.trial_limit)?;
        self.guest = Some(guest);
        let began = clock.to_device(result.began_ns).saturating_sub_unsigned(clock.error_ns);
        let split = findings.partition_point(|(at, _)| at.0.cast_signed() < began);
        let noticed = |(at, finding): &(_, _)| {
            shadow::noticed(&self.kernel.name, RULES_ARM, trial, *at, finding)
        };
        Ok(Seen {
            noticed: findings[split..].iter().map(noticed).collect(),
            late: findings[..split].iter().map(noticed).collect(),
            complaints: result
                .kernel
                .iter()
                .filter(|line| complains(line))
                .map(|line| line.text.clone())
                .collect(),
            result,
            events,
        })
    }

    /// The file system may be damaged: the next try gets a new guest with a new disk.
    pub fn renew(&mut self) {
        self.guest = None;
    }

    fn boot(&self, plan: &Plan) -> Result<Guest, GuestError> {
        let mut config = config(self.order, self.kernel, None, true);
        config.cmdline.clone_from(&plan.guest.cmdline);
        let mut guest = Guest::boot(&config)?;
        for probe in shadow::start(&mut guest, &plan.workload)? {
            tracing::warn!(kernel = self.kernel.name, "the shadow does not see all: {probe}");
        }
        Ok(guest)
    }
}
