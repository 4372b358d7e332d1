//! From lists of system calls to filters, and onto threads.
//!
//! In: [`calls`]. Out: BPF programs, put on.
//! Must not know: why a role needs a call.
//!
//! Filters add up: a call must pass all that a thread has. The process has two, one that refuses
//! and one that punishes; a thread with a role adds its own.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter, apply_filter_all_threads,
};
use syscalls::Sysno;

use super::Mode;
use super::calls::{self, Role};

/// Every filter, compiled once.
pub(super) struct Filters {
    refusing: Option<BpfProgram>,
    without_clone3: Option<BpfProgram>,
    of_process: Result<BpfProgram, seccompiler::BackendError>,
    of_roles: Vec<(Role, BpfProgram)>,
}

impl Filters {
    pub(super) fn new(mode: Mode) -> Filters {
        let punish = match mode {
            Mode::On => SeccompAction::Trap,
            Mode::Log => SeccompAction::Log,
        };
        let allowing = |calls: &[Sysno]| compile(calls, punish.clone(), SeccompAction::Allow);
        let refusing = |calls: &[Sysno], errno: i32| {
            let refuse = SeccompAction::Errno(errno.unsigned_abs());
            let on = mode == Mode::On;
            on.then(|| compile(calls, SeccompAction::Allow, refuse)).and_then(Result::ok)
        };
        let of_role = |role: Role| Some((role, allowing(&role.calls()).ok()?));
        Filters {
            refusing: refusing(calls::REFUSED, libc::EACCES),
            // Its flags cannot be looked at; the C library then takes `clone`.
            without_clone3: refusing(&[Sysno::clone3], libc::ENOSYS),
            of_process: allowing(&[&calls::of_process()[..], &[Sysno::clone3]].concat()),
            of_roles: Role::ALL.into_iter().filter_map(of_role).collect(),
        }
    }

    /// Puts the process's filters on all threads.
    pub(super) fn enter(&self) -> io::Result<()> {
        let of_process = self.of_process.as_ref().map_err(|e| io::Error::other(e.to_string()))?;
        for filter in [&self.refusing, &self.without_clone3].into_iter().flatten() {
            apply_filter_all_threads(filter).map_err(io::Error::other)?;
        }
        apply_filter_all_threads(of_process).map_err(io::Error::other)
    }

    /// Puts a role's filter on the calling thread.
    pub(super) fn narrow(&self, role: Role) -> io::Result<()> {
        let filter = self.of_roles.iter().find(|(of, _)| *of == role);
        let (_, filter) = filter.ok_or_else(|| io::Error::other("the filter is invalid"))?;
        apply_filter(filter).map_err(io::Error::other)
    }
}

/// A filter that does `listed` for calls of the list and `others` for the rest.
fn compile(
    calls: &[Sysno],
    others: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in calls {
        rules.insert(i64::from(call.id()), conditions(*call)?);
    }
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, others, listed, arch)?.try_into()
}

/// What the arguments of a listed call must be; no condition: anything.
fn conditions(call: Sysno) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let is = |argument, operator, value: u64| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    let unsigned = |value: i32| u64::from(value.unsigned_abs());
    Ok(match call {
        Sysno::socket | Sysno::socketpair => {
            vec![is(0, SeccompCmpOp::Eq, unsigned(libc::AF_UNIX))?]
        }
        Sysno::clone => {
            let thread = unsigned(libc::CLONE_THREAD);
            vec![is(0, SeccompCmpOp::MaskedEq(thread), thread)?]
        }
        Sysno::kill => vec![is(1, SeccompCmpOp::Eq, unsigned(libc::SIGUSR1))?],
        // No memory that is writable and executable, nor made so.
        Sysno::mmap | Sysno::mprotect => {
            vec![is(2, SeccompCmpOp::MaskedEq(unsigned(libc::PROT_EXEC)), 0)?]
        }
        _ => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::calls::{Role, of_process};
    use super::{Filters, Mode};

    /// Goal: a role never has what the process lacks: it would be a call that nobody may make.
    #[test]
    fn roles_are_parts_of_the_process() {
        let whole = of_process();
        for role in Role::ALL {
            for call in role.calls() {
                assert!(whole.contains(&call), "{role:?} lists {call}, the process does not");
            }
        }
    }

    #[test]
    fn every_filter_compiles() {
        for mode in [Mode::On, Mode::Log] {
            let filters = Filters::new(mode);
            assert!(filters.of_process.is_ok());
            assert_eq!(filters.of_roles.len(), Role::ALL.len());
            assert_eq!(filters.refusing.is_some(), mode == Mode::On);
        }
    }
}
