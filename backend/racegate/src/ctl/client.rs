//! The client's side of the control socket.
//!
//! In: requests. Out: the lines that come back. Must not know: what they mean.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pipeline::control::Request;

/// A backend answers at once, or reads its disk first (`layout`, `load`); one that says nothing
/// for this long hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a backend.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> Result<Client> {
        let stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow::anyhow!(
                "{}: no such socket; start the backend with --control-socket, or name its socket",
                socket.display()
            ),
            io::ErrorKind::ConnectionRefused => anyhow::anyhow!(
                "{}: nobody listens; the backend has ended, start it again",
                socket.display()
            ),
            _ => {
                anyhow::Error::new(error).context(format!("cannot connect to {}", socket.display()))
            }
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Client { socket: socket.to_owned(), stream: BufReader::new(stream) })
    }

    /// Sends a request and returns the line that answers it.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<String> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        let stream = self.stream.get_mut();
        stream
            .write_all(line.as_bytes())
            .with_context(|| format!("{}: the backend went away", self.socket.display()))?;
        line.clear();
        match self.stream.read_line(&mut line) {
            Ok(0) => bail!("{}: the backend went away without an answer", self.socket.display()),
            Ok(_) => Ok(line),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => bail!(
                "{}: no answer within {} s; is it a racegate control socket?",
                self.socket.display(),
                PATIENCE.as_secs()
            ),
            Err(error) => {
                Err(error).with_context(|| format!("{}: no answer", self.socket.display()))
            }
        }
    }

    /// Hands every further line to `take`, until the backend ends or nobody wants more.
    pub(crate) fn follow(&mut self, mut take: impl FnMut(&str) -> io::Result<()>) -> Result<()> {
        self.stream.get_mut().set_read_timeout(None)?;
        let mut line = String::new();
        loop {
            line.clear();
            let length = self
                .stream
                .read_line(&mut line)
                .with_context(|| format!("{}: the stream broke", self.socket.display()))?;
            if length == 0 {
                return Ok(());
            }
            match take(line.trim_end()) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                taken => taken.context("cannot write to standard output")?,
            }
        }
    }
}
