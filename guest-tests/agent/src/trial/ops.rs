//! One thread's operations.
//!
//! In: operations, in order. Out: a step with times for each; the first failure ends the thread.

use std::ffi::CString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

use agent::draws::Draws;
use agent::random_writes::{RandomWrites, synced};
use agent::wire::{Op, Step, ToHost};
use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::Shared;
use super::load;
use super::parked::Watch;
use crate::background::Background;
use crate::link::Aligned;
use crate::lists::falloc_flags;
use crate::mapping::Mapping;
use crate::meeting::Missed;
use crate::{clock, ioctl};

/// How long threads wait for each other at a barrier. Generous: only a thread that hangs in the
/// kernel is this late.
const BARRIER_LIMIT: Duration = Duration::from_secs(60);

/// Why a part of a trial ended early.
#[derive(Debug)]
pub(super) struct Failure {
    place: String,
    op: String,
    reason: String,
    consequence: bool,
}

impl Failure {
    pub(super) fn new(place: &str, op: &str, error: &io::Error) -> Failure {
        let reason = error.to_string();
        Failure { place: place.to_owned(), op: op.to_owned(), reason, consequence: false }
    }

    /// Whether the part only ended because another had failed.
    pub(super) fn is_consequence(&self) -> bool {
        self.consequence
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.op, self.reason)
    }
}

/// Performs operations under one name.
pub(super) struct Performer<'a> {
    shared: &'a Shared<'a>,
    thread: &'a str,
    steps: Vec<Step>,
    draws: Draws,
}

impl<'a> Performer<'a> {
    pub(super) fn new(shared: &'a Shared<'a>, thread: &'a str, ops: &[Op]) -> Performer<'a> {
        Performer {
            shared,
            thread,
            steps: Vec::with_capacity(ops.len()),
            draws: Draws::new(shared.trial.seed, thread),
        }
    }

    pub(super) fn into_steps(self) -> Vec<Step> {
        self.steps
    }

    /// Performs all of them, or up to the first that fails.
    pub(super) fn perform_all(&mut self, ops: &[Op]) -> Result<(), Failure> {
        for op in ops {
            let label = op.label();
            let thread = self.thread.to_owned();
            let begin_ns = clock::now_ns();
            let outcome = self.perform(op);
            let end_ns = clock::now_ns();
            let errno = outcome.as_ref().err().and_then(|(error, _)| error.raw_os_error());
            let failure = outcome.err().map(|(error, consequence)| Failure {
                consequence,
                ..Failure::new(self.thread, &label, &error)
            });
            self.steps.push(Step { thread, op: label, begin_ns, end_ns, errno });
            if let Some(failure) = failure {
                return Err(failure);
            }
        }
        Ok(())
    }

    /// `Err((error, consequence))`: see [`Failure::is_consequence`].
    fn perform(&mut self, op: &Op) -> Result<(), (io::Error, bool)> {
        let meeting = &self.shared.stage.meeting;
        match op {
            Op::Barrier { name } => {
                let parties = self.shared.trial.workload.parties(name);
                meeting.barrier(name, parties, BARRIER_LIMIT).map_err(missed)
            }
            Op::Signal { name } => {
                meeting.raise(name);
                Ok(())
            }
            Op::Await { signal, limit_ms } => {
                meeting.await_signal(signal, Duration::from_millis(*limit_ms)).map_err(missed)
            }
            Op::CountUntil { signal, name, limit_ms } => {
                let limit = Duration::from_millis(*limit_ms);
                let count = load::count_until(meeting, signal, limit).map_err(missed)?;
                self.value(name, &count.turns.to_string());
                self.value(&format!("{name}_gap_us"), &count.longest_gap_us.to_string());
                Ok(())
            }
            Op::AwaitParked { thread, within, limit_ms } => {
                let limit = Duration::from_millis(*limit_ms);
                match self.await_parked(thread, within, limit) {
                    Ok(true) => Ok(()),
                    Ok(false) if meeting.given_up() => Err(missed(Missed::GivenUp)),
                    Ok(false) => Err(missed(Missed::TimedOut)),
                    Err(error) => Err((error, false)),
                }
            }
            _ => self.call(op).map_err(|error| (error, false)),
        }
    }

    /// Operations on files; they wait for nobody.
    fn call(&mut self, op: &Op) -> io::Result<()> {
        let Shared { stage, files, .. } = self.shared;
        match op {
            Op::Open { file, path, create, direct, sync } => {
                let mut flags = OFlags::empty();
                flags.set(OFlags::DIRECT, *direct);
                flags.set(OFlags::SYNC, *sync);
                let opened = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(*create)
                    .custom_flags(flags.bits().cast_signed())
                    .open(self.path(path))?;
                files.insert(file, opened);
                Ok(())
            }
            Op::Close { file } => files.remove(file),
            Op::Unlink { path } => fs::remove_file(self.path(path)),
            Op::Fill { prefix, count } => (0..*count).try_for_each(|n| {
                match File::create_new(self.path(&format!("{prefix}{n}"))) {
                    Ok(file) => file.write_all_at(b"\0", 0),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                    Err(error) => Err(error),
                }
            }),
            Op::Truncate { file, bytes } => files.get(file)?.file.set_len(*bytes),
            Op::Fallocate { file, mode, offset, bytes } => {
                let open = files.get(file)?;
                Ok(rustix::fs::fallocate(&open.file, falloc_flags(*mode), *offset, *bytes)?)
            }
            Op::Write { file, offset, bytes, fill } => {
                let mut data = Aligned::full_of(*fill, *bytes as usize);
                files.get(file)?.file.write_all_at(data.bytes(*bytes as usize), *offset)
            }
            Op::BeginWrite { file, offset, bytes, fill } => {
                let open = files.get(file)?;
                let mut slot = open.background.lock().unwrap_or_else(PoisonError::into_inner);
                if slot.is_some() {
                    let busy = "a write of this file is under way already";
                    return Err(io::Error::new(io::ErrorKind::ResourceBusy, busy));
                }
                *slot = Some(Background::write(&open.file, *offset, *bytes as usize, *fill)?);
                Ok(())
            }
            Op::EndWrite { file } => {
                let open = files.get(file)?;
                let write = open.background.lock().unwrap_or_else(PoisonError::into_inner).take();
                let none = || io::Error::new(io::ErrorKind::NotFound, "no `begin_write` before it");
                write.ok_or_else(none)?.wait()
            }
            Op::Read { file, offset, bytes, expect } => {
                let mut data = Aligned::full_of(0, *bytes as usize);
                let data = data.bytes(*bytes as usize);
                files.get(file)?.file.read_exact_at(data, *offset)?;
                compare(data, *offset, *expect)
            }
            Op::CountWrong { file, offset, bytes, expect, name } => {
                let mut data = Aligned::full_of(0, *bytes as usize);
                let data = data.bytes(*bytes as usize);
                let there = read_up_to(&files.get(file)?.file, data, *offset)?;
                let wrong = data[..there].iter().filter(|byte| *byte != expect).count();
                self.value(name, &(data.len() - there + wrong).to_string());
                Ok(())
            }
            Op::Fsync { file } => files.get(file)?.file.sync_all(),
            Op::TryFsync { file, name } => {
                let failed = files.get(file)?.file.sync_all().err();
                if let Some(name) = name {
                    let number = failed.and_then(|error| error.raw_os_error()).unwrap_or(0);
                    self.value(name, &number.to_string());
                }
                Ok(())
            }
            Op::SeekData { file, offset, name } => {
                let open = files.get(file)?;
                match rustix::fs::seek(&open.file, SeekFrom::Data(*offset)) {
                    Ok(at) => self.value(name, &at.to_string()),
                    Err(Errno::NXIO) => self.value(name, "none"),
                    Err(error) => return Err(error.into()),
                }
                Ok(())
            }
            Op::Syncfs {} => {
                rustix::fs::syncfs(File::open(&stage.root)?)?;
                self.tell_quiet();
                Ok(())
            }
            _ => self.call_on_mapping(op),
        }
    }

    /// Operations on a file's mapping.
    fn call_on_mapping(&mut self, op: &Op) -> io::Result<()> {
        let files = &self.shared.files;
        match op {
            Op::Map { file, bytes } => {
                let open = files.get(file)?;
                let mapping = Mapping::new(&open.file, *bytes)?;
                let taken = |_| io::Error::new(io::ErrorKind::AlreadyExists, "mapped already");
                open.mapping.set(mapping).map_err(taken)
            }
            Op::Store { file, offset, value } => {
                let open = files.get(file)?;
                open.mapping.get().ok_or_else(unmapped)?.store(*offset, *value)
            }
            Op::Msync { file, bytes } => {
                let open = files.get(file)?;
                open.mapping.get().ok_or_else(unmapped)?.sync(0, *bytes)
            }
            Op::WriteMapped { file, offset, bytes, from, from_offset, name } => {
                let (to, from) = (files.get(file)?, files.get(from)?);
                let mapping = from.mapping.get().ok_or_else(unmapped)?;
                let written = mapping.write_to(&to.file, *offset, *from_offset, *bytes)?;
                self.value(name, &written.to_string());
                Ok(())
            }
            Op::DropMapped { file, offset, bytes } => {
                let open = files.get(file)?;
                open.mapping.get().ok_or_else(unmapped)?.drop_pages(*offset, *bytes)
            }
            _ => self.call_on_system(op),
        }
    }

    /// Operations on the file system, the kernel's settings and the clock.
    fn call_on_system(&mut self, op: &Op) -> io::Result<()> {
        let Shared { stage, files, .. } = self.shared;
        match op {
            Op::Mount { options } => self.mount(options),
            Op::EnsureMounted { options } => match self.mount(options) {
                Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => Ok(()),
                mounted => mounted,
            },
            Op::Umount {} => {
                // An open file would keep the file system busy.
                files.clear();
                // What umount would write anyway; a failure is umount's to tell.
                if stage.tracer().is_some() && rustix::fs::syncfs(File::open(&stage.root)?).is_ok()
                {
                    self.tell_quiet();
                }
                Ok(rustix::mount::unmount(&stage.root, UnmountFlags::empty())?)
            }
            Op::Remount { options, may_fail } => {
                let (flags, data) = mount_flags(options, running());
                let remounted =
                    rustix::mount::mount_remount(&stage.root, flags, &CString::new(data)?);
                if *may_fail { Ok(()) } else { Ok(remounted?) }
            }
            Op::Shutdown {} => ioctl::shut_down(&File::open(&stage.root)?),
            Op::Delay { min_us, max_us } => {
                clock::sleep(Duration::from_micros(self.draws.between(*min_us, *max_us)));
                Ok(())
            }
            Op::Mark { name } => self.mark(name),
            Op::WriteRandomly { path, blocks, writes, fsync_every } => {
                let path = path.replace("{disk}", &stage.disk);
                let writes = RandomWrites::new(self.draws.clone(), *blocks, *writes);
                load::write(&path, writes, *fsync_every, |done| self.mark(&synced(done)))
            }
            Op::TimeReads { path, offset, step, count, pause_us, name } => {
                let path = path.replace("{disk}", &stage.disk);
                let pages = (0..u64::from(*count)).map(|page| offset + page * step);
                let times = load::time_reads(&path, pages, Duration::from_micros(*pause_us))?;
                self.value(name, &times);
                Ok(())
            }
            Op::TimeSyncs { path, count, name } => {
                let times = load::time_syncs(&path.replace("{disk}", &stage.disk), *count)?;
                self.value(name, &times);
                Ok(())
            }
            Op::ReadValue { path, name } => {
                let value = fs::read_to_string(path.replace("{disk}", &stage.disk))?;
                self.value(name, value.trim());
                Ok(())
            }
            Op::WriteValue { path, value } => {
                // Not `fs::write`: settings are neither created nor truncated.
                let setting =
                    OpenOptions::new().write(true).open(path.replace("{disk}", &stage.disk))?;
                setting.write_all_at(value.as_bytes(), 0)
            }
            _ => Err(io::Error::new(io::ErrorKind::Unsupported, "the agent cannot do this")),
        }
    }

    /// Enters a value of the result.
    fn value(&self, name: &str, value: &str) {
        let mut values = self.shared.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.insert(name.to_owned(), value.to_owned());
    }

    fn path(&self, path: &str) -> PathBuf {
        self.shared.stage.root.join(path)
    }

    fn mount(&self, options: &str) -> io::Result<()> {
        let (flags, data) = mount_flags(options, running());
        let device = format!("/dev/{}", self.shared.stage.disk);
        let data = CString::new(data)?;
        let root = &self.shared.stage.root;
        Ok(rustix::mount::mount(device, root, "ext4", flags, data.as_c_str())?)
    }

    /// With no other thread at work, and everything written, the kernel says how many blocks it still
    /// counts as delayed: for those who watch it.
    fn tell_quiet(&self) {
        let stage = self.shared.stage;
        let (Some(tracer), false) = (stage.tracer(), self.in_thread()) else {
            return;
        };
        let path = format!("/sys/fs/ext4/{}/delayed_allocation_blocks", stage.disk);
        if let Ok(dirty) = fs::read_to_string(path) {
            tracer.mark(&format!("quiet=1 dirty={}", dirty.trim()));
        }
    }

    /// Whether other threads may be at work.
    fn in_thread(&self) -> bool {
        self.shared.trial.workload.threads.iter().any(|thread| thread.name == self.thread)
    }

    fn mark(&self, name: &str) -> io::Result<()> {
        let message = ToHost::Mark {
            name: name.to_owned(),
            guest_ns: clock::now_ns(),
            thread: self.thread.to_owned(),
            trial: self.shared.trial.trial,
        };
        self.shared.stage.host.tell(&message).map_err(io::Error::other)
    }

    fn await_parked(&self, thread: &str, within: &[String], limit: Duration) -> io::Result<bool> {
        let tids = self.shared.tids.lock().unwrap_or_else(PoisonError::into_inner);
        let tid = tids.get(thread).copied();
        drop(tids);
        let not_yet = || io::Error::new(io::ErrorKind::NotFound, "the thread has not started");
        let watch = Watch::new(tid.ok_or_else(not_yet)?)?;
        watch.wait(within, limit, || self.shared.stage.meeting.given_up())
    }
}

/// The kernel that runs.
fn running() -> Option<(u32, u32)> {
    version(&rustix::system::uname().release().to_string_lossy())
}

fn unmapped() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "no `map` before it")
}

fn missed(missed: Missed) -> (io::Error, bool) {
    match missed {
        Missed::TimedOut => (io::Error::new(io::ErrorKind::TimedOut, "time limit passed"), false),
        Missed::GivenUp => (io::Error::other("given up, because another thread failed"), true),
    }
}

/// Reads until the buffer is full or the file ends; gives how many bytes there were.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut there = 0;
    while there < buffer.len() {
        match file.read_at(&mut buffer[there..], offset + there as u64) {
            Ok(0) => break,
            Ok(more) => there += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(there)
}

fn compare(data: &[u8], offset: u64, expect: Option<u8>) -> io::Result<()> {
    let Some(expect) = expect else { return Ok(()) };
    match data.iter().position(|&byte| byte != expect) {
        None => Ok(()),
        Some(at) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("byte {} is {:#04x}, not {expect:#04x}", offset + at as u64, data[at]),
        )),
    }
}

/// Splits mount options into flags of mount(2) and the rest, which is ext4's.
/// Options for kernels newer than `running` are left out.
fn mount_flags(options: &str, running: Option<(u32, u32)>) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let option = match option.split_once('+') {
            Some((since, _)) if version(since) > running => continue,
            Some((_, option)) => option,
            None => option,
        };
        match option {
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "lazytime" => flags |= MountFlags::LAZYTIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            "ro" => flags |= MountFlags::RDONLY,
            "rw" => {}
            ext4 => data.push(ext4),
        }
    }
    (flags, data.join(","))
}

/// Major and minor number of a kernel version or release (`6.1.0-55-cloud-amd64`).
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_options_are_split() {
        let (flags, data) = mount_flags("noatime,data=ordered,,lazytime,nodelalloc", None);
        assert_eq!(flags, MountFlags::NOATIME | MountFlags::LAZYTIME);
        assert_eq!(data, "data=ordered,nodelalloc");
    }

    #[test]
    fn newer_kernels_get_their_options() {
        let options = |release| mount_flags("a,5.13+quiet,6.12+loud", version(release)).1;
        assert_eq!(options("5.10.0-32-cloud-amd64"), "a");
        assert_eq!(options("6.1.0-55-cloud-amd64"), "a,quiet");
        assert_eq!(options("6.12.107+deb13-cloud-amd64"), "a,quiet,loud");
    }
}
