//! Carrying out one trial: the interpreter of workloads.
//!
//! In: a [`Trial`]. Out: a [`TrialResult`]: when every operation began and ended, values read,
//! lines of the kernel log.
//! Must not know: which workload this is, what counts as a hit.
//!
//! While a thread sleeps in a page fault it holds the address space's lock for reading
//! (`mmap_lock`), and whoever asks for it for writing (mmap, munmap, a growing heap) stops
//! everybody. So whatever runs beside the raced operations takes its memory beforehand.

mod files;
mod load;
mod ops;
mod parked;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use agent::MOUNT_POINT;
use agent::wire::{KernelLine, Op, Step, ToHost, Trial, TrialResult};
use anyhow::Context;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::clock;
use crate::kmsg::Kmsg;
use crate::link::Link;
use crate::meeting::Meeting;
use crate::trace::Tracer;
use files::Files;
use ops::{Failure, Performer};

/// Most lines of the kernel log in a result, and the longest line in bytes: what fits a frame.
const MOST_KERNEL_LINES: usize = 96;
const LONGEST_KERNEL_LINE: usize = 256;

/// Where trials take place.
pub(crate) struct Stage {
    /// Mount point of the file system under test.
    root: PathBuf,
    /// Kernel name of the disk under test.
    disk: String,
    meeting: Arc<Meeting>,
    host: Arc<dyn Host>,
    kernel_log: Option<Kmsg>,
    tracer: Option<Arc<Tracer>>,
}

/// The way to the host, for marks.
pub(crate) trait Host: Send + Sync {
    /// Tells the host; returns when it knows.
    fn tell(&self, message: &ToHost) -> anyhow::Result<()>;
}

impl Host for Link {
    fn tell(&self, message: &ToHost) -> anyhow::Result<()> {
        self.send(message).map(|_| ())
    }
}

impl Stage {
    /// The guest's: /mnt and the kernel log.
    pub(crate) fn in_guest(
        link: Arc<Link>,
        meeting: Arc<Meeting>,
        disk: &str,
    ) -> anyhow::Result<Stage> {
        let kernel_log = Kmsg::at_end().context("opening /dev/kmsg")?;
        Ok(Stage {
            root: MOUNT_POINT.into(),
            disk: disk.to_owned(),
            meeting,
            host: link,
            kernel_log: Some(kernel_log),
            tracer: None,
        })
    }

    /// The kernel is watched from now on.
    pub(crate) fn watch(&mut self, tracer: Arc<Tracer>) {
        self.tracer = Some(tracer);
    }

    /// What watches the kernel, if anything does.
    pub(crate) fn tracer(&self) -> Option<&Tracer> {
        self.tracer.as_deref()
    }

    /// Mount point of the file system under test.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Kernel name of the disk under test.
    pub(crate) fn disk(&self) -> &str {
        &self.disk
    }

    /// New lines of the kernel log, as many as fit a frame.
    pub(crate) fn kernel_lines(&mut self) -> Vec<KernelLine> {
        let lines = self.kernel_log.as_mut().map(Kmsg::lines);
        let mut lines = lines.and_then(Result::ok).unwrap_or_default();
        lines.truncate(MOST_KERNEL_LINES);
        for line in &mut lines {
            let fits = |&(at, c): &(usize, char)| at + c.len_utf8() <= LONGEST_KERNEL_LINE;
            let end = line.text.char_indices().take_while(fits).last();
            line.text.truncate(end.map_or(0, |(at, c)| at + c.len_utf8()));
        }
        lines
    }
}

/// What the threads of one trial share.
struct Shared<'a> {
    stage: &'a Stage,
    trial: &'a Trial,
    files: Files,
    /// Thread IDs by name, each entered by the thread itself.
    tids: Mutex<BTreeMap<String, i32>>,
    values: Mutex<BTreeMap<String, String>>,
}

/// Carries the trial out. The workload has been checked.
pub(crate) fn run_trial(stage: &mut Stage, trial: &Trial) -> TrialResult {
    stage.meeting.reset();
    stage.kernel_lines();
    let began_ns = clock::now_ns();
    let (steps, values, error) = perform(stage, trial);
    TrialResult {
        trial: trial.trial,
        began_ns,
        ended_ns: clock::now_ns(),
        steps,
        values,
        kernel: stage.kernel_lines(),
        error,
    }
}

fn perform(stage: &Stage, trial: &Trial) -> (Vec<Step>, BTreeMap<String, String>, Option<String>) {
    let shared = Shared {
        stage,
        trial,
        files: Files::default(),
        tids: Mutex::default(),
        values: Mutex::default(),
    };
    let workload = &trial.workload;
    let mut steps = Vec::new();
    let mut outcome = part(&shared, "setup", &workload.setup, &mut steps);
    if outcome.is_ok() {
        outcome = side_by_side(&shared, &mut steps);
    }
    if outcome.is_ok() {
        outcome = part(&shared, "finish", &workload.finish, &mut steps);
    }
    let mut error = outcome.err().map(|failure| failure.to_string());
    for op in &workload.cleanup {
        let cleaned = part(&shared, "cleanup", std::slice::from_ref(op), &mut steps);
        // A clean-up after a failure fails too, for the same reason: only its own is news.
        if let (Err(failure), None) = (cleaned, &error) {
            error = Some(failure.to_string());
        }
    }
    steps.sort_by_key(|step| step.end_ns);
    (steps, shared.values.into_inner().unwrap_or_else(PoisonError::into_inner), error)
}

fn part(shared: &Shared<'_>, name: &str, ops: &[Op], steps: &mut Vec<Step>) -> Result<(), Failure> {
    let mut performer = Performer::new(shared, name, ops);
    let outcome = performer.perform_all(ops);
    steps.append(&mut performer.into_steps());
    outcome
}

fn side_by_side(shared: &Shared<'_>, steps: &mut Vec<Step>) -> Result<(), Failure> {
    let meeting = &shared.stage.meeting;
    let run = |name: &str, cpu: Option<u32>, ops: &[Op]| {
        if let Some(cpu) = cpu
            && let Err(error) = stay_on(cpu)
        {
            meeting.give_up();
            return (Vec::new(), Err(Failure::new(name, "choose a processor", &error)));
        }
        let tid = rustix::thread::gettid().as_raw_pid();
        let mut tids = shared.tids.lock().unwrap_or_else(PoisonError::into_inner);
        tids.insert(name.to_owned(), tid);
        drop(tids);
        let mut performer = Performer::new(shared, name, ops);
        let outcome = performer.perform_all(ops);
        if outcome.is_err() {
            meeting.give_up();
        }
        (performer.into_steps(), outcome)
    };
    thread::scope(|scope| {
        let run = &run;
        let mut handles = Vec::new();
        let mut first = Ok(());
        for t in &shared.trial.workload.threads {
            let started = thread::Builder::new()
                .name(t.name.clone())
                .spawn_scoped(scope, move || run(&t.name, t.cpu, &t.ops));
            match started {
                Ok(handle) => handles.push(handle),
                Err(error) => {
                    meeting.give_up();
                    first = Err(Failure::new(&t.name, "start", &error));
                    break;
                }
            }
        }
        for handle in handles {
            // A panic of a thread has ended the guest, see `power`.
            let Ok((mut own, outcome)) = handle.join() else {
                continue;
            };
            steps.append(&mut own);
            // Of several failures the one that made the others give up explains most.
            first = match (first, outcome) {
                (Ok(()), outcome) => outcome,
                (Err(old), Err(new)) if old.is_consequence() => Err(new),
                (old, _) => old,
            };
        }
        first
    })
}

/// Keeps the calling thread on one processor, counted round those that it may use.
fn stay_on(cpu: u32) -> io::Result<()> {
    let allowed = sched_getaffinity(None)?;
    let usable: Vec<usize> =
        (0..CpuSet::MAX_CPU).filter(|number| allowed.is_set(*number)).collect();
    let Some(number) = usable.get(cpu as usize % usable.len().max(1)) else {
        return Err(io::Error::other("there is no processor to use"));
    };
    let mut one = CpuSet::new();
    one.set(*number);
    Ok(sched_setaffinity(None, &one)?)
}

#[cfg(test)]
mod tests;
