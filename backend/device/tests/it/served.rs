//! A device that serves on a socket in a directory of its own, until it is dropped.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use device::blk::{Device, DeviceOptions, ServeError, Transport};
use device::engine::Engine;
use device::storage::Storage;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use tempfile::TempDir;

pub(crate) struct Served {
    pub(crate) device: Arc<Device>,
    pub(crate) socket: PathBuf,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
    _dir: TempDir,
}

impl Served {
    pub(crate) fn start(
        options: DeviceOptions,
        storage: Arc<dyn Storage>,
        engine: Option<Arc<Engine>>,
    ) -> Served {
        let dir = tempfile::tempdir().expect("a directory for the socket");
        let socket = dir.path().join("blk.sock");
        let listener = UnixListener::bind(&socket).expect("a socket to listen on");
        let device = Arc::new(Device::new(options, storage, engine).expect("a device"));
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"));
        let thread = std::thread::spawn({
            let (device, stop) = (device.clone(), stop.clone());
            move || device.serve(Transport::Listener(listener), stop.as_fd())
        });
        Served { device, socket, stop, thread: Some(thread), _dir: dir }
    }

    /// Stops serving; the result of `Device::serve`.
    pub(crate) fn stop(mut self) -> Result<(), ServeError> {
        self.join().expect("serving had not ended")
    }

    fn join(&mut self) -> Option<Result<(), ServeError>> {
        let thread = self.thread.take()?;
        rustix::io::write(&*self.stop, &1_u64.to_ne_bytes()).expect("stop signal");
        Some(thread.join().expect("the serving thread does not panic"))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(served) = self.join()
            && !std::thread::panicking()
        {
            served.expect("serving ends well");
        }
    }
}

/// A file of `bytes` zero bytes that lives as long as the directory.
pub(crate) fn image(dir: &TempDir, bytes: u64) -> PathBuf {
    let path = dir.path().join("disk.img");
    let file = std::fs::File::create(&path).expect("an image");
    file.set_len(bytes).expect("its size");
    path
}
