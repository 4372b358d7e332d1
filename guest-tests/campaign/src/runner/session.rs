//! All trials of one kernel: in one guest as long as it lives, or each in one of its own.
//!
//! In: an [`Order`] and a kernel. Out: trials per arm, the first hit's timeline, findings.
//! Must not know: other kernels.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use agent::wire::{KernelLine, Trial};

use super::guests::{Guests, Nursery};
use super::judge::{self, Outcome};
use super::{
    ArmOutcome, Finding, Noticed, Order, RunError, TrialRecord, Watched, chain, shadow, trial_seed,
};
use crate::backend::BackendConfig;
use crate::delays;
use crate::device::Device;
use crate::guest::{Guest, GuestConfig, GuestError, Observed};
use crate::interrupt;
use crate::isolation::Isolation;
use crate::kernels::Kernel;
use crate::plan::{Arm, Hit, RULES_ARM};
use crate::store::StoreError;
use crate::timeline::Timeline;
use crate::verdict::Verdict;

/// Boots in a row that one trial may take before the campaign is given up.
const MOST_FAILURES: u32 = 3;
/// Most findings of one kernel: a kernel that complains without end says the same things.
const MOST_FINDINGS: usize = 32;

/// What one kernel did.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) arms: Vec<ArmOutcome>,
    pub(super) timeline: Option<Timeline>,
    pub(super) findings: Vec<Finding>,
    pub(super) noticed: Vec<Noticed>,
    pub(super) watched: Option<Watched>,
    pub(super) guests: Guests,
    /// Why its trials were given up, if they were.
    pub(super) gave_up: Option<String>,
}

/// Runs every trial of `kernel`, or stops between two when `stop` is set or at `deadline`.
pub(super) fn run(
    order: &Order,
    kernel: &Kernel,
    deadline: Option<Instant>,
    progress: &(dyn Fn(&TrialRecord) + Sync),
    stop: &AtomicBool,
) -> Result<Session, RunError> {
    let arms: Vec<&Arm> = order
        .plan
        .arms
        .iter()
        .filter(|arm| order.only_arms.is_empty() || order.only_arms.contains(&arm.name))
        .collect();
    let trials = match order.only_trial {
        Some(trial) => trial..trial.saturating_add(1),
        None => 0..order.trials,
    };
    let shard = order.limits.shard;
    let trials = trials.filter(|trial| shard.is_none_or(|shard| shard.has(*trial)));
    let again = order.limits.again;
    let trials: Vec<u32> =
        trials.flat_map(|trial| std::iter::repeat_n(trial, again as usize + 1)).collect();
    let mut runner = Runner {
        order,
        kernel,
        guest: None,
        nursery: Nursery::new(&kernel.name, order.isolation, trials.len() * arms.len()),
        boots: 0,
        booted: false,
        session: Session {
            arms: arms
                .iter()
                .map(|arm| ArmOutcome {
                    kernel: kernel.name.clone(),
                    arm: arm.name.clone(),
                    trials: Vec::new(),
                })
                .collect(),
            timeline: None,
            findings: Vec::new(),
            noticed: Vec::new(),
            watched: None,
            guests: Guests::of(&kernel.name, order.isolation),
            gave_up: None,
        },
        unseen: Vec::new(),
        last: None,
        seen: HashSet::new(),
        broken: None,
    };
    let earlier = runner.restore();
    if let Some(folder) = runner.kept("") {
        written(&folder, fs::create_dir_all(&folder))?;
    }
    'trials: for trial in trials {
        for (index, arm) in arms.iter().enumerate() {
            if stop.load(Ordering::Relaxed) || interrupt::requested() {
                return Err(RunError::Interrupted);
            }
            let record = match earlier.get(&(arm.name.as_str(), trial)) {
                Some(&record) => record.clone(),
                None if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                    break 'trials;
                }
                None => match runner.trial(arm, trial) {
                    Ok(record) => record,
                    Err(error) if order.limits.keep_going && error.is_of_the_guest() => {
                        runner.session.gave_up = Some(chain(&error));
                        break 'trials;
                    }
                    Err(error) => return Err(error),
                },
            };
            progress(&record);
            runner.session.arms[index].trials.push(record);
        }
        if runner.is_sure() || runner.is_hopeless() {
            break;
        }
    }
    runner.end()
}

struct Runner<'a> {
    order: &'a Order,
    kernel: &'a Kernel,
    guest: Option<Guest>,
    nursery: Nursery,
    /// Guests that were asked for.
    boots: u32,
    /// Whether one of them came up.
    booted: bool,
    session: Session,
    /// Rules that a hit needs and the shadow cannot check on this kernel.
    unseen: Vec<String>,
    /// The trial before.
    last: Option<(String, u32)>,
    /// Findings that were noted, with digits taken out.
    seen: HashSet<String>,
    /// Why a finding could not be stored.
    broken: Option<StoreError>,
}

impl<'a> Runner<'a> {
    /// Takes over what was stored of this kernel; gives its trials by arm and number.
    fn restore(&mut self) -> HashMap<(&'a str, u32), &'a TrialRecord> {
        let earlier = &self.order.limits.earlier;
        let name = &self.kernel.name;
        for finding in earlier.findings.iter().filter(|finding| finding.kernel == *name) {
            self.seen.insert(shape(&finding.text));
            self.session.findings.push(finding.clone());
        }
        let timeline = earlier.timelines.iter().find(|(kernel, _)| kernel == name);
        self.session.timeline = timeline.map(|(_, timeline)| timeline.clone());
        let trials = earlier.trials.iter().filter(|record| record.kernel == *name);
        trials.map(|record| ((record.arm.as_str(), record.trial), record)).collect()
    }

    /// Whether the verdict is certain enough to stop.
    fn is_sure(&self) -> bool {
        let Some(until) = &self.order.limits.until_sure else {
            return false;
        };
        let arm = self.session.arms.iter().find(|arm| arm.arm == until.arm);
        arm.is_some_and(|arm| {
            arm.trials.len() >= until.at_least as usize
                && until.test.judge(arm.tally(), arm.invalid()).0 != Verdict::Inconclusive
        })
    }

    /// Whether too many trials of an arm told nothing.
    fn is_hopeless(&self) -> bool {
        let most = self.order.limits.most_invalid.map(u64::from);
        most.is_some_and(|most| self.session.arms.iter().any(|arm| arm.invalid() >= most))
    }

    /// One trial, repeated in a new guest when the guest fails.
    fn trial(&mut self, arm: &'a Arm, trial: u32) -> Result<TrialRecord, RunError> {
        for times in 1.. {
            match self.attempt(arm, trial, times > 1) {
                Ok((observed, seconds)) => {
                    let record = self.record(arm, trial, &observed, seconds)?;
                    if self.order.isolation == Isolation::Fresh {
                        // Killed by being dropped: nobody looks at its disk any more.
                        self.retire()?;
                    }
                    return Ok(record);
                }
                Err(error) if error.is_interrupt() => return Err(RunError::Interrupted),
                // What never came up is not worth a second try.
                Err(error) if !self.booted => {
                    let kernel = self.kernel.name.clone();
                    return Err(RunError::Boot { kernel, source: Box::new(error) });
                }
                Err(error) => {
                    self.watched();
                    self.keep_console()?;
                    self.guest = None;
                    let text = format!("the guest failed and was booted anew: {error}");
                    tracing::warn!(kernel = self.kernel.name, arm = arm.name, trial, "{text}");
                    if let Some(results) = &self.order.limits.results {
                        results.failure(&self.kernel.name, &arm.name, trial, &text)?;
                    }
                    if times == MOST_FAILURES {
                        return Err(RunError::Guest {
                            kernel: self.kernel.name.clone(),
                            arm: arm.name.clone(),
                            trial,
                            times,
                            source: Box::new(error),
                        });
                    }
                    self.find(arm, trial, text);
                }
            }
        }
        Err(RunError::Interrupted)
    }

    /// One trial and the seconds it took; booting is not part of it. A guest that is needed is
    /// not restored if it is to be booted.
    fn attempt(
        &mut self,
        arm: &'a Arm,
        trial: u32,
        booted: bool,
    ) -> Result<(Observed, f64), GuestError> {
        let mut guest = match self.guest.take() {
            Some(guest) => guest,
            None => self.boot(arm, trial, booted)?,
        };
        self.booted = true;
        let started = Instant::now();
        let plan = &self.order.plan;
        let seed = trial_seed(self.order.seed, trial);
        // Anew for each trial: counts and draws are then the same whatever ran before, so that a
        // trial that is resumed or replayed is the same trial.
        guest.load_seeded(&arm.rules, seed)?;
        let order = Trial { trial: u64::from(trial), seed, workload: plan.workload.clone() };
        let observed = guest.run(order, plan.guest.trial_limit);
        let seconds = started.elapsed().as_secs_f64();
        // Kept also after a failure: its console is evidence.
        self.guest = Some(guest);
        Ok((observed?, seconds))
    }

    /// Whether the guest's kernel and disk are watched.
    fn shadowed(&self) -> bool {
        self.order.shadow || !self.order.plan.hit.shadow.is_empty()
    }

    fn boot(&mut self, arm: &Arm, trial: u32, booted: bool) -> Result<Guest, GuestError> {
        let order = self.order;
        let log = self.kept(&format!("events-{}.jsonl", self.boots));
        let shadowed = self.shadowed();
        self.boots += 1;
        let mut guest = self.nursery.next(&config(order, self.kernel, log, shadowed), booted)?;
        for error in guest.failed_boots() {
            let text = format!("the guest died while booting and was booted anew: {error}");
            self.find(arm, trial, text);
        }
        if shadowed {
            for probe in shadow::start(&mut guest, &order.plan.workload)? {
                self.find(arm, trial, format!("the shadow does not see all: {probe}"));
            }
            let checked = shadow::stats(&mut guest)?.rules;
            let wanted = order.plan.hit.shadow.iter();
            let wanted = wanted.filter(|rule| crate::plan::is_of_kernel(rule));
            self.unseen = wanted.filter(|rule| !checked.contains(rule)).cloned().collect();
        }
        Ok(guest)
    }

    /// Adds what the delalloc shadow of the guest saw to that of the guests before.
    fn watched(&mut self) {
        let Some(guest) = &mut self.guest else {
            return;
        };
        let stats = match shadow::stats(guest) {
            Ok(stats) => stats,
            Err(error) => return tracing::warn!(kernel = self.kernel.name, "{error}"),
        };
        if stats.rules.is_empty() {
            return;
        }
        let name = || self.kernel.name.clone();
        let sum = self.session.watched.get_or_insert_with(|| Watched {
            kernel: name(),
            events: 0,
            lost: 0,
            rules: Vec::new(),
        });
        sum.events += stats.events;
        sum.lost += stats.lost;
        sum.rules = stats.rules;
    }

    fn record(
        &mut self,
        arm: &Arm,
        trial: u32,
        observed: &Observed,
        seconds: f64,
    ) -> Result<TrialRecord, RunError> {
        let Observed { result, events, clock, findings } = observed;
        let hit = &self.order.plan.hit;
        // What was told of before the trial began belongs to the one before.
        let began = clock.to_device(result.began_ns).saturating_sub_unsigned(clock.error_ns);
        let split = findings.partition_point(|(at, _)| at.0.cast_signed() < began);
        let (late, own) = findings.split_at(split);
        let kernel = &self.kernel.name;
        let last = self.last.replace((arm.name.clone(), trial));
        if let Some((last_arm, last_trial)) = last {
            let late = late
                .iter()
                .map(|(at, finding)| shadow::noticed(kernel, &last_arm, last_trial, *at, finding));
            self.session.noticed.extend(late);
        }
        let own = own.iter().map(|(at, f)| shadow::noticed(kernel, &arm.name, trial, *at, f));
        let own: Vec<Noticed> = own.collect();
        let outcome = match &self.unseen[..] {
            [] => judge::judge(hit, arm, self.order.device, result, events, &own),
            unseen => Outcome::Invalid {
                evidence: format!("the shadow cannot check {} here", unseen.join(", ")),
            },
        };
        self.session.noticed.extend(own);
        for line in result.kernel.iter().filter(|line| is_complaint(hit, line)) {
            self.find(arm, trial, line.text.clone());
        }
        let mut first = false;
        let is_hit = matches!(outcome, Outcome::Hit { .. });
        if is_hit && arm.name == RULES_ARM && self.session.timeline.is_none() {
            let threads = self.order.plan.workload.threads.iter().map(|t| t.name.clone());
            self.session.timeline = Some(Timeline::new(threads, result, events, *clock));
            first = true;
        }
        let record = TrialRecord {
            kernel: self.kernel.name.clone(),
            arm: arm.name.clone(),
            trial,
            seed: trial_seed(self.order.seed, trial),
            outcome,
            seconds,
        };
        self.keep_trial(&record, observed)?;
        if let Some(error) = self.broken.take() {
            return Err(error.into());
        }
        if let Some(results) = &self.order.limits.results {
            let timeline = self.session.timeline.as_ref().filter(|_| first);
            let id = results.trial(&record, timeline)?;
            results.delays(id, &delays::of(events))?;
        }
        Ok(record)
    }

    fn find(&mut self, arm: &Arm, trial: u32, text: String) {
        if self.session.findings.len() < MOST_FINDINGS && self.seen.insert(shape(&text)) {
            let (kernel, arm) = (self.kernel.name.clone(), arm.name.clone());
            let finding = Finding { kernel, arm, trial, text };
            if let Some(results) = &self.order.limits.results {
                // Told with the trial's record: whoever finds something is busy with the guest.
                self.broken = self.broken.take().or(results.finding(&finding).err());
            }
            self.session.findings.push(finding);
        }
    }

    /// Takes the guest out, after everything that is to be had of it.
    fn retire(&mut self) -> Result<Option<Guest>, RunError> {
        if self.shadowed()
            && let Some(Err(error)) = self.guest.as_mut().map(Guest::ping)
        {
            // What its shadows still had to say is lost; the trial itself is not.
            tracing::warn!(kernel = self.kernel.name, "{error}");
        }
        self.keep_console()?;
        self.watched();
        if let (Some(guest), Some((arm, trial))) = (&mut self.guest, &self.last) {
            let late = guest.take_findings();
            let late = late
                .iter()
                .map(|(at, finding)| shadow::noticed(&self.kernel.name, arm, *trial, *at, finding));
            self.session.noticed.extend(late);
        }
        Ok(self.guest.take())
    }

    fn end(mut self) -> Result<Session, RunError> {
        if let Some(guest) = self.retire()? {
            // The trials are done; a guest that does not power off is killed by being dropped.
            if let Err(error) = guest.shutdown() {
                tracing::warn!(kernel = self.kernel.name, "{error}");
            }
        }
        self.session.guests = self.nursery.close();
        Ok(self.session)
    }

    fn kept(&self, name: &str) -> Option<PathBuf> {
        let keep = self.order.keep.as_ref()?;
        Some(keep.join(crate::cache::file_name(&self.kernel.name)).join(name))
    }

    fn keep_console(&self) -> Result<(), RunError> {
        let (Some(path), Some(guest)) =
            (self.kept(&format!("console-{}.log", self.boots.saturating_sub(1))), &self.guest)
        else {
            return Ok(());
        };
        written(&path, fs::write(&path, guest.console()))
    }

    fn keep_trial(&self, record: &TrialRecord, observed: &Observed) -> Result<(), RunError> {
        let Some(path) = self.kept("trials.jsonl") else {
            return Ok(());
        };
        let line = serde_json::json!({
            "record": record,
            "clock": observed.clock,
            "guest": observed.result,
        });
        let append = || {
            let mut file = fs::OpenOptions::new().append(true).create(true).open(&path)?;
            writeln!(file, "{line}")
        };
        written(&path, append())
    }
}

/// The guest of an order on one kernel.
pub(super) fn config(
    order: &Order,
    kernel: &Kernel,
    event_log: Option<PathBuf>,
    shadowed: bool,
) -> GuestConfig {
    let mut backend = BackendConfig::new(order.image.clone());
    backend.device = order.device;
    backend.queues = order.queues;
    backend.seed = order.seed;
    backend.event_log = event_log;
    // A page server has no shadow of its disk.
    if shadowed && order.device == Device::Blk {
        backend.extra.push("--shadow".into());
    }
    GuestConfig {
        qemu: order.qemu.clone(),
        accel: order.accel,
        kernel: kernel.clone(),
        cmdline: order.plan.guest.cmdline.clone(),
        qemu_args: Vec::new(),
        vcpus: order.vcpus,
        backend,
        programs: Vec::new(),
        unpacked: Vec::new(),
    }
}

/// What makes two findings the same: all but the digits.
fn shape(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

fn written(path: &Path, result: std::io::Result<()>) -> Result<(), RunError> {
    result.map_err(|source| RunError::Keep { path: path.to_owned(), source })
}

/// Whether the kernel complains about something that is not the plan's hit.
fn is_complaint(hit: &Hit, line: &KernelLine) -> bool {
    !judge::is_hit(hit, line) && complains(line)
}

/// Whether a line of the kernel log says that something is wrong.
pub(super) fn complains(line: &KernelLine) -> bool {
    const SIGNS: [&str; 4] = ["WARNING:", "BUG:", "EXT4-fs error", "INFO: task"];
    line.level <= 3 || SIGNS.iter().any(|sign| line.text.contains(sign))
}
