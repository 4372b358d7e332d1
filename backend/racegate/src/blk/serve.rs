//! From a command line to a served disk, and back to nothing.
//!
//! In: [`Args`]. Out: when everything has ended, what went wrong, if anything.
//! Must not know: how front-ends are served.
//!
//! Everything that can fail because of the user fails before the first front-end is let in, and
//! what was made until then (sockets) is taken away again.

use std::fs::{self, File};
use std::io::BufWriter;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use device::blk::{Device, DeviceOptions, Transport};
use device::control::{Front, Server, Target};
use device::engine::{Engine, EngineOptions};
use device::link::{Link, Mailbox};
use device::sink::Log;
use device::socket::{self, SocketFile};
use device::storage::file::{FileOptions, FileStorage};
use device::storage::memory::MemoryStorage;
use device::storage::overlay::OverlayStorage;
use device::storage::{SECTOR_BYTES, Storage};
use pipeline::RuleSet;

use super::args::{Args, StorageKind};
use crate::daemon::{Ready, stop_on_signal};

/// Bytes copied at once into a memory disk.
const COPY_BYTES: u64 = 1 << 20;

/// Bytes of the event log that are written at once while the guest is busy.
const LOG_BUFFER_BYTES: usize = 1 << 16;

/// The sockets of a daemon, and the files to be removed at the end.
struct Sockets {
    main: Transport,
    link: Option<Transport>,
    control: Option<std::os::unix::net::UnixListener>,
    _files: Vec<SocketFile>,
}

/// Serves the disk until a signal, a command or the end of the only connection.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    // Inherited descriptors first: see `socket::inherited`.
    let inherited = args.fd.map(socket::inherited).transpose().context("--fd")?;
    let ready = Ready::inherited(args.ready_fd)?;

    let options = DeviceOptions {
        num_queues: args.num_queues,
        queue_size: args.queue_size,
        serial: args.serial.clone(),
        spare_fuse: false,
    };
    let storage = open_storage(args)?;
    let rules = args.rules.as_deref().map(read_rules).transpose()?;
    let stop = stop_on_signal()?;
    let sockets = open_sockets(args, inherited)?;
    let log = args.event_log.as_deref().map(create_log).transpose()?;

    let engine = Engine::new(EngineOptions {
        queues: args.num_queues,
        seed: args.seed,
        storage: Arc::clone(&storage),
        log,
    })
    .context("cannot set up the daemon")?;
    let main = Arc::new(Device::new(options, storage, Some(Arc::clone(&engine)))?);
    let link = sockets.link.map(|transport| (transport, Mailbox::new()));
    if let Some((_, mailbox)) = &link {
        engine.attach_agent(Arc::clone(mailbox));
    }
    if let Some(rules) = rules {
        engine.load_rules(rules);
    }
    let control = sockets
        .control
        .map(|listener| {
            let target = Target {
                engine: Arc::clone(&engine),
                front: Arc::clone(&main) as Arc<dyn Front>,
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
                spare_fuse: false,
            };
            anyhow::Ok((Device::new(options, storage, None)?, transport))
        })
        .transpose()?;
    ready.tell("ready");

    let served = std::thread::scope(|scope| -> anyhow::Result<()> {
        let of_link = link
            .map(|(device, transport)| {
                let stop = &stop;
                std::thread::Builder::new().name("rg-link".into()).spawn_scoped(scope, move || {
                    let served = device.serve(transport, stop.as_fd());
                    if let Err(error) = &served {
                        tracing::error!(%error, "the link disk is gone");
                    }
                    served
                })
            })
            .transpose()
            .context("cannot start the link disk")?;
        let served = main.serve(sockets.main, stop.as_fd());
        stop.set();
        let linked = of_link.map(std::thread::ScopedJoinHandle::join);
        served.context("the disk cannot be served any longer")?;
        match linked {
            Some(Ok(linked)) => linked.context("the link disk cannot be served any longer"),
            Some(Err(_)) => bail!("the thread of the link disk panicked"),
            None => Ok(()),
        }
    });
    engine.disconnect();
    drop(control);
    // The log is complete before the program ends, whoever holds the engine last.
    engine.settle_events();
    served
}

fn open_storage(args: &Args) -> anyhow::Result<Arc<dyn Storage>> {
    let path = &args.blk_file;
    if args.storage != StorageKind::File && (args.read_only || args.direct) {
        bail!(
            "--read-only and --direct go with --storage file only: the others never write to the \
             image"
        );
    }
    let options = |read_only| FileOptions { read_only, direct: args.direct };
    Ok(match args.storage {
        StorageKind::File => Arc::new(FileStorage::open(path, options(args.read_only))?),
        StorageKind::Overlay => Arc::new(OverlayStorage::open(path)?),
        StorageKind::Memory => {
            let image = FileStorage::open(path, options(true))?;
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

fn open_sockets(args: &Args, inherited: Option<OwnedFd>) -> anyhow::Result<Sockets> {
    let mut files = Vec::new();
    let mut open = |path: &Path, option: &str| {
        let (listener, file) = socket::listen_at(path).with_context(|| option.to_owned())?;
        files.push(file);
        anyhow::Ok(listener)
    };
    let main = match (inherited, &args.socket_path) {
        (Some(fd), _) => socket::inherited_transport(fd).context("--fd")?,
        (None, Some(path)) => Transport::Listener(open(path, "--socket-path")?),
        (None, None) => bail!("missing: --socket-path or --fd"),
    };
    let link = args.link_socket.as_deref().map(|path| open(path, "--link-socket")).transpose()?;
    let control =
        args.control_socket.as_deref().map(|path| open(path, "--control-socket")).transpose()?;
    Ok(Sockets { main, link: link.map(Transport::Listener), control, _files: files })
}

fn create_log(path: &Path) -> anyhow::Result<Log> {
    let file = File::create(path)
        .with_context(|| format!("cannot create the event log {}", path.display()))?;
    Ok(Box::new(BufWriter::with_capacity(LOG_BUFFER_BYTES, file)))
}
