//! Running a plan: kernels x arms x trials, each trial judged by its own evidence.
//!
//! In: an [`Order`]. Out: a [`Campaign`]: hits, misses and invalid trials per arm, one verdict per
//! kernel, the timeline of a hit, and what kernels said that nobody expected.
//! Must not know: how a report looks, how the operator is told of progress.
//!
//! One guest per kernel runs all its trials, or each trial has a guest of its own
//! ([`Isolation`]); arms take turns within each round, so that whatever drifts touches them alike.
//! A guest that fails or hangs is an infrastructure failure: it is
//! booted anew and the trial repeated, and it counts as no trial. [`Limits`] say where results go,
//! and what ends a campaign early.

mod guests;
mod judge;
mod lab;
mod limits;
mod session;
mod shadow;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use serde::Serialize;
use thiserror::Error;

pub use guests::Guests;
pub use judge::Outcome;
pub use lab::{Lab, Seen};
pub use limits::{Limits, UntilSure};

use crate::device::Device;
use crate::guest::GuestError;
use crate::isolation::Isolation;
use crate::kernels::Kernel;
use crate::plan::{Plan, RULES_ARM};
use crate::qemu::{Accel, Qemu};
use crate::stats::Tally;
use crate::store::StoreError;
use crate::timeline::Timeline;
use crate::verdict::{self, Verdict};

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Order {
    /// The plan.
    pub plan: Plan,
    /// The kernels, in the order of the report.
    pub kernels: Vec<Kernel>,
    /// The program that runs guests.
    pub qemu: Qemu,
    /// How guest code runs.
    pub accel: Accel,
    /// What the guest keeps its file system on.
    pub device: Device,
    /// Which trials share a guest: what the plan says, or the operator.
    pub isolation: Isolation,
    /// The base image; it is not changed.
    pub image: PathBuf,
    /// Virtual CPUs of each guest.
    pub vcpus: u32,
    /// Virtqueues of the disk.
    pub queues: u16,
    /// Trials per arm and kernel.
    pub trials: u32,
    /// Run this trial only, counted from 0.
    pub only_trial: Option<u32>,
    /// Run these arms only; all if empty.
    pub only_arms: Vec<String>,
    /// Decides every random draw, of the guest and of the device.
    pub seed: u64,
    /// Keep consoles, event logs and trials in this folder.
    pub keep: Option<PathBuf>,
    /// Follow what the kernel does in memory, and tell what it gets wrong when it does.
    pub shadow: bool,
    /// Guests that run side by side.
    pub jobs: usize,
    /// When to stop, where to go on, and where results go.
    pub limits: Limits,
}

/// One trial that was carried out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrialRecord {
    /// The kernel.
    pub kernel: String,
    /// The arm.
    pub arm: String,
    /// Number of the trial, from 0.
    pub trial: u32,
    /// Its seed.
    pub seed: u64,
    /// Hit, miss or invalid, and why.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Wall-clock time it took.
    pub seconds: f64,
}

/// All trials of one arm on one kernel.
#[derive(Clone, Debug)]
pub struct ArmOutcome {
    /// The kernel.
    pub kernel: String,
    /// The arm.
    pub arm: String,
    /// Trials, in their order.
    pub trials: Vec<TrialRecord>,
}

impl ArmOutcome {
    /// Hits among the trials that tell something.
    pub fn tally(&self) -> Tally {
        let hits = self.count(|outcome| matches!(outcome, Outcome::Hit { .. }));
        Tally { hits, trials: self.trials.len() as u64 - self.invalid() }
    }

    /// Trials that tell nothing.
    pub fn invalid(&self) -> u64 {
        self.count(|outcome| matches!(outcome, Outcome::Invalid { .. }))
    }

    /// Mean wall-clock time of a trial; 0 without trials.
    pub fn seconds_per_trial(&self) -> f64 {
        let seconds: f64 = self.trials.iter().map(|trial| trial.seconds).sum();
        if self.trials.is_empty() { 0.0 } else { seconds / self.trials.len() as f64 }
    }

    fn count(&self, pick: impl Fn(&Outcome) -> bool) -> u64 {
        self.trials.iter().filter(|trial| pick(&trial.outcome)).count() as u64
    }
}

/// Something that a kernel said or did that the plan does not expect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The kernel.
    pub kernel: String,
    /// The arm.
    pub arm: String,
    /// The trial.
    pub trial: u32,
    /// What it was.
    pub text: String,
}

/// Something that a shadow noticed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Noticed {
    /// The kernel.
    pub kernel: String,
    /// The arm.
    pub arm: String,
    /// The trial.
    pub trial: u32,
    /// The rule that was broken.
    pub rule: String,
    /// Where, what was expected and seen, and what led to it on both sides.
    pub text: String,
    /// Requests that the device had parked while the two operations ran.
    pub parked: Vec<String>,
    /// Microseconds from the kernel's step to when the host had it.
    pub noticed_after_us: u64,
}

/// How much the delalloc shadow of one kernel saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Watched {
    /// The kernel.
    pub kernel: String,
    /// Events of its probes.
    pub events: u64,
    /// Events that the kernel had no room for.
    pub lost: u64,
    /// The rules that were checked.
    pub rules: Vec<String>,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The plan's name.
    pub plan: String,
    /// What the guest kept its file system on.
    pub device: Device,
    /// The seed.
    pub seed: u64,
    /// By kernel, then by arm.
    pub arms: Vec<ArmOutcome>,
    /// Per kernel: name, verdict, probability that it is wrong.
    pub verdicts: Vec<(String, Verdict, f64)>,
    /// Per kernel that was hit in the arm `rules`: the first hit.
    pub timelines: Vec<(String, Timeline)>,
    /// What nobody expected.
    pub findings: Vec<Finding>,
    /// What the shadows noticed.
    pub noticed: Vec<Noticed>,
    /// Per kernel that was watched: what the shadow took in.
    pub watched: Vec<Watched>,
    /// Per kernel: the guests that it took.
    pub guests: Vec<Guests>,
    /// Per kernel whose verdict is inconclusive: why.
    pub reasons: Vec<(String, String)>,
}

impl Campaign {
    /// The campaign of an order of which nothing has run.
    pub(crate) fn none_yet(order: &Order) -> Campaign {
        Campaign {
            plan: order.plan.name.clone(),
            device: order.device,
            seed: order.seed,
            arms: Vec::new(),
            verdicts: Vec::new(),
            timelines: Vec::new(),
            findings: Vec::new(),
            noticed: Vec::new(),
            watched: Vec::new(),
            guests: Vec::new(),
            reasons: Vec::new(),
        }
    }

    /// Takes in what the same order did on other kernels.
    pub(crate) fn join(&mut self, other: Campaign) {
        self.arms.extend(other.arms);
        self.verdicts.extend(other.verdicts);
        self.timelines.extend(other.timelines);
        self.findings.extend(other.findings);
        self.noticed.extend(other.noticed);
        self.watched.extend(other.watched);
        self.guests.extend(other.guests);
        self.reasons.extend(other.reasons);
    }
}

/// A campaign could not be run to its end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// No arm has the name that was asked for.
    #[error("plan {plan} has no arm \"{arm}\"; it has {known}")]
    UnknownArm {
        /// The plan.
        plan: String,
        /// The name.
        arm: String,
        /// The plan's arms.
        known: String,
    },
    /// The plan does not work on the device.
    #[error("plan {plan} cannot run on {device}: {because}; try --device blk")]
    Device {
        /// The plan.
        plan: String,
        /// The device.
        device: Device,
        /// Why not.
        because: String,
    },
    /// A kernel does not boot at all.
    #[error("{kernel} does not boot")]
    Boot {
        /// The kernel.
        kernel: String,
        /// How it failed.
        source: Box<GuestError>,
    },
    /// A guest failed again and again in the same trial.
    #[error("{kernel}, arm {arm}, trial {trial}: the guest failed {times} times")]
    Guest {
        /// The kernel.
        kernel: String,
        /// The arm.
        arm: String,
        /// The trial.
        trial: u32,
        /// How often.
        times: u32,
        /// The last failure.
        source: Box<GuestError>,
    },
    /// The operator asked for the end.
    #[error("interrupted")]
    Interrupted,
    /// Results could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file that was to be kept could not be written.
    #[error("Could not write {}", path.display())]
    Keep {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl RunError {
    /// Whether one kernel's guest is what failed.
    fn is_of_the_guest(&self) -> bool {
        matches!(self, RunError::Boot { .. } | RunError::Guest { .. })
    }
}

/// An error and what caused it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let first = |error: &dyn std::error::Error| {
        error.to_string().lines().next().unwrap_or_default().to_owned()
    };
    let mut text = first(error);
    let mut source = error.source();
    while let Some(error) = source {
        text = text + ": " + &first(error);
        source = error.source();
    }
    text
}

/// Runs the order; every finished trial is shown to `progress`, from several threads.
///
/// # Errors
/// The first failure of a kernel ends the whole campaign.
pub fn run(order: &Order, progress: &(dyn Fn(&TrialRecord) + Sync)) -> Result<Campaign, RunError> {
    for arm in &order.only_arms {
        if !order.plan.arms.iter().any(|known| known.name == *arm) {
            let known: Vec<&str> = order.plan.arms.iter().map(|arm| arm.name.as_str()).collect();
            return Err(RunError::UnknownArm {
                plan: order.plan.name.clone(),
                arm: arm.clone(),
                known: known.join(", "),
            });
        }
    }
    if let Some(not) = order.plan.not_on.iter().find(|not| not.device == order.device) {
        return Err(RunError::Device {
            plan: order.plan.name.clone(),
            device: order.device,
            because: not.because.clone(),
        });
    }
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let done: Mutex<Vec<Option<Result<session::Session, RunError>>>> =
        Mutex::new(order.kernels.iter().map(|_| None).collect());
    thread::scope(|scope| {
        for _ in 0..order.jobs.clamp(1, order.kernels.len().max(1)) {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(kernel) = order.kernels.get(index) else {
                        return;
                    };
                    let left = order.kernels.len() - index;
                    let until = order.limits.share(Instant::now(), left, order.jobs);
                    let outcome = session::run(order, kernel, until, progress, &failed);
                    if outcome.is_err() {
                        failed.store(true, Ordering::Relaxed);
                    }
                    let mut done = done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    done[index] = Some(outcome);
                }
            });
        }
    });
    let mut campaign = Campaign::none_yet(order);
    let done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    // A session that stopped because another failed is not what went wrong.
    let (mut sessions, mut interrupted) = (Vec::new(), None);
    for outcome in done.into_iter().flatten() {
        match outcome {
            Ok(session) => sessions.push(session),
            Err(RunError::Interrupted) => interrupted = Some(RunError::Interrupted),
            Err(error) => return Err(error),
        }
    }
    if let Some(interrupted) = interrupted {
        return Err(interrupted);
    }
    for session in sessions {
        let judged = order.limits.until_sure.as_ref().map_or(RULES_ARM, |until| &until.arm);
        if let Some(arm) = session.arms.iter().find(|arm| arm.arm == judged) {
            let (verdict, error) = match &order.limits.until_sure {
                Some(until) => until.test.judge(arm.tally(), arm.invalid()),
                None => verdict::judge(arm.tally(), arm.invalid(), order.plan.rate_if_affected),
            };
            let kernel = arm.kernel.clone();
            campaign.verdicts.push((kernel.clone(), verdict, error));
            if verdict == Verdict::Inconclusive {
                let reason = session.gave_up.clone().unwrap_or_else(|| {
                    let ordered = order.only_trial.is_none().then(|| order.limits.of(order.trials));
                    undecided(arm, ordered)
                });
                campaign.reasons.push((kernel.clone(), reason));
            }
            campaign.timelines.extend(session.timeline.map(|timeline| (kernel, timeline)));
        }
        campaign.arms.extend(session.arms);
        campaign.findings.extend(session.findings);
        campaign.noticed.extend(session.noticed);
        campaign.watched.extend(session.watched);
        campaign.guests.push(session.guests);
    }
    Ok(campaign)
}

/// Why the trials of `arm` do not tell; `ordered` is how many there were to be.
pub(crate) fn undecided(arm: &ArmOutcome, ordered: Option<usize>) -> String {
    let Tally { hits, trials } = arm.tally();
    let invalid = arm.trials.iter().find_map(|trial| match &trial.outcome {
        Outcome::Invalid { evidence } => Some(evidence),
        _ => None,
    });
    match invalid {
        _ if arm.trials.is_empty() => "no trial was carried out: the time was up".to_owned(),
        Some(why) if arm.invalid() > trials => {
            format!("{} of {} trials are invalid: {why}", arm.invalid(), arm.trials.len())
        }
        _ if ordered.is_some_and(|ordered| arm.trials.len() < ordered) => {
            format!("the time was up after {trials} trials, {hits} of them hits")
        }
        _ => format!("{hits} hits in {trials} trials fit neither verdict, or are too few"),
    }
}

/// The seed of a trial: the same in every arm and on every kernel.
pub fn trial_seed(seed: u64, trial: u32) -> u64 {
    // SplitMix64: neighbouring trials get unrelated seeds.
    let mut z =
        seed.wrapping_add(u64::from(trial).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
