//! The metrics endpoint: HTTP with one answer, in Prometheus' text format.
//!
//! In: clients on a Unix or a local TCP socket. Out: the counters of now.
//! Must not know: what is counted.
//!
//! One thread serves one client after the other, each for a second at most: a client that hangs
//! makes other clients of the endpoint wait, and nobody else.

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::sandbox::{self, Role};
use crate::stop::Stop;

/// Longest request: nothing in it matters but its first line.
const REQUEST_MAX: usize = 8 << 10;
/// How long a client may take to ask, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where clients come from.
#[derive(Debug)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(UnixListener),
    /// A TCP port.
    Tcp(TcpListener),
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Endpoint::Unix(listener) => listener.as_fd(),
            Endpoint::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// A running endpoint; dropping it ends the thread.
#[derive(Debug)]
pub struct Endpoints {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Endpoints {
    /// Serves what `render` says at the time of asking.
    ///
    /// # Errors
    /// When the system gives no eventfd or thread.
    pub fn start(
        endpoint: Endpoint,
        render: impl Fn() -> String + Send + 'static,
    ) -> io::Result<Endpoints> {
        let stop = Arc::new(Stop::new()?);
        let of_thread = Arc::clone(&stop);
        let run = move || {
            sandbox::narrow(Role::Control);
            run(&endpoint, &of_thread, &render);
        };
        let thread = std::thread::Builder::new().name("rg-metrics".into()).spawn(run)?;
        Ok(Endpoints { stop, thread: Some(thread) })
    }
}

impl Drop for Endpoints {
    fn drop(&mut self) {
        self.stop.set();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the metrics thread panicked");
        }
    }
}

fn run(endpoint: &Endpoint, stop: &Stop, render: &dyn Fn() -> String) {
    loop {
        let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(endpoint, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "cannot wait for clients: the metrics endpoint is dead");
                return;
            }
        }
        if !fds[0].revents().is_empty() {
            return;
        }
        if fds[1].revents().is_empty() {
            continue;
        }
        if let Err(error) = serve(endpoint, render) {
            tracing::debug!(%error, "a client of the metrics endpoint got no answer");
        }
    }
}

fn serve(endpoint: &Endpoint, render: &dyn Fn() -> String) -> io::Result<()> {
    match endpoint {
        Endpoint::Unix(listener) => {
            let (mut client, _) = listener.accept()?;
            client.set_read_timeout(Some(PATIENCE))?;
            client.set_write_timeout(Some(PATIENCE))?;
            converse(&mut client, render)
        }
        Endpoint::Tcp(listener) => {
            let (mut client, _) = listener.accept()?;
            client.set_read_timeout(Some(PATIENCE))?;
            client.set_write_timeout(Some(PATIENCE))?;
            converse(&mut client, render)
        }
    }
}

/// One request and its answer; the connection ends with it.
fn converse(client: &mut (impl Read + Write), render: &dyn Fn() -> String) -> io::Result<()> {
    let request = receive(client)?;
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, kind, body) = match (method, path) {
        (b"GET" | b"HEAD", b"/metrics" | b"/") => {
            ("200 OK", "text/plain; version=0.0.4; charset=utf-8", render())
        }
        (b"GET" | b"HEAD", _) => ("404 Not Found", "text/plain", "try /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "text/plain", "GET /metrics\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes())?;
    if method != b"HEAD" {
        client.write_all(body.as_bytes())?;
    }
    Ok(())
}

/// Reads up to the empty line that ends a request's head.
fn receive(client: &mut impl Read) -> io::Result<Vec<u8>> {
    let until = Instant::now() + PATIENCE;
    let mut request = Vec::new();
    let mut part = [0; 1024];
    loop {
        let read = client.read(&mut part)?;
        request.extend_from_slice(&part[..read]);
        if request.windows(4).any(|four| four == b"\r\n\r\n") {
            return Ok(request);
        }
        if read == 0 || request.len() > REQUEST_MAX || Instant::now() > until {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::{Endpoint, Endpoints};

    fn ask(socket: &std::path::Path, request: &str) -> String {
        let mut client = UnixStream::connect(socket).expect("connects");
        client.write_all(request.as_bytes()).expect("asks");
        let mut answer = String::new();
        let _ = client.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn answers_and_goes_on_after_nonsense() {
        let folder = tempfile::tempdir().expect("folder");
        let socket = folder.path().join("m");
        let listener = UnixListener::bind(&socket).expect("listens");
        let served =
            Endpoints::start(Endpoint::Unix(listener), || "a 1\n".to_owned()).expect("a thread");
        let answer = ask(&socket, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\na 1\n") && answer.contains("Content-Length: 4\r\n"));
        assert!(ask(&socket, "GET /else HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(ask(&socket, "POST /metrics HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 405"));
        assert!(ask(&socket, "HEAD / HTTP/1.0\r\n\r\n").ends_with("\r\n\r\n"));
        // Hangs up within its request; sends without end.
        drop(UnixStream::connect(&socket).expect("connects"));
        assert_eq!(ask(&socket, &"x".repeat(20_000)), "");
        assert!(ask(&socket, "GET / HTTP/1.0\r\n\r\n").ends_with("a 1\n"));
        drop(served);
        assert!(UnixStream::connect(&socket).is_err(), "the listener is gone");
    }
}
