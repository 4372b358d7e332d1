//! Hunts: plans made from a grammar, tried where something new is to be expected, judged by the
//! shadows.
//!
//! In: an [`Order`] for what does not change, a kernel, a [`Memory`] of earlier hunts. Out: what was
//! [`Found`], each as a plan, made smaller if there is time; the memory, with what was learned.
//! Must not know: files, how the operator is told.
//!
//! Nobody says what a hit is: a finding of a shadow, or a complaint in the kernel log, is one. What
//! is found is tried again with a new guest and a new disk, so that it is not the damage of an
//! earlier trial, and counts only if it is seen again.

mod grammar;
mod memory;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pipeline::What;
use pipeline::event::Cause;
use serde::Serialize;

pub use grammar::{Action, Case, Format, Operation, Range, Request, Sign, State, Window};
pub use memory::{Behaviour, Memory};

use crate::guest::GuestError;
use crate::interrupt;
use crate::kernels::Kernel;
use crate::minimise::{self, MinimiseError};
use crate::plan::{Plan, PlanError};
use crate::runner::{self, Lab, Order, RunError, Seen, trial_seed};
use crate::stats::Tally;

/// Guests in a row that fail before the hunt is given up.
const MOST_FAILURES: u32 = 3;
/// Findings of one rule that are made smaller; the others are saved as they are.
const SMALLER_PER_RULE: usize = 2;
/// The longest that making one smaller may take.
const SMALLER_LIMIT: Duration = Duration::from_secs(300);
/// Trials that say how often a finding is seen.
const CONFIRM: u32 = 10;

/// What a complaint in the kernel log has for a rule.
const KERNEL: &str = "kernel";

/// What is hunted for, and how long.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How the file system is made; the order's image is made so.
    pub format: Format,
    /// States of the file; all if empty.
    pub states: Vec<State>,
    /// Earlier operations; all if empty.
    pub earlier: Vec<Operation>,
    /// Later operations; all if empty.
    pub later: Vec<Operation>,
    /// Stop after so many trials.
    pub trials: Option<u32>,
    /// Stop at this moment.
    pub deadline: Option<Instant>,
    /// Make plans of findings smaller.
    pub smaller: bool,
}

/// Something that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// The case.
    pub case: Case,
    /// The rule that a shadow told of; `kernel` for a complaint in the kernel log.
    pub rule: String,
    /// What it said.
    pub text: String,
    /// Number of the trial that showed it first, from 0.
    pub trial: u64,
    /// Seconds since the hunt began.
    pub after_seconds: f64,
    /// Trials of the plan that showed it again, each with the hunt's kernel.
    pub hits: u64,
    /// Trials of the plan.
    pub trials: u64,
    /// The plan.
    pub plan: String,
    /// Whether it was made smaller.
    pub smaller: bool,
}

/// What happened, as it happens.
#[derive(Debug)]
pub enum Progress<'a> {
    /// A trial is over.
    Trial(&'a Case, &'a Behaviour, &'a Memory),
    /// Something was found, and is tried again.
    Suspect(&'a Case, &'a str),
    /// It was seen again.
    Found(&'a Found),
    /// It was not.
    Gone(&'a Case, &'a str),
    /// The guest failed.
    Failed(&'a Case, &'a GuestError),
}

/// A hunt cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HuntError {
    /// Trials cannot be run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The grammar made something that is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The guest fails again and again.
    #[error("{kernel}: the guest failed {times} times in a row, last in {case}")]
    Guest {
        /// The kernel.
        kernel: String,
        /// How often.
        times: u32,
        /// The last case.
        case: String,
        /// The last failure.
        source: Box<GuestError>,
    },
}

/// A plan of the grammar, for what all of a format have in common: the image and the guest.
///
/// # Errors
/// None; the grammar makes plans.
pub fn any_plan(format: Format) -> Result<Plan, PlanError> {
    let (state, earlier) = (State::Hole, Operation::Allocate);
    let window = Window { state, earlier, request: Request::ReadBitmap, action: Action::Hold };
    let (earlier_range, later_range) = (Range::Middle, Range::Middle);
    let case = Case { window, earlier_range, later: Operation::Store, later_range };
    Plan::parse(&case.plan(format, &Sign::Anything), "grammar")
}

/// Hunts on `kernel` until the time or the trials are used up, the grammar is, or the operator asks
/// for the end; `memory` is what it knows before and after.
///
/// # Errors
/// Guests cannot be run. What was found before is with `tell`, and `memory` is good.
pub fn run(
    order: &Order,
    kernel: &Kernel,
    settings: &Settings,
    memory: &mut Memory,
    tell: &dyn Fn(&Progress<'_>),
) -> Result<Vec<Found>, HuntError> {
    let began = Instant::now();
    let wanted = |window: &Window| {
        (settings.states.is_empty() || settings.states.contains(&window.state))
            && (settings.earlier.is_empty() || settings.earlier.contains(&window.earlier))
    };
    let windows: Vec<Window> = Window::all().filter(wanted).collect();
    let all = Operation::ALL.to_vec();
    let later = if settings.later.is_empty() { &all } else { &settings.later };
    let mut lab = Lab::new(order, kernel);
    let mut hunt = Hunt { order, kernel, settings, began, tell, found: Vec::new() };
    let (mut failures, mut last) = (0, None);
    for trial in 0..settings.trials.unwrap_or(u32::MAX) {
        let late = settings.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if late || interrupt::requested() {
            break;
        }
        let draw = trial_seed(order.seed, trial);
        let Some(case) = memory.choose(&windows, later, draw) else {
            break;
        };
        let plan = Plan::parse(&case.plan(settings.format, &Sign::Anything), "grammar")?;
        let seen = match lab.attempt(&plan, draw) {
            Ok(seen) => seen,
            Err(error) if error.is_interrupt() => break,
            Err(error) => {
                tell(&Progress::Failed(&case, &error));
                failures += 1;
                if failures == MOST_FAILURES {
                    let (kernel, case) = (kernel.name.clone(), case.name(settings.format));
                    let source = Box::new(error);
                    return Err(HuntError::Guest { kernel, times: failures, case, source });
                }
                lab.renew();
                continue;
            }
        };
        failures = 0;
        let behaviour = behaviour(case, &seen);
        memory.learn(case, behaviour.clone());
        tell(&Progress::Trial(&case, &behaviour, memory));
        if case.window.action == Action::Fail && behaviour.opened {
            lab.renew();
        }
        let own = seen.noticed.first().map(|noticed| (case, &noticed.rule, &noticed.text));
        let before = last.replace(case).zip(seen.late.first());
        let before = before.map(|(case, noticed)| (case, &noticed.rule, &noticed.text));
        let complaint = KERNEL.to_owned();
        let line = complaint_of(case, &seen).map(|line| (case, &complaint, line));
        if let Some((case, rule, text)) = before.or(own).or(line) {
            lab.renew();
            match hunt.suspect(case, rule, text, u64::from(trial)) {
                // What was found before is not lost.
                Err(HuntError::Run(RunError::Interrupted)) => break,
                result => result?,
            }
        }
    }
    Ok(hunt.found)
}

struct Hunt<'a> {
    order: &'a Order,
    kernel: &'a Kernel,
    settings: &'a Settings,
    began: Instant,
    tell: &'a dyn Fn(&Progress<'_>),
    found: Vec<Found>,
}

impl Hunt<'_> {
    /// Tries a finding again, unless its operations have shown the same before.
    fn suspect(&mut self, case: Case, rule: &str, text: &str, trial: u64) -> Result<(), HuntError> {
        let after_seconds = self.began.elapsed().as_secs_f64();
        let same = |found: &&Found| {
            let of = |case: Case| (case.window.earlier, case.later, case.window.action);
            found.rule == rule && of(found.case) == of(case)
        };
        if self.found.iter().any(|found| same(&found)) {
            return Ok(());
        }
        (self.tell)(&Progress::Suspect(&case, rule));
        let sign = if rule == KERNEL { Sign::of_line(text) } else { Sign::Rule(rule.to_owned()) };
        let source = case.plan(self.settings.format, &sign);
        let plan = Plan::parse(&source, "grammar")?;
        let name = plan.name.clone();
        let of_rule = self.found.iter().filter(|found| found.rule == rule).count();
        let make_smaller = self.settings.smaller && of_rule < SMALLER_PER_RULE;
        let mut order = Order { plan, kernels: vec![self.kernel.clone()], ..self.order.clone() };
        order.shadow = true;
        order.limits.keep_going = true;
        let (source, tally, smaller) =
            if make_smaller { smaller(&order)? } else { (source, again(&order)?, false) };
        let first = text.lines().next().unwrap_or(text);
        if tally.hits == 0 {
            (self.tell)(&Progress::Gone(&case, rule));
            return Ok(());
        }
        let head = format!(
            "# Found by `racegate hunt` on {}: {first}\n# {} of {} trials of this plan.\n#\n",
            self.kernel.name, tally.hits, tally.trials
        );
        let found = Found {
            case,
            rule: rule.to_owned(),
            text: text.to_owned(),
            trial,
            after_seconds,
            hits: tally.hits,
            trials: tally.trials,
            plan: format!("{head}{}", source.replacen(&name, &format!("hunt-{name}"), 1)),
            smaller,
        };
        (self.tell)(&Progress::Found(&found));
        self.found.push(found);
        Ok(())
    }
}

/// The plan without what its hit does not need, and how often it hits.
fn smaller(order: &Order) -> Result<(String, Tally, bool), HuntError> {
    let mut order = order.clone();
    order.limits.deadline = Some(Instant::now() + SMALLER_LIMIT);
    let settings = minimise::Settings { error: 0.05, most_trials: CONFIRM, confirm: CONFIRM };
    match minimise::run(&order, &settings, &|_| (), &|_| ()) {
        Ok(smaller) => Ok((smaller.text.to_string(), smaller.confirmed, true)),
        // It is seen now and then, or not at all.
        Err(MinimiseError::NoHit { hits, trials, .. }) => {
            Ok((order.plan.source.clone(), Tally { hits, trials }, false))
        }
        Err(MinimiseError::Run(error)) => Err(error.into()),
        Err(MinimiseError::Plan(error)) => Err(error.into()),
    }
}

/// How often the plan hits in a new guest.
fn again(order: &Order) -> Result<Tally, HuntError> {
    let campaign = runner::run(&Order { trials: CONFIRM, ..order.clone() }, &|_| ())?;
    Ok(campaign.arms.first().map(runner::ArmOutcome::tally).unwrap_or_default())
}

/// What came of a trial.
fn behaviour(case: Case, seen: &Seen) -> Behaviour {
    // It has not awaited the request in vain. What comes with the clean-up opens nothing.
    let opened = seen.result.steps.iter().any(|step| {
        step.thread == "later" && !["barrier ", "await "].iter().any(|of| step.op.starts_with(of))
    });
    let limit = |what: &What| matches!(what, What::Released { cause: Cause::Limit, .. });
    let failed = seen.result.steps.iter().filter(|step| step.errno.is_some());
    // Of threads only: what the clean-up says follows from what they did.
    let failed = failed.filter(|step| matches!(step.thread.as_str(), "earlier" | "later"));
    let errors: BTreeMap<String, i32> = failed
        .filter(|_| opened)
        .filter_map(|step| Some((step.thread.clone(), step.errno?)))
        .collect();
    let rules = seen.noticed.iter().map(|noticed| noticed.rule.clone());
    Behaviour {
        opened,
        waited: opened
            && case.window.action == Action::Hold
            && seen.events.iter().any(|event| limit(&event.what)),
        errors: errors.into_iter().collect(),
        found: rules.collect(),
    }
}

/// The first complaint that a request that failed does not explain.
fn complaint_of(case: Case, seen: &Seen) -> Option<&String> {
    let serious = |line: &&String| {
        case.window.action == Action::Hold || line.contains("WARNING:") || line.contains("BUG:")
    };
    seen.complaints.iter().find(serious)
}
