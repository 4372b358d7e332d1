//! What the guest's init and the host have in common: the wire format of the link disk, random
//! draws that both can repeat, and where the initramfs keeps what init needs.
//!
//! In: bytes of frames, serde values. Out: the same, checked.
//! Must not know: how either side does its part.

#![forbid(unsafe_code)]

pub mod draws;
pub mod random_writes;
pub mod wire;

/// The list of kernel modules in the initramfs: one absolute path a line, in load order.
/// Modules are uncompressed `.ko` files; a missing list means that nothing has to be loaded.
pub const MODULE_LIST: &str = "/modules/list";

/// What the main disk answers to `VIRTIO_BLK_T_GET_ID`.
pub const DISK_SERIAL: &str = "racegate";

/// What the link disk answers to `VIRTIO_BLK_T_GET_ID`.
pub const LINK_SERIAL: &str = "racegate-link";

/// Kernel parameter with the kernel name of the main disk, for one that has no serial number:
/// `racegate.disk=pmem0`.
pub const DISK_PARAMETER: &str = "racegate.disk";

/// Every line that the agent writes to the console starts like this, so that the host can tell
/// it from the kernel's.
pub const CONSOLE_PREFIX: &str = "racegate-agent: ";

/// Where the agent mounts the file system under test.
pub const MOUNT_POINT: &str = "/mnt";
