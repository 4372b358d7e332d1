//! Child processes: started in a group of their own, watched, and never left behind.
//!
//! In: a program and its arguments. Out: [`Running`] (a child that lives as long as its value) or
//! [`Output`] (a short command that ran to its end).
//! Must not know: QEMU, apt, the backend.
//!
//! A child is ended in three ways: its value is dropped (SIGKILL to the whole group, then it is
//! reaped), an interrupt unwinds to that drop, or racegate itself dies, and then the kernel kills
//! the child (`PR_SET_PDEATHSIG`, set by util-linux's `setpriv`, because doing it between fork and
//! exec would need unsafe code here). The death signal is bound to the *thread* that forked, so one
//! thread that never ends starts all children.

mod short;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
};

pub use short::{Output, capture, run, run_lines};

use crate::interrupt;

/// A command could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// No such program.
    #[error("{program} is not installed; {mend}")]
    Missing {
        /// The program.
        program: String,
        /// What to type.
        mend: String,
    },
    /// It could not be started.
    #[error("Could not start {program}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// Reading its output or waiting for it failed.
    #[error("Could not watch {program}")]
    Watch {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("{program} failed ({status}): {message}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it wrote on standard error.
        message: String,
    },
    /// It did not end in time and was killed.
    #[error("{program} did not end within {after:?}")]
    TimedOut {
        /// The program.
        program: String,
        /// The limit.
        after: Duration,
    },
    /// The operator asked racegate to end; the command was killed.
    #[error("{program}: interrupted")]
    Interrupted {
        /// The program.
        program: String,
    },
}

/// The path of `program`, looked up in `PATH` and in the folders of system programs.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    std::env::split_paths(&path)
        .chain(system.iter().map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| is_executable(file))
}

/// Whether `file` is a regular file that this user may run.
pub fn is_executable(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

/// A command that runs `program` in a process group of its own and dies with racegate.
///
/// `package` is the Debian package that has the program, for the error if it is missing.
pub fn command(program: &str, package: &str) -> Result<Command, ProcessError> {
    let path = find_program(program).ok_or_else(|| ProcessError::Missing {
        program: program.to_owned(),
        mend: format!("install it with: apt-get install {package}"),
    })?;
    Ok(command_at(&path))
}

/// As [`command`], for a program whose path is known.
pub fn command_at(program: &Path) -> Command {
    static SETPRIV: OnceLock<Option<PathBuf>> = OnceLock::new();
    let mut command = if let Some(setpriv) = SETPRIV.get_or_init(|| find_program("setpriv")) {
        let mut command = Command::new(setpriv);
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.process_group(0).stdin(Stdio::null());
    command
}

/// The name of the program that `command` runs, for messages.
fn name(command: &Command) -> String {
    let program = command.get_program();
    let real = if Path::new(program).file_name() == Some(OsStr::new("setpriv")) {
        command.get_args().nth(3).unwrap_or(program)
    } else {
        program
    };
    Path::new(real).file_name().unwrap_or(real).to_string_lossy().into_owned()
}

/// Starts `command` on the thread that never ends; see the module's header.
fn start(mut command: Command) -> io::Result<Child> {
    type Job = (Command, Sender<io::Result<Child>>);
    static STARTER: OnceLock<Sender<Job>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        jobs
    });
    command.process_group(0);
    let (reply, result) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts children is gone");
    starter.send((command, reply)).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}

/// A child that lives as long as this value.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
    pid: Pid,
    pidfd: OwnedFd,
    watcher: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts `command` (from [`command`] or [`command_at`]).
    pub fn start(command: Command) -> Result<Running, ProcessError> {
        let name = name(&command);
        let failed = |source| ProcessError::Start { program: name.clone(), source };
        let mut child = start(command).map_err(failed)?;
        let pid = Pid::from_child(&child);
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                let _ = kill_process_group(pid, Signal::KILL);
                let _ = child.wait();
                return Err(failed(error.into()));
            }
        };
        Ok(Running { child, name, pid, pidfd, watcher: None })
    }

    /// The child's piped standard output and error, each once.
    pub fn take_pipes(
        &mut self,
    ) -> (Option<std::process::ChildStdout>, Option<std::process::ChildStderr>) {
        (self.child.stdout.take(), self.child.stderr.take())
    }

    /// Calls `then` on a thread of its own when the child has ended, before it is reaped.
    pub fn on_exit(&mut self, then: impl FnOnce(ExitStatus) + Send + 'static) -> io::Result<()> {
        let pidfd = self.pidfd.try_clone()?;
        self.watcher = Some(std::thread::spawn(move || {
            if let Ok(Some(status)) = wait_pidfd(pidfd.as_fd(), None, None) {
                then(status);
            }
        }));
        Ok(())
    }

    /// Readable when the child has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Process id, which is also the id of its group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of the child, at most for `limit`.
    pub fn wait(&self, limit: Duration) -> Result<ExitStatus, ProcessError> {
        let program = || self.name.clone();
        let deadline = Instant::now() + limit;
        match wait_pidfd(self.pidfd.as_fd(), Some(deadline), interrupt::fd()) {
            Ok(Some(status)) => Ok(status),
            Ok(None) if interrupt::requested() => {
                Err(ProcessError::Interrupted { program: program() })
            }
            Ok(None) => Err(ProcessError::TimedOut { program: program(), after: limit }),
            Err(source) => Err(ProcessError::Watch { program: program(), source }),
        }
    }

    /// Waits for the end of the child, at most for `limit`, whatever the operator asks meanwhile.
    /// For a child that has to clean up behind itself.
    pub fn wait_ended(&self, limit: Duration) {
        // What could not be waited for is killed by whoever drops this.
        let _ = wait_pidfd(self.pidfd.as_fd(), Some(Instant::now() + limit), None);
    }

    /// How the child ended, if it has.
    pub fn status(&self) -> Option<ExitStatus> {
        ended(self.pidfd.as_fd()).ok().flatten()
    }

    /// Asks the child's group to end (SIGTERM).
    pub fn terminate(&self) {
        // Fails only when all are gone already. The group's id cannot have a new owner: the child
        // is reaped in `drop` only.
        let _ = kill_process_group(self.pid, Signal::TERM);
    }

    /// Kills the child's group.
    pub fn kill(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
        let _ = self.child.wait();
    }
}

/// Waits until the process of `pidfd` ends; `None` at `deadline` or when `wake` is readable.
fn wait_pidfd(
    pidfd: BorrowedFd<'_>,
    deadline: Option<Instant>,
    wake: Option<BorrowedFd<'_>>,
) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = ended(pidfd)? {
            return Ok(Some(status));
        }
        let mut fds = vec![PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
        fds.extend(wake.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        if !poll_until(&mut fds, deadline)? {
            return Ok(None);
        }
        if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
            return ended(pidfd);
        }
    }
}

/// Polls until a descriptor is ready (true) or `deadline` has passed (false).
pub(crate) fn poll_until(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let limit = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        match poll(fds, limit.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// How the process of `pidfd` ended, if it has; leaves it to be reaped.
fn ended(pidfd: BorrowedFd<'_>) -> io::Result<Option<ExitStatus>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let Some(status) = waitid(WaitId::PidFd(pidfd), options)? else {
        return Ok(None);
    };
    let raw = status
        .exit_status()
        .map_or_else(|| status.terminating_signal().unwrap_or(0), |code| (code & 0xff) << 8);
    Ok(Some(ExitStatus::from_raw(raw)))
}

/// The last `count` lines of `bytes` that say something, joined by "; ".
pub(crate) fn last_lines(bytes: &[u8], count: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("; ")
}

/// Reads lines from `from` until its end, each handed to `on_line` without its line end.
///
/// A line that never ends is cut at 64 KiB: the guest is not trusted to end one.
pub(crate) fn read_lines(mut from: impl io::Read, mut on_line: impl FnMut(String)) {
    const LONGEST: usize = 64 << 10;
    let mut pending = Vec::new();
    let mut chunk = [0; 4096];
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\r').to_owned();
    loop {
        let length = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for &byte in &chunk[..length] {
            if byte == b'\n' || pending.len() == LONGEST {
                on_line(text(&pending));
                pending.clear();
            }
            if byte != b'\n' {
                pending.push(byte);
            }
        }
    }
    if !pending.is_empty() {
        on_line(text(&pending));
    }
}

#[cfg(test)]
mod tests;
