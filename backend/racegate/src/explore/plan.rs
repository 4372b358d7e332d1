//! From a counterexample to a plan: what must be outstanding becomes a hold, the order of threads a
//! rendezvous.
//!
//! In: a model, the steps of a violation that a disk can bring about. Out: the text of a plan, or
//! why there can be none.
//! Must not know: how a search found the steps, how a trial runs.

mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context as _, bail};
use campaign::plan::Plan;
use delalloc::exec::{DEVICE_FAILS, DEVICE_IO};
use delalloc::program::Instr;
use delalloc::state::{IoState, Mode, Rwsem, Wait};
use delalloc::{Kernel, Op, State};
use explorer::{Model as _, Options, Schedule, Step, Strategy, replay};

use super::Model;
use super::pick::Picked;
use super::steer::{Moment, Steered};
use super::workers::Threads;

/// States of one kernel that are looked at to predict whether it is affected.
const STATES: u64 = 2_000_000;

/// The place of a data write of writeback among threads.
const WRITEBACK: usize = 100;

/// A request of the model.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Request {
    /// That of a thread.
    Of(usize),
    /// A data write of writeback, by its place.
    Writeback(usize),
}

/// What of the disk a request is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Bitmap,
    Leaf,
    DataRead,
    DataWrite,
    Log,
}

/// A request that the device must do something about.
#[derive(Clone, Debug)]
struct Held {
    kind: Kind,
    /// How many of its kind came before it, and itself.
    nth: u32,
    /// The step that made it, from 1.
    step: usize,
    /// The operation that made it.
    by: String,
    fails: bool,
}

/// How a thread stands while something else is about to happen.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Stands {
    /// This operation of it is over.
    Done(usize),
    /// It waits for a request, by the place of its rule.
    WaitsFor(usize),
    /// It waits for a lock or for the log, inside this kernel function.
    Blocked(&'static str),
}

/// Something that somebody has to bring about.
#[derive(Clone, Debug)]
enum Control {
    /// A thread starts an operation.
    Start { thread: usize, op: usize },
    /// A held request is let go, by the place of its rule.
    LetGo { rule: usize },
}

/// A counterexample, taken apart.
struct Compiled {
    held: Vec<Held>,
    /// What is brought about, in order, and how the threads that have begun stand by then.
    controls: Vec<(Control, BTreeMap<usize, Stands>)>,
}

/// Writes the violation of `invariant` at the end of `schedule` as a plan.
pub(super) fn write(
    path: &Path,
    picked: &Picked,
    schedule: &Schedule,
    invariant: &str,
    workers: &Threads,
) -> anyhow::Result<()> {
    if path.exists() {
        bail!("{} is there already; name another file after --plan", path.display());
    }
    let steered = Steered(&picked.model);
    // A schedule of the operator's own may need what no disk can do.
    if let Err(error) = replay(&steered, schedule) {
        bail!(
            "no disk can bring this order about: {error}. At that step a thread goes on, or begins, \
             while another is in the middle of an operation and waits for no request: there is no \
             I/O to hold. Leave --replay out to search for an order without such a step"
        );
    }
    let signs = text::signs(invariant, picked.mutant);
    if signs.is_empty() {
        bail!(
            "{invariant} is broken, and no plan can say so: neither shadow checks {invariant} on a \
             real kernel"
        );
    }
    let compiled = compile(&picked.model, &schedule.steps);
    let predicted = predict(picked, workers)?;
    let trace = replay(&picked.model, schedule)?;
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("explored");
    let text = text::write(name, picked, &compiled, &trace, invariant, &signs, &predicted)?;
    Plan::parse(&text, &path.display().to_string())?;
    fs::write(path, text).with_context(|| format!("Could not write {}", path.display()))
}

/// Which kernels have the violation and which have none, by the model: names of the catalogue.
struct Predicted {
    affected: Vec<String>,
    fixed: Vec<String>,
}

fn predict(picked: &Picked, workers: &Threads) -> anyhow::Result<Predicted> {
    let mut predicted = Predicted { affected: Vec::new(), fixed: Vec::new() };
    let version = |kernel: &str| kernel.strip_prefix("linux-").unwrap_or(kernel).to_owned();
    if let Some(mutant) = picked.mutant {
        let version = version(picked.variant);
        predicted.affected.push(format!("built-{version}-without-{}", mutant.id));
        predicted.fixed.push(format!("built-{version}"));
        return Ok(predicted);
    }
    let options =
        Options { strategy: Strategy::Exhaustive, states_max: Some(STATES), ..Options::default() };
    for kernel in Kernel::all() {
        let model = Model::new(picked.model.scenario().clone(), kernel, None);
        // All orders: a kernel is only called fixed if there is none at all.
        let report =
            explorer::explore(&model, &options, workers, &mut |_| ControlFlow::Continue(()))?;
        let name = format!("debian-{}", version(kernel.name()));
        if kernel.name() == picked.variant {
            predicted.affected.push(name);
        } else if report.violations.is_empty() && report.coverage.truncated.is_empty() {
            predicted.fixed.push(name);
        } else if !report.violations.is_empty()
            && let Ok(report) = explorer::explore(&Steered(&model), &options, workers, &mut |_| {
                ControlFlow::Continue(())
            })
            && !report.violations.is_empty()
        {
            predicted.affected.push(name);
        }
    }
    Ok(predicted)
}

fn compile(model: &Model, steps: &[Step]) -> Compiled {
    let steered = Steered(model);
    let mut walk = Walk {
        model,
        moment: steered.initial(),
        outstanding: BTreeMap::new(),
        held: Vec::new(),
        counts: Vec::new(),
        controls: Vec::new(),
        done: BTreeMap::new(),
        needed: BTreeSet::new(),
    };
    for (number, &step) in (1..).zip(steps) {
        walk.step(&steered, number, step);
    }
    walk.end()
}

struct Walk<'a> {
    model: &'a Model,
    moment: Moment,
    /// Requests under way, and the place of each in `held`.
    outstanding: BTreeMap<Request, usize>,
    held: Vec<Held>,
    counts: Vec<Kind>,
    controls: Vec<(Control, BTreeMap<usize, Stands>)>,
    /// The last operation of each thread that is over.
    done: BTreeMap<usize, usize>,
    /// Requests, by their place in `held`, that something else happens to while they are under way.
    needed: BTreeSet<usize>,
}

impl Walk<'_> {
    fn step(&mut self, steered: &Steered<'_>, number: usize, step: Step) {
        let engine = self.model.engine();
        let thread = usize::from(step.thread);
        let users = self.model.scenario().thread.len();
        let before = self.moment.clone();
        if thread == engine.device() {
            let index = usize::from(step.choice & 15);
            let io = step.choice & DEVICE_IO != 0;
            let request = if io { Request::Writeback(index) } else { Request::Of(index) };
            if let Some(rule) = self.outstanding.get(&request).copied() {
                self.held[rule].fails = step.choice & DEVICE_FAILS != 0;
                self.control(Control::LetGo { rule });
                self.outstanding.remove(&request);
            }
        } else if thread < users && before.begun & (1 << thread) == 0 {
            let op = engine.operation(&before.state, thread).map_or(0, usize::from);
            self.control(Control::Start { thread, op });
        }
        steered.apply(&mut self.moment, step);
        if thread < users
            && self.moment.begun & (1 << thread) == 0
            && let Some(op) = engine.operation(&before.state, thread)
        {
            self.done.insert(thread, usize::from(op));
        }
        self.requests(&before.state, number, step);
    }

    /// Notes that something is brought about now.
    fn control(&mut self, control: Control) {
        let own = match control {
            Control::LetGo { rule } => Some(rule),
            Control::Start { .. } => None,
        };
        self.needed.extend(self.outstanding.values().filter(|rule| own != Some(**rule)));
        let stand = self.stand();
        self.controls.push((control, stand));
    }

    /// Notes the requests that the step has made.
    fn requests(&mut self, before: &State, number: usize, step: Step) {
        let after = self.moment.state;
        for (thread, (old, new)) in before.threads.iter().zip(&after.threads).enumerate() {
            let kind = match new.wait {
                Wait::None => continue,
                Wait::Bitmap => Kind::Bitmap,
                Wait::Leaf => Kind::Leaf,
                Wait::Data | Wait::DirectRead => Kind::DataRead,
                Wait::DirectWrite => Kind::DataWrite,
                Wait::Log => Kind::Log,
            };
            if old.wait == Wait::None {
                self.request(Request::Of(thread), kind, number, step);
            }
        }
        for (index, (old, new)) in before.io.iter().zip(&after.io).enumerate() {
            if new.state == IoState::AtDevice && old.state != IoState::AtDevice {
                self.request(Request::Writeback(index), Kind::DataWrite, number, step);
            }
        }
    }

    fn request(&mut self, request: Request, kind: Kind, number: usize, step: Step) {
        self.counts.push(kind);
        let nth = self.counts.iter().filter(|of| **of == kind).count() as u32;
        let by = self.model.thread_name(step.thread);
        self.outstanding.insert(request, self.held.len());
        self.held.push(Held { kind, nth, step: number, by, fails: false });
    }

    /// How every thread that has begun something stands now.
    fn stand(&self) -> BTreeMap<usize, Stands> {
        let mut all = BTreeMap::new();
        for thread in 0..self.model.scenario().thread.len() {
            let in_operation = self.moment.begun & (1 << thread) != 0;
            if let Some(&rule) = self.outstanding.get(&Request::Of(thread)) {
                all.insert(thread, Stands::WaitsFor(rule));
            } else if in_operation {
                all.insert(thread, Stands::Blocked(self.function(thread)));
            } else if let Some(&op) = self.done.get(&thread) {
                all.insert(thread, Stands::Done(op));
            }
        }
        // A data write of writeback is nobody's: it stands for itself, behind the threads.
        let own = self.outstanding.iter().filter_map(|(request, &rule)| match request {
            Request::Writeback(index) => Some((WRITEBACK + index, Stands::WaitsFor(rule))),
            Request::Of(_) => None,
        });
        all.extend(own);
        all
    }

    /// The kernel function in which a thread waits for what no device answers. One, and the
    /// innermost that every kernel has: before Linux 5.15 a stack ends at the first function whose
    /// return is probed, and the shadow probes some.
    fn function(&self, thread: usize) -> &'static str {
        let engine = self.model.engine();
        let op = engine.operation(&self.moment.state, thread).map_or(0, usize::from);
        let op = self.model.scenario().thread[thread].ops.get(op).copied();
        match engine.at(&self.moment.state, thread) {
            Instr::Lock(Rwsem::Data, Mode::Write) if matches!(op, Some(Op::Mkwrite { .. })) => {
                "ext4_da_get_block_prep"
            }
            // Whoever changes the bitmap waits until its log copy is written.
            Instr::Allocate(_) | Instr::RemoveLeaf { .. } => "jbd2_journal_get_write_access",
            _ => op.map_or("ext4", text::function),
        }
    }

    fn end(mut self) -> Compiled {
        // What is still under way when the rule breaks is let go as the last thing.
        for rule in self.outstanding.clone().into_values() {
            self.control(Control::LetGo { rule });
        }
        // A request that is answered before anything else is brought about needs no rule.
        let needed: Vec<bool> = (0..self.held.len())
            .map(|rule| self.needed.contains(&rule) || self.held[rule].fails)
            .collect();
        let place = |rule: usize| needed[..rule].iter().filter(|needed| **needed).count();
        let controls = self.controls.into_iter().filter_map(|(control, stand)| {
            let control = match control {
                Control::LetGo { rule } if !needed[rule] => return None,
                Control::LetGo { rule } => Control::LetGo { rule: place(rule) },
                start @ Control::Start { .. } => start,
            };
            let stand = stand.into_iter().map(|(thread, stands)| match stands {
                Stands::WaitsFor(rule) => (thread, Stands::WaitsFor(place(rule))),
                other => (thread, other),
            });
            Some((control, stand.collect()))
        });
        let controls = controls.collect();
        let held =
            self.held.into_iter().zip(&needed).filter_map(|(held, needed)| needed.then_some(held));
        Compiled { held: held.collect(), controls }
    }
}

#[cfg(test)]
mod tests;
