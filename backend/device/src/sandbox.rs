//! The sandbox: what a daemon may still do once everything it needs is open.
//!
//! In: the folders of its sockets. Out: a process that cannot open a file, start a program, make
//! a network socket or gain a privilege, and threads that can do only what their role needs.
//! Must not know: what is served.
//!
//! Two of the kernel's mechanisms, both open to ordinary users:
//! - **Landlock** takes away every access to files by path, except the removal of the daemon's
//!   own sockets, and TCP. Descriptors that are open, or that a front-end sends, still work.
//! - **seccomp** lets a thread make the system calls of `calls` and no other. What a library
//!   tries and can do without (opening a file) fails with EACCES. Anything else ends the daemon,
//!   with a line that names the call.
//!
//! Left open: io_uring carries out operations that seccomp does not see (Landlock sees those on
//! files), and the front-end's thread makes a Unix socket for each connection, because the
//! vhost-user library takes none that is connected.

mod calls;
mod filter;
mod trap;

use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
    path_beneath_rules,
};
use thiserror::Error;

pub use calls::Role;

/// The newest Landlock that we know what to do with; older kernels do less.
const LANDLOCK: ABI = ABI::V6;

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All.
    On,
    /// Nothing is forbidden; the kernel logs the system calls that would be.
    Log,
}

/// Why there is no sandbox.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// Landlock refused.
    #[error("cannot take away access to files (Landlock); --sandbox=off does without")]
    Files(#[from] RulesetError),
    /// seccomp refused.
    #[error("cannot filter system calls (seccomp); --sandbox=off does without")]
    Calls(#[source] io::Error),
}

/// The filters that threads put on, once [`enter`] has been called.
static FILTERS: OnceLock<filter::Filters> = OnceLock::new();

/// Enters the sandbox, for good: the calling thread and every thread that it starts, and for
/// system calls all threads that there are. `folders` hold the sockets that are to be removed at
/// the end. To be called when everything is open, and before the threads that serve.
///
/// # Errors
/// The kernel has seccomp or Landlock and refuses. A kernel without Landlock is a warning.
pub fn enter(mode: Mode, folders: &[PathBuf]) -> Result<(), SandboxError> {
    if mode == Mode::On {
        let status = restrict_files(folders)?;
        if status.ruleset == RulesetStatus::NotEnforced {
            tracing::warn!(
                "this kernel has no Landlock: the sandbox has system call filters only (Linux \
                 5.13 has it, if `landlock` is among the `lsm=` of its command line)"
            );
        }
        trap::install().map_err(SandboxError::Calls)?;
    }
    let filters = FILTERS.get_or_init(|| filter::Filters::new(mode));
    filters.enter().map_err(SandboxError::Calls)
}

/// The calling thread gives up what its role does not need. Without a sandbox this does nothing.
pub fn narrow(role: Role) {
    if let Some(filters) = FILTERS.get()
        && let Err(error) = filters.narrow(role)
    {
        // It still has the filter of the whole process.
        tracing::warn!(%error, ?role, "a thread keeps more rights than it needs");
    }
}

fn restrict_files(folders: &[PathBuf]) -> Result<RestrictionStatus, RulesetError> {
    let remove: BitFlags<AccessFs> = AccessFs::RemoveFile.into();
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::AbstractUnixSocket)?
        .create()?
        .add_rules(path_beneath_rules(folders, remove))?
        .restrict_self()
}
