//! A booted guest: one virtual machine, one backend with the disk and the link, and the agent.
//!
//! In: a [`GuestConfig`]. Out: a [`Guest`] that runs trials and programs, one at a time.
//! Must not know: plans, what a trial's result means.

mod error;
mod machine;
mod snapshot;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use agent::wire::{
    List, ListResult, Lists, Stream, ToGuest, ToHost, TraceOrder, Trial, TrialResult,
};
use pipeline::control::Request;
use pipeline::event::RulesText;
use pipeline::shadow::Finding;
use pipeline::{Event, Nanos, RuleSet};
use tempfile::NamedTempFile;

pub use error::GuestError;
use snapshot::Memory;
pub use snapshot::{Snapshot, SnapshotError};

use crate::backend::{Backend, BackendConfig, ControlClient, Subscription};
use crate::kernels::Kernel;
use crate::link::{self, ClockMap, ClockSync};
use crate::notice::{Inbox, Notice};
use crate::qemu::{Accel, Qemu, Vm};
use crate::unpacked::Unpacked;

/// The guest's init, a static program.
pub const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));

/// How long a guest may take until the agent is ready. An emulated one needs 4 s on an idle host,
/// and more than 100 s have been seen on one with ten processes for each processor.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// Boots after which a guest whose kernel dies each time is given up. Under TCG of QEMU 7.2 a
/// virtual CPU can keep a stale translation of code that another one patches (the kernel's jump
/// labels), and then stops at an `int3` that is not there any more: "Oops: int3", now and then,
/// while the kernel boots.
const MOST_BOOTS: u32 = 3;
/// How long a guest may take to power off.
const OFF_LIMIT: Duration = Duration::from_secs(30);
/// How long the agent may take for something that takes it no time.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Most findings of one trial that are kept.
const MOST_FINDINGS: usize = 1024;
/// Most events of one trial that are kept: a trial of a plan has some hundred, and a guest may make
/// as many as it likes.
const MOST_EVENTS: usize = 1 << 18;
/// Rounds of clock synchronisation; the best one counts.
const CLOCK_ROUNDS: u32 = 8;

/// One guest.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// The program that runs it.
    pub qemu: Qemu,
    /// How guest code runs.
    pub accel: Accel,
    /// Its kernel.
    pub kernel: Kernel,
    /// Kernel parameters added to the harness's own.
    pub cmdline: Vec<String>,
    /// Arguments added at the end of QEMU's command line.
    pub qemu_args: Vec<OsString>,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// The disk; a link disk is served beside it.
    pub backend: BackendConfig,
    /// Programs of the host that [`Guest::exec`] can run as `/bin/NAME`, with their Debian
    /// packages.
    pub programs: Vec<(String, String)>,
    /// The same for programs of packages that are not installed.
    pub unpacked: Vec<(String, Unpacked)>,
}

/// What the agent said about the guest when it was ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Release of the kernel.
    pub kernel: String,
    /// Processors online.
    pub cpus: u32,
    /// Page size in bytes.
    pub page_bytes: u64,
    /// Kernel name of the disk.
    pub disk: String,
}

/// A trial as both sides saw it.
#[derive(Clone, Debug)]
pub struct Observed {
    /// What the guest saw.
    pub result: TrialResult,
    /// What the device saw meanwhile, in order.
    pub events: Vec<Event>,
    /// From the guest's clock to that of the events.
    pub clock: ClockMap,
    /// What the backend's shadows found, and when they told; from the trial before, too, if they told
    /// of it late.
    pub findings: Vec<(Nanos, Finding)>,
}

/// A program that ran in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// Exit status; 128 + number for a signal.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A part of a guest that has ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// QEMU.
    Machine(ExitStatus),
    /// A process of the backend, with the last lines of its standard error.
    Backend(ExitStatus, String),
}

/// A running guest. Dropping it kills QEMU, then the backend.
#[derive(Debug)]
pub struct Guest {
    vm: Vm,
    control: ControlClient,
    // Ends before the backend, which is dropped last of those three.
    _events: Subscription,
    backend: Backend,
    initramfs: Arc<NamedTempFile>,
    /// Its memory, if it is a part of a snapshot or can become one.
    memory: Option<Memory>,
    /// Where QEMU then speaks its machine protocol.
    qmp: Option<UnixListener>,
    inbox: Inbox,
    hello: Hello,
    next_id: u64,
    failed_boots: Vec<GuestError>,
    findings: Vec<(Nanos, Finding)>,
    /// Rules of which a finding was printed.
    told: BTreeSet<String>,
}

impl Guest {
    /// Starts the backend and the machine, and waits for the agent. A kernel that dies before the
    /// agent is ready is booted again, up to three times in all.
    ///
    /// # Errors
    /// An image or a QEMU that does not fit the device, a part that does not start, and a guest
    /// that does not boot, with its last console lines.
    pub fn boot(config: &GuestConfig) -> Result<Guest, GuestError> {
        Guest::boot_as(config, false)
    }

    /// Boots it; `kept` if a snapshot is to be taken.
    fn boot_as(config: &GuestConfig, kept: bool) -> Result<Guest, GuestError> {
        let BackendConfig { device, image, .. } = &config.backend;
        config.qemu.check(*device)?;
        let bytes = machine::image_bytes(&config.backend)?;
        if let Some(next) = device.next_fit(bytes) {
            let (path, device) = (image.clone(), *device);
            return Err(GuestError::Size { path, bytes, device, next });
        }
        let mut failed = Vec::new();
        loop {
            match Guest::boot_once(config, kept) {
                Ok(mut guest) => {
                    guest.failed_boots = failed;
                    return Ok(guest);
                }
                Err(error) if error.is_dead_kernel() => failed.push(error),
                Err(error) => return Err(error),
            }
            if failed.len() == MOST_BOOTS as usize
                && let Some(last) = failed.pop()
            {
                return Err(GuestError::Boots { times: MOST_BOOTS, source: Box::new(last) });
            }
        }
    }

    fn boot_once(config: &GuestConfig, kept: bool) -> Result<Guest, GuestError> {
        let memory =
            kept.then(|| Memory::new("racegate-memory", machine::MEMORY_BYTES)).transpose();
        let memory = memory.map_err(|source| GuestError::Memory { source })?;
        let mut guest = Guest::start(config, Arc::new(machine::initramfs(config)?), memory, false)?;
        guest.greeted(BOOT_LIMIT)?;
        Ok(guest)
    }

    /// Waits until the agent has said which guest this is.
    fn greeted(&mut self, limit: Duration) -> Result<(), GuestError> {
        let what = "waiting for the agent to be ready";
        self.hello = self.inbox.wait_for(what, limit, |notice| match said(notice)?.1 {
            ToHost::Hello { kernel, cpus, page_bytes, disk, .. } => {
                Some(Hello { kernel, cpus, page_bytes, disk })
            }
            _ => None,
        })?;
        Ok(())
    }

    /// Starts the backend and the machine, which boots, or waits to be loaded (`incoming`).
    fn start(
        config: &GuestConfig,
        initramfs: Arc<NamedTempFile>,
        memory: Option<Memory>,
        incoming: bool,
    ) -> Result<Guest, GuestError> {
        let inbox = Inbox::new();
        let backend = Backend::start(&config.backend, &inbox.sender())?;
        // Before the guest runs, so that its first message is not missed.
        let events = backend.subscribe(&inbox.sender())?;
        let control = backend.control()?;
        let vm = machine::of(config, &backend, initramfs.path(), memory.as_ref(), incoming)?;
        let listen = |path: &PathBuf| {
            let failed = |source| GuestError::Socket { path: path.clone(), source };
            UnixListener::bind(path).map_err(failed)
        };
        let qmp = vm.qmp.as_ref().map(listen).transpose()?;
        let vm = Vm::start(&vm, &inbox.sender())?;
        Ok(Guest {
            vm,
            control,
            _events: events,
            backend,
            initramfs,
            memory,
            qmp,
            inbox,
            hello: Hello::default(),
            next_id: 0,
            failed_boots: Vec::new(),
            findings: Vec::new(),
            told: BTreeSet::new(),
        })
    }

    /// What the agent said about the guest.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// How the boots ended that came before the one that succeeded; empty as a rule.
    pub fn failed_boots(&self) -> &[GuestError] {
        &self.failed_boots
    }

    /// The backend's control socket, for whatever this type does not do.
    pub fn control(&mut self) -> &mut ControlClient {
        &mut self.control
    }

    /// The processes that serve the disk.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// The machine's process id.
    pub fn machine_pid(&self) -> u32 {
        self.vm.pid()
    }

    /// Waits until the machine or a process of the backend has ended by itself. To be called
    /// again for the next one.
    pub fn wait_ended(&mut self, limit: Duration) -> Result<Ended, GuestError> {
        let ended = |notice: &Notice| match notice {
            Notice::VmExited(status) => Some(Ended::Machine(*status)),
            Notice::BackendExited { status, stderr } => {
                Some(Ended::Backend(*status, stderr.clone()))
            }
            _ => None,
        };
        Ok(self.inbox.wait_for("waiting for a process to end", limit, ended)?)
    }

    /// The console so far, one line of text per line.
    pub fn console(&self) -> String {
        self.vm.transcript().iter().fold(String::new(), |text, line| text + &line.text + "\n")
    }

    /// The backend's process.
    pub fn backend_pid(&self) -> u32 {
        self.backend.pid()
    }

    /// The last lines of the backend's standard error.
    pub fn backend_stderr(&self) -> String {
        self.backend.stderr()
    }

    /// Replaces the rules.
    pub fn load(&mut self, rules: &RuleSet) -> Result<(), GuestError> {
        self.control.call(&Request::Load(rules.text().clone()))?;
        Ok(())
    }

    /// Replaces the rules; their random draws are those of `seed`, whatever was drawn before.
    pub fn load_seeded(&mut self, rules: &RuleSet, seed: u64) -> Result<(), GuestError> {
        let rules = RulesText { seed: Some(seed), ..rules.text().clone() };
        self.control.call(&Request::Load(rules))?;
        Ok(())
    }

    /// Runs one trial; a guest that is not done after `limit` is taken for hung.
    pub fn run(&mut self, trial: Trial, limit: Duration) -> Result<Observed, GuestError> {
        let clock = self.synchronise()?;
        let number = trial.trial;
        self.send(&ToGuest::Run(trial))?;
        let mut events = Vec::new();
        let result = self.wait("running a trial", limit, |event, message| {
            if events.len() < MOST_EVENTS {
                events.push(event.clone());
            }
            match message {
                Some(ToHost::Trial(result)) if result.trial == number => Some(Ok(result)),
                Some(ToHost::Refused { id, reason }) if id.is_none_or(|id| id == number) => {
                    Some(Err(reason))
                }
                _ => None,
            }
        })?;
        Ok(Observed { result, events, clock, findings: self.take_findings() })
    }

    /// Carries out lists of calls on a file system that is mounted: one result for each, in
    /// order. A guest that is not done after `limit` is taken for hung.
    pub fn lists(
        &mut self,
        blocks: u64,
        lists: Vec<List>,
        limit: Duration,
    ) -> Result<Vec<ListResult>, GuestError> {
        self.next_id += 1;
        let id = self.next_id;
        let wanted = lists.len();
        let mut results = Vec::with_capacity(wanted);
        if wanted == 0 {
            return Ok(results);
        }
        self.send(&ToGuest::Lists(Lists { id, blocks, lists }))?;
        self.wait("running lists of calls", limit, |_, message| {
            match message? {
                ToHost::List(result) if result.id == id => results.push(result),
                ToHost::Refused { reason, .. } => return Some(Err(reason)),
                _ => {}
            }
            (results.len() == wanted).then_some(Ok(()))
        })?;
        Ok(results)
    }

    /// Has the kernel watched from now on: what its probes write goes to the backend's delalloc
    /// shadow. Gives what this kernel does not have, with reasons.
    pub fn watch_kernel(&mut self, mut order: TraceOrder) -> Result<Vec<String>, GuestError> {
        self.next_id += 1;
        let id = self.next_id;
        order.id = id;
        self.send(&ToGuest::Trace(order))?;
        self.wait("starting to watch the kernel", BOOT_LIMIT, |_, message| match message? {
            ToHost::TraceStarted(started) if started.id == id => Some(Ok(started.missing)),
            ToHost::Refused { id: of, reason } if of == Some(id) => Some(Err(reason)),
            _ => None,
        })
    }

    /// What the backend's shadows found and no trial has: with the device's time at which they told.
    pub fn take_findings(&mut self) -> Vec<(Nanos, Finding)> {
        std::mem::take(&mut self.findings)
    }

    /// Starts a trial that is not waited for: its marks are, and then the machine is killed.
    pub fn begin(&mut self, trial: Trial) -> Result<(), GuestError> {
        self.send(&ToGuest::Run(trial))
    }

    /// Waits until the agent passes a mark that `pick` takes, at most for `limit`.
    pub fn wait_mark<T>(
        &mut self,
        limit: Duration,
        mut pick: impl FnMut(&str) -> Option<T>,
    ) -> Result<T, GuestError> {
        self.wait("waiting for a mark of the agent", limit, |_, message| match message {
            Some(ToHost::Mark { name, .. }) => pick(&name).map(Ok),
            Some(ToHost::Refused { reason, .. }) => Some(Err(reason)),
            Some(ToHost::Trial(result)) => {
                Some(Err(result.error.unwrap_or_else(|| "the trial is over".to_owned())))
            }
            _ => None,
        })
    }

    /// Kills the machine (SIGKILL) and waits until it is gone; the backend lives on. Every mark
    /// that arrived before that is shown to `mark`.
    pub fn kill_machine(&mut self, mut mark: impl FnMut(&str)) -> Result<(), GuestError> {
        self.vm.kill();
        self.inbox.wait_machine_gone(
            "waiting for the killed machine to end",
            OFF_LIMIT,
            |notice| {
                if let Some((_, ToHost::Mark { name, .. })) = said(notice) {
                    mark(&name);
                }
            },
        )?;
        Ok(())
    }

    /// Runs a program in the guest to its end. `{disk}` in arguments becomes the kernel's name of
    /// the disk.
    pub fn exec(
        &mut self,
        program: &str,
        args: &[&str],
        limit: Duration,
    ) -> Result<Executed, GuestError> {
        self.next_id += 1;
        let id = self.next_id;
        self.send(&ToGuest::Exec {
            id,
            program: program.to_owned(),
            args: args.iter().map(ToString::to_string).collect(),
        })?;
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let status =
            self.wait("running a program in the guest", limit, |_, message| match message? {
                ToHost::Output { id: of, stream, text } if of == id => {
                    match stream {
                        Stream::Stdout => stdout.push_str(&text),
                        Stream::Stderr => stderr.push_str(&text),
                    }
                    None
                }
                ToHost::Exited { id: of, status, .. } if of == id => Some(Ok(status)),
                ToHost::Refused { id: of, reason } if of == Some(id) => Some(Err(reason)),
                _ => None,
            })?;
        Ok(Executed { status, stdout, stderr })
    }

    /// Powers the guest off and waits for it.
    pub fn shutdown(mut self) -> Result<(), GuestError> {
        self.send(&ToGuest::Shutdown)?;
        self.inbox.wait_machine_gone("waiting for the guest to power off", OFF_LIMIT, |_| {})?;
        Ok(())
    }

    /// Waits for the agent to answer: what was said before has then been taken in.
    pub fn ping(&mut self) -> Result<(), GuestError> {
        self.next_id += 1;
        let id = self.next_id;
        self.send(&ToGuest::Ping { id })?;
        self.wait("waiting for the agent's answer", ANSWER_LIMIT, |_, message| match message? {
            ToHost::Pong { id: of, .. } if of == id => Some(Ok(())),
            _ => None,
        })
    }

    /// Learns how the guest's clock stands to the device's.
    fn synchronise(&mut self) -> Result<ClockMap, GuestError> {
        self.send(&ToGuest::Sync { rounds: CLOCK_ROUNDS })?;
        let mut sync = ClockSync::default();
        self.wait("synchronising clocks", ANSWER_LIMIT, |event, message| {
            let Some(ToHost::Clock { round, previous }) = message else {
                return None;
            };
            sync.round(round, event.at, previous);
            let map = sync.map().ok_or_else(|| "the agent's rounds do not follow".to_owned());
            (round + 1 == CLOCK_ROUNDS).then_some(map)
        })
    }

    fn send(&mut self, message: &ToGuest) -> Result<(), GuestError> {
        let message = serde_json::to_value(message).map_err(GuestError::Message)?;
        self.control.call(&Request::Send { message })?;
        Ok(())
    }

    /// Waits for an event that `pick` takes; the message is that of the agent, if it is one.
    fn wait<T>(
        &mut self,
        what: &'static str,
        limit: Duration,
        mut pick: impl FnMut(&Event, Option<ToHost>) -> Option<Result<T, String>>,
    ) -> Result<T, GuestError> {
        enum End<T> {
            Picked(Result<T, String>),
            Panic(String),
            Garbled(String),
            Lost(u64),
        }
        let (findings, told) = (&mut self.findings, &mut self.told);
        let kernel = &self.hello.kernel;
        let picked = self.inbox.wait_for(what, limit, |notice| {
            let Notice::Event { event, .. } = notice else {
                return None;
            };
            if let pipeline::What::Lost { events } = event.what {
                return Some(End::Lost(events));
            }
            if let pipeline::What::Finding(finding) = &event.what {
                // When it happens, the first of each rule; the report has them all.
                if told.insert(finding.rule.clone()) {
                    tracing::warn!("{kernel}: {finding}");
                }
                if findings.len() < MOST_FINDINGS {
                    findings.push((event.at, finding.clone()));
                }
            }
            let message = match link::message_of(event).transpose() {
                Ok(message) => message,
                Err(garbled) => return Some(End::Garbled(garbled)),
            };
            match message {
                Some(ToHost::Panic { text }) => Some(End::Panic(text)),
                // For the shadow; who collects events has them, too.
                Some(ToHost::Trace(_)) => pick(event, None).map(End::Picked),
                message => pick(event, message).map(End::Picked),
            }
        });
        match picked? {
            End::Picked(Ok(value)) => Ok(value),
            End::Picked(Err(reason)) => Err(GuestError::Refused { what, reason }),
            End::Panic(text) => Err(GuestError::AgentPanicked { what, text }),
            End::Garbled(message) => Err(GuestError::Garbled { what, message }),
            End::Lost(events) => Err(GuestError::EventsLost { what, events }),
        }
    }
}

/// The agent's message in a notice, and when the device had it.
fn said(notice: &Notice) -> Option<(Nanos, ToHost)> {
    let Notice::Event { event, .. } = notice else {
        return None;
    };
    Some((event.at, link::message_of(event)?.ok()?))
}
