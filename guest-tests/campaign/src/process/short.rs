//! Commands that are run to their end, with what they wrote.
//!
//! In: a command and a time limit. Out: an [`Output`].
//! Must not know: what is run.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::{ProcessError, Running, last_lines, name, poll_until};
use crate::interrupt;

/// Output of one command that is kept, per stream.
const KEEP_BYTES: usize = 64 << 20;

/// What a short command wrote, and how it ended.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs a short command to its end, which must be a success.
pub fn run(command: Command, limit: Duration) -> Result<Output, ProcessError> {
    run_lines(command, limit, |_| {})
}

/// As [`run`]; hands every line of standard output to `on_line` as it arrives.
pub fn run_lines(
    command: Command,
    limit: Duration,
    on_line: impl FnMut(&str),
) -> Result<Output, ProcessError> {
    let program = name(&command);
    let output = capture(command, limit, on_line)?;
    if output.status.success() {
        return Ok(output);
    }
    let message = last_lines(&output.stderr, 3);
    Err(ProcessError::Failed { program, status: output.status, message })
}

/// Runs a short command to its end, whatever it is.
pub fn capture(
    mut command: Command,
    limit: Duration,
    mut on_line: impl FnMut(&str),
) -> Result<Output, ProcessError> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running::start(command)?;
    let program = || running.name.clone();
    let watch = |source| ProcessError::Watch { program: program(), source };
    let deadline = Instant::now() + limit;

    let mut out = Pipe::new(running.child.stdout.take().map(OwnedFd::from)).map_err(watch)?;
    let mut err = Pipe::new(running.child.stderr.take().map(OwnedFd::from)).map_err(watch)?;
    let mut line_start = 0;
    loop {
        // The end is looked at before the pipes are drained, so that nothing written before it is
        // missed; a grandchild that keeps a pipe open is not waited for.
        let status = running.status();
        out.drain().map_err(watch)?;
        err.drain().map_err(watch)?;
        while let Some(length) = out.bytes[line_start..].iter().position(|&byte| byte == b'\n') {
            on_line(&String::from_utf8_lossy(&out.bytes[line_start..line_start + length]));
            line_start += length + 1;
        }
        if let Some(status) = status {
            return Ok(Output { status, stdout: out.bytes, stderr: err.bytes });
        }
        let mut fds = vec![PollFd::new(&running.pidfd, PollFlags::IN)];
        fds.extend(interrupt::fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        for pipe in [&out, &err] {
            fds.extend(pipe.fd.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        }
        if !poll_until(&mut fds, Some(deadline)).map_err(watch)? {
            return Err(ProcessError::TimedOut { program: program(), after: limit });
        }
        if interrupt::requested() {
            return Err(ProcessError::Interrupted { program: program() });
        }
    }
}

/// The reading end of a child's output.
struct Pipe {
    fd: Option<OwnedFd>,
    bytes: Vec<u8>,
}

impl Pipe {
    fn new(fd: Option<OwnedFd>) -> io::Result<Pipe> {
        if let Some(fd) = &fd {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        Ok(Pipe { fd, bytes: Vec::new() })
    }

    /// Reads what is there; forgets the descriptor at its end.
    fn drain(&mut self) -> io::Result<()> {
        let Some(fd) = &self.fd else { return Ok(()) };
        let mut chunk = [0; 16 << 10];
        loop {
            match rustix::io::read(fd, &mut chunk) {
                Ok(0) => {
                    self.fd = None;
                    return Ok(());
                }
                Ok(length) => {
                    let room = KEEP_BYTES.saturating_sub(self.bytes.len());
                    self.bytes.extend_from_slice(&chunk[..length.min(room)]);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
