//! Plans: what is raced, how the device widens the window, and what counts as a hit.
//!
//! In: the text of a plan file (TOML), or the name of a built-in one. Out: a [`Plan`], checked as
//! a whole, rules and workload included.
//! Must not know: virtual machines, how a trial runs.

mod builtin;
pub mod edit;
mod error;

use std::fs;
use std::path::Path;
use std::time::Duration;

use agent::wire::{Op, Workload};
use pipeline::RuleSet;
use pipeline::delalloc_shadow::RULES;
use pipeline::shadow::Rule;
use serde::Deserialize;
use toml::Spanned;

pub use builtin::{names, text};
pub use error::{PlanError, PlanProblem};

use crate::device::Device;
use crate::isolation::Isolation;

/// The arm that a verdict is about: the device does what the plan says.
pub const RULES_ARM: &str = "rules";

/// A plan, ready to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// What it does, in one line.
    pub summary: String,
    /// Trials per arm and kernel, if the operator does not say.
    pub trials: u32,
    /// The share of trials that hit on an affected kernel in the arm `rules`, at least.
    pub rate_if_affected: f64,
    /// Kernels that are known to have the bug, and not to have it.
    pub kernels: Kernels,
    /// Devices that it cannot run on, and why.
    pub not_on: Vec<NotOn>,
    /// The file system under test.
    pub filesystem: Filesystem,
    /// The guest.
    pub guest: Guest,
    /// Arms, in the order in which each round of trials visits them.
    pub arms: Vec<Arm>,
    /// What the guest does in one trial; the same in every arm.
    pub workload: Workload,
    /// What counts as a hit.
    pub hit: Hit,
    /// The text of its file.
    pub source: String,
}

/// Names of kernels of the catalogue.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernels {
    /// Those that have the bug.
    #[serde(default)]
    pub affected: Vec<String>,
    /// Those that do not.
    #[serde(default)]
    pub fixed: Vec<String>,
}

/// A device that a plan cannot run on.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotOn {
    /// The device's name.
    #[serde(deserialize_with = "device")]
    pub device: Device,
    /// Why not, in a few words.
    pub because: String,
}

/// How the image is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filesystem {
    /// Size of the disk in bytes.
    pub bytes: u64,
    /// Arguments of mkfs.ext4 besides the image's name.
    #[serde(default)]
    pub mkfs: Vec<String>,
}

/// What the guest needs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// How long a trial may take before the guest is taken for hung.
    #[serde(default = "Guest::default_limit", deserialize_with = "duration")]
    pub trial_limit: Duration,
    /// Kernel parameters added to the harness's own.
    #[serde(default)]
    pub cmdline: Vec<String>,
    /// `"shared"` (the default): all trials of a kernel in one guest; `"fresh"`: a guest of its own
    /// for each trial, with the disk in its first state.
    #[serde(default, deserialize_with = "isolation")]
    pub isolation: Isolation,
}

impl Guest {
    fn default_limit() -> Duration {
        Duration::from_secs(60)
    }
}

impl Default for Guest {
    fn default() -> Guest {
        Guest {
            trial_limit: Guest::default_limit(),
            cmdline: Vec::new(),
            isolation: Isolation::default(),
        }
    }
}

/// One way of running the workload.
#[derive(Clone, Debug)]
pub struct Arm {
    /// Its name: `rules`, `none`, `uniform`, or any other.
    pub name: String,
    /// What the device does; lines are those of the plan file.
    pub rules: RuleSet,
}

/// What counts as a hit: everything given must agree.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hit {
    /// One line of the kernel log has all of these.
    #[serde(default)]
    pub kernel_log: Vec<String>,
    /// A number that the workload reads twice is larger the second time.
    pub counter_rises: Option<CounterRises>,
    /// A shadow tells of one of these rules: `A3` and the like of the kernel's memory,
    /// `D3-stale-data` and the like of the disk. Trials of such a plan always have shadows.
    #[serde(default)]
    pub shadow: Vec<String>,
}

/// Two values that the workload reads.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CounterRises {
    /// Name of the earlier one.
    pub before: String,
    /// Name of the later one.
    pub after: String,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    summary: String,
    trials: Spanned<u32>,
    rate_if_affected: Spanned<f64>,
    #[serde(default)]
    kernels: Kernels,
    #[serde(default)]
    not_on: Vec<NotOn>,
    filesystem: Filesystem,
    #[serde(default)]
    guest: Guest,
    #[serde(rename = "arm")]
    arms: Vec<ArmTable>,
    workload: Spanned<Workload>,
    hit: Spanned<Hit>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ArmTable {
    name: Spanned<String>,
    #[serde(default)]
    rules: Option<Spanned<String>>,
}

impl Plan {
    /// The built-in plan of that name, or the file at that path (anything with a `/` or ending
    /// in `.toml`).
    ///
    /// # Errors
    /// No such plan or file, or a mistake in it.
    pub fn find(name: &str) -> Result<Plan, PlanError> {
        if let Some(text) = builtin::text(name) {
            return Plan::parse(text, &format!("guest-tests/plans/{name}.toml"));
        }
        let is_file =
            name.contains('/') || Path::new(name).extension().is_some_and(|e| e == "toml");
        if !is_file {
            return Err(PlanError::unknown(name));
        }
        let text = fs::read_to_string(name)
            .map_err(|source| PlanError::Read { file: name.into(), source })?;
        Plan::parse(&text, name)
    }

    /// Adds an option to every mount of the workload.
    pub fn mount_with(&mut self, option: &str) {
        let Workload { setup, threads, finish, cleanup } = &mut self.workload;
        let ops = threads.iter_mut().flat_map(|thread| &mut thread.ops);
        for op in setup.iter_mut().chain(ops).chain(finish).chain(cleanup) {
            if let Op::Mount { options } | Op::EnsureMounted { options } = op {
                // Empty parts are skipped.
                *options = format!("{options},{option}");
            }
        }
    }

    /// Parses and checks the text of a plan file; `file` is its name, for messages.
    ///
    /// # Errors
    /// The first mistake, with file and line.
    pub fn parse(text: &str, file: &str) -> Result<Plan, PlanError> {
        let at = |offset: usize, problem| PlanError::Mistake {
            file: file.to_owned(),
            line: line_of(text, offset),
            problem,
        };
        let plan: File = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            at(offset, PlanProblem::Syntax(error.message().trim().replace('\n', "; ")))
        })?;
        let rate = plan.rate_if_affected;
        // The verdict's other hypothesis is 1 %; a plan must promise more to tell them apart.
        if !(0.05..=1.0).contains(rate.get_ref()) {
            return Err(at(rate.span().start, PlanProblem::Rate(*rate.get_ref())));
        }
        if *plan.trials.get_ref() == 0 {
            return Err(at(plan.trials.span().start, PlanProblem::NoTrials));
        }
        let workload_at = plan.workload.span().start;
        let workload = plan.workload.into_inner();
        workload.check().map_err(|error| at(workload_at, PlanProblem::Workload(error)))?;
        let hit_at = plan.hit.span().start;
        let hit = plan.hit.into_inner();
        hit.check(&workload).map_err(|problem| at(hit_at, problem))?;
        let mut arms: Vec<Arm> = Vec::new();
        for arm in plan.arms {
            let name_at = arm.name.span().start;
            let name = arm.name.into_inner();
            if arms.iter().any(|other| other.name == name) {
                return Err(at(name_at, PlanProblem::DuplicateArm(name)));
            }
            arms.push(Arm { name, rules: rules(text, file, arm.rules)? });
        }
        if !arms.iter().any(|arm| arm.name == RULES_ARM) {
            return Err(at(0, PlanProblem::NoRulesArm));
        }
        Ok(Plan {
            name: plan.name,
            summary: plan.summary,
            trials: plan.trials.into_inner(),
            rate_if_affected: rate.into_inner(),
            kernels: plan.kernels,
            not_on: plan.not_on,
            filesystem: plan.filesystem,
            guest: plan.guest,
            arms,
            workload,
            hit,
            source: text.to_owned(),
        })
    }
}

impl Hit {
    fn check(&self, workload: &Workload) -> Result<(), PlanProblem> {
        if self.kernel_log.is_empty() && self.counter_rises.is_none() && self.shadow.is_empty() {
            return Err(PlanProblem::NoHit);
        }
        let known =
            |rule: &&String| is_of_kernel(rule) || Rule::ALL.iter().any(|of| of.id() == **rule);
        if let Some(unknown) = self.shadow.iter().find(|rule| !known(rule)) {
            let of_kernel = RULES.iter().map(|(rule, _)| rule.name());
            let known = of_kernel.chain(Rule::ALL.iter().map(|rule| rule.id()));
            let known = known.collect::<Vec<_>>().join(", ");
            return Err(PlanProblem::UnknownRule { rule: unknown.clone(), known });
        }
        let Some(CounterRises { before, after }) = &self.counter_rises else {
            return Ok(());
        };
        for name in [before, after] {
            if !workload.reads(name) {
                return Err(PlanProblem::UnreadValue(name.clone()));
            }
        }
        Ok(())
    }
}

/// Names that `[hit] shadow` takes for an invariant of the catalogue: `A4`, or each that begins
/// with `D1-`.
pub fn rules_of(invariant: &str) -> Vec<String> {
    let of_disk = Rule::ALL.iter().map(|rule| rule.id());
    let of_kernel = RULES.iter().map(|(rule, _)| rule.name());
    let is = |known: &&str| *known == invariant || known.split('-').next() == Some(invariant);
    of_kernel.chain(of_disk).filter(is).map(str::to_owned).collect()
}

/// Whether the delalloc shadow, not that of the disk, has such a rule.
pub(crate) fn is_of_kernel(rule: &str) -> bool {
    RULES.iter().any(|(of, _)| of.name() == rule)
}

/// Parses an arm's rules so that their line numbers are those of the plan file.
fn rules(text: &str, file: &str, rules: Option<Spanned<String>>) -> Result<RuleSet, PlanError> {
    let Some(rules) = rules else {
        return Ok(RuleSet::default());
    };
    let start = rules.span().start;
    // The line break right after the opening quotes is not part of a multi-line string.
    let first = text.get(start..).unwrap_or_default();
    let skipped = usize::from(first.starts_with("'''\n") || first.starts_with("\"\"\"\n"));
    let lines_above = line_of(text, start) - 1 + skipped;
    let padded = "\n".repeat(lines_above) + rules.get_ref();
    RuleSet::parse(&padded, file).map_err(PlanError::Rules)
}

/// The line of a byte offset, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}

fn device<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Device, D::Error> {
    let name = String::deserialize(from)?;
    Device::parse(&name).ok_or_else(|| {
        let known = Device::ALL.map(Device::name).join(", ");
        serde::de::Error::custom(format!("\"{name}\" is no device; there are {known}"))
    })
}

fn isolation<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Isolation, D::Error> {
    let name = String::deserialize(from)?;
    Isolation::parse(&name).ok_or_else(|| {
        serde::de::Error::custom(format!(
            "isolation is \"{name}\"; write \"shared\" (all trials in one guest) or \"fresh\" (a \
             guest of its own for each trial)"
        ))
    })
}

fn duration<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text).map_err(|error| {
        serde::de::Error::custom(format!("\"{text}\" is no duration ({error}); write \"60s\""))
    })
}

#[cfg(test)]
mod tests;
