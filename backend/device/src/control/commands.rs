//! What each command of the control socket does.
//!
//! In: a line. Out: an [`Answer`].
//! Must not know: connections.

use std::fmt::Write;
use std::sync::Arc;

use agent::wire::ToGuest;
use pipeline::Stats;
use pipeline::control::{Request, Response};
use pipeline::event::RulesText;
use pipeline::traffic::Traffic;

use crate::engine::Engine;
use crate::link::Mailbox;
use crate::sink::Subscription;
use crate::stop::Stop;
use crate::storage::{SECTOR_BYTES, StorageError};

/// What the server controls.
pub struct Target {
    /// Rules, events, layout.
    pub engine: Arc<Engine>,
    /// What the guest has.
    pub front: Arc<dyn Front>,
    /// Messages for the agent; `None` without a link disk.
    pub mailbox: Option<Arc<Mailbox>>,
    /// Ends the program.
    pub stop: Arc<Stop>,
}

/// The front of an engine: what lies between it and the guest, and what commands do to it.
pub trait Front: Send + Sync {
    /// Another size, in bytes, a multiple of 512; the guest is told.
    ///
    /// # Errors
    /// The storage cannot.
    fn resize(&self, bytes: u64) -> Result<(), StorageError>;

    /// Whether completed writes may be in a cache, if the guest agrees.
    ///
    /// # Errors
    /// There is no such cache, or what it holds cannot be flushed.
    fn set_write_cache(&self, on: bool) -> Result<(), StorageError> {
        let _ = on;
        Err(StorageError::Unsupported { what: "change the mode of its write cache" })
    }

    /// Whether writes are refused, for the front-ends to come.
    ///
    /// # Errors
    /// A front-end is connected, or the image was opened without the right to write.
    fn set_read_only(&self, on: bool) -> Result<(), StorageError> {
        let _ = on;
        Err(StorageError::Unsupported { what: "be made read-only while it is served" })
    }

    /// Brings to the engine what the guest has stored and only the host's page cache has seen,
    /// as far as the layout may follow from it.
    fn settle(&self) {}

    /// Makes every page that a rule may want slow again.
    ///
    /// # Errors
    /// There are no pages, or they are busy.
    fn rearm(&self) -> Result<(), StorageError> {
        Err(StorageError::Unsupported { what: "be armed anew: it has no pages" })
    }

    /// What went through its queues; `None` if it has none.
    fn traffic(&self) -> Option<Traffic> {
        None
    }

    /// Other rules are in force.
    fn rules_changed(&self) {}

    /// Puts the storage back to its state at the start, and the guest sees that.
    ///
    /// # Errors
    /// The storage cannot.
    fn reset(&self, engine: &Engine) -> Result<(), StorageError> {
        engine.reset()
    }
}

/// What a line leads to.
pub(super) enum Answer {
    /// One line back.
    Response(Box<Response>),
    /// The connection becomes a stream of events.
    Subscribed(Arc<Subscription>),
    /// The program ends, after the answer.
    Shutdown,
}

impl Target {
    pub(super) fn obey(&self, line: &[u8]) -> Answer {
        let request: Request = match serde_json::from_slice(line) {
            Ok(request) => request,
            Err(error) => {
                return failed(&format!(
                    "not a command: {error}; send one JSON object a line, like \
                     {{\"command\":\"list\"}}"
                ));
            }
        };
        let result = match request {
            Request::List => Ok(self.rules()),
            Request::Load(text) => self.load(&text),
            Request::Arm { rule } => done(self.engine.arm(&rule, true)),
            Request::Disarm { rule } => done(self.engine.arm(&rule, false)),
            Request::Release { rule } => self
                .engine
                .release(rule.as_deref())
                .map(|requests| Response::Released { requests })
                .map_err(|e| chain(&e)),
            Request::Stats => Ok(Response::Stats(self.stats())),
            Request::Layout { sector: None, sectors: None } => {
                self.front.settle();
                Ok(Response::LayoutSummary { sectors: self.engine.layout_summary() })
            }
            Request::Layout { sector, sectors } => {
                self.front.settle();
                self.engine
                    .layout(sector.unwrap_or(0), sectors.unwrap_or(1))
                    .map(|ranges| Response::Layout { ranges })
                    .map_err(|e| chain(&e))
            }
            Request::Events => match self.engine.subscribe() {
                Ok(subscription) => return Answer::Subscribed(subscription),
                Err(error) => Err(format!("cannot make an event stream: {error}")),
            },
            Request::Send { message } => self.send(message),
            Request::Reset => done(self.front.reset(&self.engine)),
            Request::Rearm => done(self.front.rearm()),
            Request::Resize { bytes } => self.resize(bytes),
            Request::WriteCache { on } => done(self.front.set_write_cache(on)),
            Request::ReadOnly { on } => done(self.front.set_read_only(on)),
            Request::Shutdown => return Answer::Shutdown,
        };
        match result {
            Ok(response) => Answer::Response(Box::new(response)),
            Err(message) => failed(&message),
        }
    }

    fn stats(&self) -> Stats {
        Stats { traffic: self.front.traffic(), ..self.engine.stats() }
    }

    fn rules(&self) -> Response {
        let (file, rules) = self.engine.list();
        Response::Rules { file, rules }
    }

    fn load(&self, text: &RulesText) -> Result<Response, String> {
        // The layout that rules by class need is read from storage.
        self.front.settle();
        self.engine.load(text).map_err(|error| chain(&error))?;
        self.front.rules_changed();
        Ok(self.rules())
    }

    fn send(&self, message: serde_json::Value) -> Result<Response, String> {
        let Some(mailbox) = &self.mailbox else {
            return Err("there is no link disk: start the backend with --link-socket".to_owned());
        };
        let message: ToGuest = serde_json::from_value(message)
            .map_err(|error| format!("not a message that the agent knows: {error}"))?;
        done(mailbox.send(&message))
    }

    fn resize(&self, bytes: u64) -> Result<Response, String> {
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(format!(
                "cannot resize to {bytes} bytes: a disk has a multiple of {SECTOR_BYTES} bytes, \
                 more than 0"
            ));
        }
        let resized = done(self.front.resize(bytes));
        self.engine.resized();
        resized
    }

    /// Everything that happened so far is on its way to the subscribers.
    pub(super) fn settle(&self) {
        self.engine.settle_events();
    }

    pub(super) fn unsubscribe(&self, subscription: &Arc<Subscription>) {
        self.engine.unsubscribe(subscription);
    }

    pub(super) fn shut_down(&self) {
        self.stop.set();
    }
}

fn done<E: std::error::Error>(result: Result<(), E>) -> Result<Response, String> {
    result.map(|()| Response::Done).map_err(|error| chain(&error))
}

fn failed(message: &str) -> Answer {
    Answer::Response(Box::new(Response::Error { message: message.to_owned() }))
}

/// The error and what it comes from, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a String does not fail.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}
