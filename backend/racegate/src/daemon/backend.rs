//! What the daemons with an engine have in common: from an image to an engine with its sockets,
//! and back to nothing.
//!
//! In: [`Common`] and an image. Out: storage, engine, control server and link disk around a main
//! device, until a signal, a command or the device's end.
//! Must not know: what the main device is.
//!
//! Everything that can fail because of the user fails before the first front-end is let in, and
//! what was made until then (sockets) is taken away again.

use std::fs::{self, File};
use std::io::BufWriter;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use device::blk::{Device, DeviceOptions, Polling, Transport};
use device::control::{Front, Server, Target};
use device::engine::{Engine, EngineOptions};
use device::link::{Link, Mailbox};
use device::metrics::{self, Endpoint};
use device::sandbox;
use device::sink::Log;
use device::socket::{self, SocketFile};
use device::stop::Stop;
use device::storage::file::{FileOptions, FileStorage};
use device::storage::memory::MemoryStorage;
use device::storage::overlay::OverlayStorage;
use device::storage::{SECTOR_BYTES, Storage};
use pipeline::{RuleSet, Stats, prometheus, shadow};

use super::{Common, Ready, StorageKind, stop_on_signal};

/// Bytes copied at once into a memory disk.
const COPY_BYTES: u64 = 1 << 20;

/// Bytes of the event log that are written at once while the guest is busy.
const LOG_BUFFER_BYTES: usize = 1 << 16;

/// What a daemon reads before it starts anything.
pub(crate) struct Sources {
    pub(crate) storage: Arc<dyn Storage>,
    /// How a shadow looks at the disk, if one shall; none unless the daemon sets it.
    pub(crate) shadow: Option<shadow::Options>,
    rules: Option<RuleSet>,
}

impl Sources {
    /// Opens the image and reads the rules. Starts no thread.
    pub(crate) fn open(
        common: &Common,
        image: &Path,
        options: FileOptions,
    ) -> anyhow::Result<Sources> {
        Ok(Sources {
            storage: open_storage(common.storage, image, options)?,
            shadow: None,
            rules: common.rules.as_deref().map(read_rules).transpose()?,
        })
    }
}

/// Listening sockets, and the files to be removed at the end.
#[derive(Default)]
pub(crate) struct Sockets(Vec<SocketFile>);

impl Sockets {
    /// Listens at a path that an option names.
    pub(crate) fn listen(&mut self, path: &Path, option: &str) -> anyhow::Result<UnixListener> {
        let (listener, file) = socket::listen_at(path).with_context(|| option.to_owned())?;
        self.0.push(file);
        Ok(listener)
    }

    /// Where they are.
    fn folders(&self) -> Vec<PathBuf> {
        self.0.iter().map(|file| file.folder().to_owned()).collect()
    }
}

/// An engine whose main device is still to come.
pub(crate) struct Backend {
    pub(crate) engine: Arc<Engine>,
    stop: Arc<Stop>,
    control: Option<UnixListener>,
    link: Option<(Transport, Arc<Mailbox>)>,
    metrics: Option<Endpoint>,
    _sockets: Sockets,
}

impl Backend {
    /// An engine for that many queues, and the sockets around it. From now on there are threads,
    /// and signals end the daemon.
    pub(crate) fn start(
        common: &Common,
        sources: Sources,
        queues: u16,
        mut sockets: Sockets,
    ) -> anyhow::Result<Backend> {
        let mut listen = |path: &Option<_>, option| {
            path.as_deref().map(|path| sockets.listen(path, option)).transpose()
        };
        let link = listen(&common.link_socket, "--link-socket")?;
        let control = listen(&common.control_socket, "--control-socket")?;
        let metrics = match (&common.metrics_socket, common.metrics) {
            (Some(_), _) => listen(&common.metrics_socket, "--metrics-socket")?.map(Endpoint::Unix),
            (None, Some(address)) => {
                let listener = TcpListener::bind(address)
                    .with_context(|| format!("--metrics: cannot listen on {address}"))?;
                Some(Endpoint::Tcp(listener))
            }
            (None, None) => None,
        };
        let log = common.event_log.as_deref().map(create_log).transpose()?;
        // Everything is open; nothing serves yet.
        if let Some(mode) = common.sandbox.mode() {
            sandbox::enter(mode, &sockets.folders()).context("--sandbox")?;
        }
        let stop = stop_on_signal()?;
        let Sources { storage, shadow, rules } = sources;
        let engine = Engine::new(EngineOptions { queues, seed: common.seed, storage, log, shadow })
            .context("cannot set up the daemon")?;
        let link = link.map(|listener| (Transport::Listener(listener), Mailbox::new()));
        if let Some((_, mailbox)) = &link {
            engine.attach_agent(Arc::clone(mailbox));
        }
        if let Some(rules) = rules {
            engine.load_rules(rules);
        }
        Ok(Backend { engine, stop, control, link, metrics, _sockets: sockets })
    }

    /// Starts control server and link disk, says `ready`, and serves the main device until it or
    /// the daemon ends: `serve` returns soon after its argument is readable.
    pub(crate) fn serve<E>(
        self,
        front: Arc<dyn Front>,
        ready: Ready,
        ready_line: &str,
        serve: impl FnOnce(BorrowedFd<'_>) -> Result<(), E>,
    ) -> anyhow::Result<()>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let Backend { engine, stop, control, link, metrics, _sockets } = self;
        let (of_metrics, queues) = (Arc::clone(&engine), Arc::clone(&front));
        let metrics = metrics
            .map(|endpoint| {
                let render = move || {
                    let traffic = queues.traffic();
                    prometheus::render(&Stats { traffic, ..of_metrics.stats() })
                };
                metrics::Endpoints::start(endpoint, render)
            })
            .transpose()
            .context("cannot start the metrics endpoint")?;
        let control = control
            .map(|listener| {
                let target = Target {
                    engine: Arc::clone(&engine),
                    front,
                    mailbox: link.as_ref().map(|(_, mailbox)| Arc::clone(mailbox)),
                    stop: Arc::clone(&stop),
                };
                Server::start(listener, target)
            })
            .transpose()
            .context("cannot start the control server")?;
        let link = link
            .map(|(transport, mailbox)| {
                let storage = Arc::new(Link::new(Arc::clone(&engine), mailbox));
                let options = DeviceOptions {
                    num_queues: 1,
                    queue_size: 64,
                    serial: agent::LINK_SERIAL.to_owned(),
                    // Of a page server: its own file is among the guest's memory.
                    spare_fuse: true,
                    polling: Polling::Off,
                };
                anyhow::Ok((Device::new(options, storage, None)?, transport))
            })
            .transpose()?;
        ready.tell(ready_line);

        let served = std::thread::scope(|scope| -> anyhow::Result<()> {
            let of_link = link
                .map(|(device, transport)| {
                    let stop = &stop;
                    std::thread::Builder::new().name("rg-link".into()).spawn_scoped(
                        scope,
                        move || {
                            let served = device.serve(transport, stop.as_fd());
                            if let Err(error) = &served {
                                tracing::error!(%error, "the link disk is gone");
                            }
                            served
                        },
                    )
                })
                .transpose()
                .context("cannot start the link disk")?;
            let served = serve(stop.as_fd());
            stop.set();
            let linked = of_link.map(std::thread::ScopedJoinHandle::join);
            served.context("the device cannot be served any longer")?;
            match linked {
                Some(Ok(linked)) => linked.context("the link disk cannot be served any longer"),
                Some(Err(_)) => bail!("the thread of the link disk panicked"),
                None => Ok(()),
            }
        });
        engine.disconnect();
        drop((control, metrics));
        // The log is complete before the program ends, whoever holds the engine last.
        engine.settle_events();
        served
    }
}

fn open_storage(
    kind: StorageKind,
    path: &Path,
    options: FileOptions,
) -> anyhow::Result<Arc<dyn Storage>> {
    if kind != StorageKind::File && (options.read_only || options.direct) {
        bail!(
            "--read-only and --direct go with --storage file only: the others never write to the \
             image"
        );
    }
    Ok(match kind {
        StorageKind::File => Arc::new(FileStorage::open(path, options)?),
        StorageKind::Overlay => Arc::new(OverlayStorage::open(path)?),
        StorageKind::Memory => {
            let options = FileOptions { read_only: true, ..options };
            let image = FileStorage::open(path, options)?;
            Arc::new(copy_to_memory(&image).with_context(|| path.display().to_string())?)
        }
    })
}

fn copy_to_memory(image: &FileStorage) -> anyhow::Result<MemoryStorage> {
    let bytes = image.capacity_sectors() * SECTOR_BYTES;
    let memory = MemoryStorage::new(bytes)?;
    let mut buf = vec![0; COPY_BYTES.min(bytes) as usize];
    let mut at = 0;
    while at < bytes {
        let part = &mut buf[..COPY_BYTES.min(bytes - at) as usize];
        image.read_at(at, part).with_context(|| format!("cannot read the image at byte {at}"))?;
        // Memory that was never written reads as zeroes and takes no room.
        if part.iter().any(|byte| *byte != 0) {
            memory.write_at(at, part).context("cannot fill the memory disk")?;
        }
        at += part.len() as u64;
    }
    Ok(memory)
}

fn read_rules(path: &Path) -> anyhow::Result<RuleSet> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the rules file {}", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let rules = RuleSet::parse_with(&text, &path.display().to_string(), &mut |name| {
        fs::read_to_string(folder.join(name)).map_err(|error| error.to_string())
    })?;
    Ok(rules)
}

fn create_log(path: &Path) -> anyhow::Result<Log> {
    let file = File::create(path)
        .with_context(|| format!("cannot create the event log {}", path.display()))?;
    Ok(Box::new(BufWriter::with_capacity(LOG_BUFFER_BYTES, file)))
}
