//! The client of a backend's control socket.
//!
//! In: [`Request`]s, one line of JSON each. Out: [`Response`]s; or a stream of events.
//! Must not know: who started the backend.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pipeline::control::{Request, Response};

use crate::notice::Notice;

/// A backend answers at once; this is for a machine that is busy.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The control socket does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("Could not connect to the control socket {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or the answer did not come in time.
    #[error("No answer on the control socket {}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The answer is not one.
    #[error("The control socket {} answered {line:?}", path.display())]
    NotAnAnswer {
        /// The socket.
        path: PathBuf,
        /// The line.
        line: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The backend refused.
    #[error("The backend refused: {message}")]
    Refused {
        /// Why.
        message: String,
    },
}

/// One connection to the control socket of a backend.
#[derive(Debug)]
pub struct ControlClient {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl ControlClient {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<ControlClient, ControlError> {
        let failed = |source| ControlError::Connect { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT)).map_err(failed)?;
        stream.set_write_timeout(Some(ANSWER_LIMIT)).map_err(failed)?;
        Ok(ControlClient { path: path.to_owned(), stream: BufReader::new(stream) })
    }

    /// Asks and waits for the answer; a refusal is an error.
    pub fn call(&mut self, request: &Request) -> Result<Response, ControlError> {
        let path = || self.path.clone();
        let failed = |source| ControlError::Io { path: path(), source };
        let mut line = serde_json::to_string(request).map_err(|error| failed(error.into()))?;
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes()).map_err(failed)?;
        line.clear();
        if self.stream.read_line(&mut line).map_err(failed)? == 0 {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        match serde_json::from_str(&line) {
            Ok(Response::Error { message }) => Err(ControlError::Refused { message }),
            Ok(response) => Ok(response),
            Err(source) => Err(ControlError::NotAnAnswer { path: path(), line, source }),
        }
    }

    /// Makes this connection a stream of events, each sent to `notices`.
    pub fn subscribe(mut self, notices: &Sender<Notice>) -> Result<Subscription, ControlError> {
        self.call(&Request::Events)?;
        let failed = |source| ControlError::Io { path: self.path.clone(), source };
        // Nothing may happen for as long as it likes.
        self.stream.get_ref().set_read_timeout(None).map_err(failed)?;
        let stream = self.stream.get_ref().try_clone().map_err(failed)?;
        let notices = notices.clone();
        let reader = std::thread::spawn(move || forward(self.stream, &notices));
        Ok(Subscription { stream, reader: Some(reader) })
    }
}

/// Sends every event of `stream` to `notices` until the stream ends or nobody listens.
fn forward(stream: BufReader<UnixStream>, notices: &Sender<Notice>) {
    for line in stream.lines() {
        let Ok(line) = line else { break };
        let at = Instant::now();
        let notice = match serde_json::from_str(&line) {
            Ok(event) => Notice::Event { at, event: Box::new(event) },
            Err(error) => {
                tracing::error!(%line, %error, "not an event; the stream is given up");
                break;
            }
        };
        if notices.send(notice).is_err() {
            return;
        }
    }
    let _ = notices.send(Notice::EventsEnded);
}

/// A stream of events; ends when dropped.
#[derive(Debug)]
pub struct Subscription {
    stream: UnixStream,
    reader: Option<JoinHandle<()>>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
