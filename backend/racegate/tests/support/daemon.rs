//! A daemon under test: a folder to run it in, its start, its signals, its end, its control
//! socket.
//!
//! In: a program and arguments. Out: a running [`Daemon`], what it printed.
//! Must not know: what it serves.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;
use tempfile::TempDir;

/// How long a daemon may take for anything before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Held while a child is spawned.
static SPAWNING: Mutex<()> = Mutex::new(());

/// Waits for the end of a child, and kills it if that does not come.
pub(crate) fn end(child: Child) -> Output {
    let pid = Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("pidfd");
    if !readable(pidfd.as_fd()) {
        kill_process(pid, Signal::KILL).expect("kill");
        let output = child.wait_with_output().expect("output");
        panic!("the daemon did not end: {}", String::from_utf8_lossy(&output.stderr));
    }
    child.wait_with_output().expect("output")
}

/// Whether it becomes readable in time.
pub(crate) fn readable(fd: BorrowedFd<'_>) -> bool {
    let limit = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&limit)).expect("poll") > 0
}

/// A folder to run a program in.
pub(crate) struct Place {
    folder: TempDir,
    /// The program, maybe behind others that start it.
    program: Vec<PathBuf>,
}

impl Place {
    /// An empty folder for a program: its path, maybe behind another one that starts it.
    pub(crate) fn for_program(words: &[&str]) -> Place {
        let folder = tempfile::tempdir().expect("folder");
        Place { folder, program: words.iter().map(PathBuf::from).collect() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn file(&self, name: &str, bytes: u64) {
        fs::File::create(self.path(name)).and_then(|file| file.set_len(bytes)).expect("file");
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).expect("folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    /// Starts the daemon with these arguments in the folder and waits until it is ready. Gives
    /// what it said with that.
    pub(crate) fn start(&self, args: &[&str]) -> (Daemon, String) {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        let child = self.spawn(args, &[("--ready-fd", theirs.into())]);
        assert!(readable(ours.as_fd()), "not ready");
        let mut line = String::new();
        BufReader::new(ours).read_line(&mut line).expect("a line");
        let Some(said) = line.strip_prefix("ready") else {
            let output = end(child);
            panic!("not ready: {}", String::from_utf8_lossy(&output.stderr));
        };
        (Daemon::of(child), said.trim().to_owned())
    }

    /// Spawns the daemon; each descriptor is inherited, its number given after its option.
    pub(crate) fn spawn(&self, args: &[&str], inherited: &[(&str, OwnedFd)]) -> Child {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]).env_remove("RUST_LOG").stdin(Stdio::null());
        command.current_dir(self.folder.path()).args(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // Inherited for the time of one spawn: other tests must not pass them on to their own.
        let _alone = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
        for (option, fd) in inherited {
            fcntl_setfd(fd, FdFlags::empty()).expect("descriptor");
            command.arg(format!("{option}={}", fd.as_raw_fd()));
        }
        let child = command.spawn().expect("the daemon");
        for (_, fd) in inherited {
            fcntl_setfd(fd, FdFlags::CLOEXEC).expect("descriptor");
        }
        child
    }

    /// One line with all of `words`, not status 0, no panic, and the folder as it was. Gives the
    /// status.
    pub(crate) fn fails(&self, args: &[&str], words: &[&str]) -> i32 {
        let before = self.names();
        let output = end(self.spawn(args, &[]));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{args:?} succeeded");
        let status = output.status.code().unwrap_or_else(|| panic!("{args:?} died of a signal"));
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
        let name = self.program.last().and_then(|path| path.file_name()).expect("a program");
        let speaker = text.split(": ").next().expect("at least one part");
        assert!(speaker.ends_with(&*name.to_string_lossy()), "{args:?}: {text}");
        for word in words {
            assert!(text.contains(word), "{args:?}: no {word:?} in: {text}");
        }
        assert!(!text.contains("panicked"), "{args:?}: {text}");
        assert_eq!(self.names(), before, "{args:?} left something behind");
        status
    }
}

/// A daemon that is killed if a test forgets it.
pub(crate) struct Daemon {
    child: Option<Child>,
}

impl Daemon {
    pub(crate) fn of(child: Child) -> Daemon {
        Daemon { child: Some(child) }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("running");
        kill_process(Pid::from_child(child), signal).expect("signal");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    pub(crate) fn end(mut self) -> Output {
        end(self.child.take().expect("running"))
    }

    pub(crate) fn terminate(self) -> Output {
        self.signal(Signal::TERM);
        self.end()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A field of /proc/PID/status, of each thread.
pub(crate) fn of_threads(pid: u32, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    tasks
        .map(|task| {
            let status = fs::read_to_string(task.expect("a thread").path().join("status"));
            let status = status.expect("its status");
            let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
            line.expect("the field").trim().to_owned()
        })
        .collect()
}

/// A client of the control socket `c`.
pub(crate) struct Control {
    pub(crate) reader: BufReader<UnixStream>,
}

impl Control {
    pub(crate) fn connect(place: &Place) -> Control {
        let socket = UnixStream::connect(place.path("c")).expect("connects");
        socket.set_read_timeout(Some(PATIENCE)).expect("time limit");
        Control { reader: BufReader::new(socket) }
    }

    pub(crate) fn line(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    pub(crate) fn ask(&mut self, command: &Value) -> Value {
        let mut line = command.to_string();
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes()).expect("sent");
        self.line()
    }
}
