//! Why a guest is not there, or not any more.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::backend::{BackendError, ControlError};
use crate::device::Device;
use crate::initramfs::InitramfsError;
use crate::kernels::KernelError;
use crate::notice::WaitError;
use crate::qemu::{QemuError, QmpError};

/// A guest could not be booted, or a conversation with it failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GuestError {
    /// Its kernel lacks something.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Its initramfs could not be made.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// The initramfs could not be written.
    #[error("Could not write the initramfs to {}", std::env::temp_dir().display())]
    Write {
        /// Why.
        source: io::Error,
    },
    /// No memory for the guest.
    #[error("Could not make memory for the guest")]
    Memory {
        /// Why.
        source: io::Error,
    },
    /// QEMU is not to be talked to.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// Its socket cannot be made.
    #[error("Could not make the socket {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image cannot be looked at.
    #[error("Could not look at {}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The device cannot have that size.
    #[error(
        "{} has {bytes} bytes, which {device} cannot have: enlarge it to {next} (`bytes` of the \
         plan's [filesystem], or truncate -s {next})",
        path.display()
    )]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The device.
        device: Device,
        /// The next size that it can have.
        next: u64,
    },
    /// The backend does not start.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The backend does not answer.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// QEMU does not start.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// What was waited for did not come: time is up, the guest or the backend ended, or the
    /// operator interrupted.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// Its kernel died before the agent was ready, each time.
    #[error("{times} boots failed, the last one")]
    Boots {
        /// How often it was tried.
        times: u32,
        /// The last failure.
        source: Box<GuestError>,
    },
    /// A message has no JSON form.
    #[error("A message to the agent has no JSON form")]
    Message(#[source] serde_json::Error),
    /// The agent could not do what it was told.
    #[error("{what}: the agent says: {reason}")]
    Refused {
        /// What was being done.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The agent panicked.
    #[error("{what}: the agent panicked: {text}")]
    AgentPanicked {
        /// What was being done.
        what: &'static str,
        /// Its message.
        text: String,
    },
    /// The agent said something that this side does not know.
    #[error("{what}: the agent's message is not understood: {message}")]
    Garbled {
        /// What was being done.
        what: &'static str,
        /// The message.
        message: String,
    },
    /// Events did not reach this side.
    #[error("{what}: {events} events of the backend were lost, this machine is too busy")]
    EventsLost {
        /// What was being done.
        what: &'static str,
        /// How many.
        events: u64,
    },
}

impl GuestError {
    /// Whether the guest's kernel ended by itself: it panicked, or the machine stopped.
    pub(super) fn is_dead_kernel(&self) -> bool {
        matches!(self, GuestError::Wait(WaitError::Panicked { .. } | WaitError::VmExited { .. }))
    }

    /// Whether the operator asked for the end: nothing is to be tried again.
    pub fn is_interrupt(&self) -> bool {
        matches!(
            self,
            GuestError::Wait(WaitError::Interrupted { .. })
                | GuestError::Backend(BackendError::Interrupted)
        )
    }
}
