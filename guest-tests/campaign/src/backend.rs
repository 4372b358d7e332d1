//! The backend as a child of a trial, and the client of its control socket.
//!
//! In: a [`BackendConfig`]. Out: a running [`Backend`] with its sockets in a folder of its own,
//! answers to control requests, and its events as [`Notice`]s.
//! Must not know: virtual machines, what the rules mean.
//!
//! A disk is one process. Persistent memory is a file that a page server exports through FUSE;
//! the virtual machine maps it, or, for vhost-user-pmem, a second process hands it to the
//! machine: one process must not map the file that it serves.

mod child;
mod control;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::mpsc::Sender;
use std::time::Duration;

use tempfile::TempDir;

use child::Child;
pub use child::PROGRAM_VARIABLE;
pub use control::{ControlClient, ControlError, Subscription};

use crate::device::Device;
use crate::notice::Notice;
use crate::process::ProcessError;

/// End of the addresses that SeaBIOS gives to devices on QEMU's q35 machine, less room for small
/// ones (`BUILD_PCIMEM_END` and `pci_bios_map_devices` in src/fw/pciinit.c).
const PCI_MEMORY_END: u64 = 0xfe00_0000;

/// How long a backend may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a backend may take to end after it was asked to.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The backend could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Its own program is not to be found.
    #[error("Could not find the backend's program; name it with {PROGRAM_VARIABLE}")]
    NoProgram {
        /// Why.
        source: io::Error,
    },
    /// No folder for its sockets.
    #[error("Could not make a folder for the backend's sockets")]
    Folder {
        /// Why.
        source: io::Error,
    },
    /// It ended before it listened.
    #[error("The backend ended ({status}): {stderr}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// The last lines of its standard error.
        stderr: String,
    },
    /// A page server that does not say where its file is.
    #[error("The page server said {said:?}, not where its file is")]
    NoExport {
        /// Its first line.
        said: String,
    },
    /// It does not listen in time.
    #[error("The backend is not ready after {START_LIMIT:?}: {stderr}")]
    NotReady {
        /// The last lines of its standard error.
        stderr: String,
    },
    /// The operator asked racegate to end.
    #[error("Interrupted while the backend was starting")]
    Interrupted,
    /// Its control socket does not answer.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Running it failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// Where the disk's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In the image, which the guest changes.
    File,
    /// In memory, read from the image at start.
    Memory,
    /// In the image until they are written, then in memory; the image is never changed.
    Overlay,
}

impl Storage {
    /// Its name on the backend's command line.
    pub fn name(self) -> &'static str {
        match self {
            Storage::File => "file",
            Storage::Memory => "memory",
            Storage::Overlay => "overlay",
        }
    }
}

/// One disk, or one persistent memory.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// What the guest sees.
    pub device: Device,
    /// The image.
    pub image: PathBuf,
    /// Where its bytes are.
    pub storage: Storage,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Virtqueues, 1 to 16.
    pub queues: u16,
    /// Entries of each virtqueue, a power of two.
    pub queue_size: u16,
    /// Seed of every random draw of the rules.
    pub seed: u64,
    /// Rules in force from the start.
    pub rules: Option<PathBuf>,
    /// Whether a link disk is served beside the disk.
    pub link: bool,
    /// Where every event is written.
    pub event_log: Option<PathBuf>,
    /// Where the first store to each page is written. The machine then maps the image itself, which
    /// is on tmpfs, in the place of a page server's file.
    pub stores_log: Option<PathBuf>,
    /// Arguments added at the end.
    pub extra: Vec<OsString>,
}

impl BackendConfig {
    /// An overlay over `image` with one queue of 256 entries, a link disk, no rules and no log.
    pub fn new(image: PathBuf) -> BackendConfig {
        BackendConfig {
            device: Device::Blk,
            image,
            storage: Storage::Overlay,
            read_only: false,
            queues: 1,
            queue_size: 256,
            seed: 0,
            rules: None,
            link: true,
            event_log: None,
            stores_log: None,
            extra: Vec::new(),
        }
    }

    /// Whether the machine maps the file of a page server.
    fn has_page_server(&self) -> bool {
        self.device.is_pmem() && self.stores_log.is_none()
    }

    fn arguments(&self, places: &Places) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: OsString| words.extend([name.into(), value]);
        if self.has_page_server() {
            add("--mount-point", places.mount.clone().into());
            add("--pmem-file", self.image.clone().into());
        } else {
            add("--socket-path", places.disk.clone().into());
            add("--blk-file", self.image.clone().into());
            add("--num-queues", self.queues.to_string().into());
            add("--queue-size", self.queue_size.to_string().into());
            add("--serial", agent::DISK_SERIAL.into());
        }
        add("--control-socket", places.control.clone().into());
        if self.link {
            add("--link-socket", places.link.clone().into());
        }
        add("--storage", self.storage.name().into());
        add("--seed", self.seed.to_string().into());
        add("--ready-fd", "1".into());
        if let Some(rules) = &self.rules {
            add("--rules", rules.clone().into());
        }
        if let Some(log) = &self.event_log {
            add("--event-log", log.clone().into());
        }
        if self.read_only {
            words.push("--read-only".into());
        }
        words.extend(self.extra.iter().cloned());
        words
    }
}

/// Where a backend listens, and where it mounts.
#[derive(Clone, Debug)]
struct Places {
    disk: PathBuf,
    link: PathBuf,
    control: PathBuf,
    stores: PathBuf,
    mount: PathBuf,
}

/// What a virtual machine is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// A vhost-user socket: of a disk, or of a device of type pmem.
    Socket(PathBuf),
    /// A file to be mapped.
    File(PathBuf),
}

/// A running backend; dropping it ends it and removes its sockets and its mount.
#[derive(Debug)]
pub struct Backend {
    // In the order in which they end: the front has the server's file open.
    front: Option<Child>,
    server: Child,
    device: Device,
    attachment: Attachment,
    environment: Vec<(String, String)>,
    places: Places,
    link: bool,
    // Removed after the children are gone: fields are dropped in order.
    _folder: TempDir,
}

impl Backend {
    /// Starts a backend and waits until it listens. Its end is sent to `notices`.
    pub fn start(
        config: &BackendConfig,
        notices: &Sender<Notice>,
    ) -> Result<Backend, BackendError> {
        let failed = |source| BackendError::Folder { source };
        let folder = tempfile::Builder::new().prefix("racegate-").tempdir().map_err(failed)?;
        let at = |name: &str| folder.path().join(name);
        let places = Places {
            disk: at("disk.sock"),
            link: at("link.sock"),
            control: at("control.sock"),
            stores: at("stores.sock"),
            mount: at("mount"),
        };
        let device = config.device;
        let mode = if config.has_page_server() { "pmem" } else { "blk" };
        if config.has_page_server() {
            std::fs::create_dir(&places.mount).map_err(failed)?;
        }
        let server = Child::start(mode, config.arguments(&places), notices)?;
        let mut backend = Backend {
            front: None,
            server,
            device,
            attachment: Attachment::Socket(places.disk.clone()),
            environment: Vec::new(),
            places,
            link: config.link,
            _folder: folder,
        };
        let said = backend.server.wait_ready()?;
        if let Some(log) = &config.stores_log {
            backend.watch_stores(&config.image, log, notices)?;
        } else if device.is_pmem() {
            let Some(file) = said.strip_prefix("ready ").map(PathBuf::from) else {
                return Err(BackendError::NoExport { said });
            };
            if device == Device::VhostUserPmem {
                let bytes = std::fs::metadata(&config.image).map_err(failed)?.len();
                backend.start_front(&file, bytes, notices)?;
            } else {
                backend.attachment = Attachment::File(file);
            }
        }
        Ok(backend)
    }

    fn start_front(
        &mut self,
        file: &Path,
        bytes: u64,
        notices: &Sender<Notice>,
    ) -> Result<(), BackendError> {
        let arguments: Vec<OsString> = vec![
            "--socket-path".into(),
            self.places.disk.clone().into(),
            "--pmem-file".into(),
            file.into(),
            "--region-start".into(),
            format!("{:#x}", region_start(bytes)).into(),
            "--ready-fd".into(),
            "1".into(),
        ];
        let front = self.front.insert(Child::start("pmem-vhost", arguments, notices)?);
        front.wait_ready()?;
        Ok(())
    }

    /// Starts the reader of stores; the process that serves the disk serves the link alone.
    fn watch_stores(
        &mut self,
        image: &Path,
        log: &Path,
        notices: &Sender<Notice>,
    ) -> Result<(), BackendError> {
        let mut arguments: Vec<OsString> = vec!["watch".into(), "--quiet".into()];
        let mut add = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        add("--pmem-file", image.into());
        add("--event-log", log.into());
        add("--socket", self.places.stores.clone().into());
        add("--ready-fd", "1".into());
        let reader = self.front.insert(Child::start("stores", arguments, notices)?);
        let said = reader.wait_ready()?;
        let variables = said.strip_prefix("ready ").map(serde_json::from_str);
        let Some(Ok(variables)) = variables else {
            return Err(BackendError::NoExport { said });
        };
        let variables: std::collections::BTreeMap<String, String> = variables;
        self.environment = variables.into_iter().collect();
        self.attachment = Attachment::File(image.to_owned());
        Ok(())
    }

    /// What is to be added to the environment of the virtual machine.
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    /// What the virtual machine is to be given.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// The vhost-user socket of the link disk, if there is one.
    pub fn link_socket(&self) -> Option<&Path> {
        self.link.then_some(self.places.link.as_path())
    }

    /// Where the virtual machine may speak its machine protocol: beside the other sockets.
    pub fn qmp_socket(&self) -> PathBuf {
        self.places.control.with_file_name("qmp.sock")
    }

    /// The path of the control socket.
    pub fn control_socket(&self) -> &Path {
        &self.places.control
    }

    /// A connection to the control socket.
    pub fn control(&self) -> Result<ControlClient, ControlError> {
        ControlClient::connect(&self.places.control)
    }

    /// Sends every event from now on to `notices`, until the subscription is dropped.
    pub fn subscribe(&self, notices: &Sender<Notice>) -> Result<Subscription, ControlError> {
        self.control()?.subscribe(notices)
    }

    /// The backend's process id, which is also the id of its process group.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// The last lines of its standard error.
    pub fn stderr(&self) -> String {
        self.server.stderr()
    }

    /// Asks it to end (SIGTERM) and waits; it is killed if it does not.
    pub fn stop(self) -> Result<ExitStatus, BackendError> {
        self.server.stop()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // A page server that is killed leaves its mount to its supervisor; one that is asked to
        // end has unmounted when it is gone.
        if self.device.is_pmem() {
            if let Some(front) = self.front.take()
                && !self.environment.is_empty()
            {
                // The log of stores is to be complete.
                front.end();
            }
            self.server.end();
        }
    }
}

/// Where the guest finds the shared memory of a vhost-user device of type pmem, the only device
/// with a large region: SeaBIOS puts the region, a power of two, as high as its alignment lets it.
/// Kernels before 6.9 have to be told (`struct virtio_pmem_config`, virtio 1.3, section 5.19.4).
fn region_start(bytes: u64) -> u64 {
    let bytes = bytes.next_power_of_two();
    PCI_MEMORY_END.saturating_sub(bytes) & !(bytes - 1)
}

#[cfg(test)]
mod tests {
    use super::region_start;

    #[test]
    fn regions_as_seen_in_guests() {
        assert_eq!(region_start(256 << 20), 0xe000_0000);
        assert_eq!(region_start(64 << 20), 0xf800_0000);
    }
}
