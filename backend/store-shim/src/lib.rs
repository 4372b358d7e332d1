//! The first store to each page of a mapped file, seen from outside the process that makes it.
//!
//! In: a process (QEMU) that was started with this library in `LD_PRELOAD`, and the name of a file
//! in its environment. Out: every shared mapping that it makes of that file is registered with a
//! userfaultfd, which a reader in another process is given; and the reader is told of each flush.
//! Must not know: what the reader makes of it.
//!
//! Registration is per address space (`userfaultfd_ctx` belongs to an `mm`), so it has to happen in
//! the process that stores. The library is kept small for that reason: the rest is in
//! `device::stores`, which uses [`wire`] and [`uffd`] from here.

pub mod preload;
pub mod uffd;
pub mod wire;
