//! The system calls of each role, in one place. What is in no list ends the daemon.
//!
//! In: nothing. Out: lists.
//!
//! Found by tracing the page server (`strace -f`) and by running tests of the daemons under the
//! filter.

use syscalls::Sysno;

/// What a thread is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Serves a virtqueue.
    Queue,
    /// Speaks with the operators (control socket, metrics).
    Control,
    /// Waits until delays are over.
    Timer,
    /// Writes the event log and feeds subscribers.
    Events,
    /// Passes vhost-user messages between the front-end and the library.
    Relay,
    /// Flushes a file, and tells the driver.
    Flush,
}

impl Role {
    /// Every role.
    pub(super) const ALL: [Role; 6] =
        [Role::Queue, Role::Control, Role::Timer, Role::Events, Role::Relay, Role::Flush];

    /// What a thread of this role may call.
    pub(super) fn calls(self) -> Vec<Sysno> {
        let of_role: &[&[Sysno]] = match self {
            Role::Queue => &[STORAGE, WAIT, SOCKET],
            // Resizes and resets storage, and tells the front-end of it.
            Role::Control => &[STORAGE, WAIT, SOCKET, ACCEPT],
            Role::Timer => &[WAIT],
            Role::Events => &[STORAGE, WAIT],
            Role::Relay => &[WAIT, SOCKET, RELAY],
            Role::Flush => &[&[Sysno::fsync]],
        };
        [&[THREAD], of_role].concat().concat()
    }
}

/// What all threads of the process may call together: [`Role`]s, and the threads that start and
/// end others, among them the main thread, which waits for front-ends.
pub(super) fn of_process() -> Vec<Sysno> {
    [THREAD, STORAGE, WAIT, SOCKET, ACCEPT, RELAY, CONNECTION].concat()
}

/// What every thread does: memory, locks, time, its own beginning and end.
const THREAD: &[Sysno] = &[
    Sysno::brk,
    Sysno::clock_gettime,
    Sysno::clock_nanosleep,
    Sysno::close,
    Sysno::dup,
    Sysno::exit,
    Sysno::exit_group,
    Sysno::fcntl,
    Sysno::fstat,
    Sysno::futex,
    Sysno::getegid,
    Sysno::geteuid,
    Sysno::getgid,
    Sysno::getpid,
    Sysno::getrandom,
    Sysno::gettid,
    Sysno::gettimeofday,
    Sysno::getuid,
    Sysno::lseek,
    Sysno::madvise,
    Sysno::membarrier,
    Sysno::mmap,
    Sysno::mprotect,
    Sysno::mremap,
    Sysno::munmap,
    Sysno::nanosleep,
    // Names itself; puts on a narrower filter.
    Sysno::prctl,
    Sysno::read,
    Sysno::readv,
    Sysno::restart_syscall,
    Sysno::rseq,
    Sysno::rt_sigaction,
    Sysno::rt_sigprocmask,
    Sysno::rt_sigreturn,
    Sysno::sched_getaffinity,
    Sysno::sched_yield,
    Sysno::seccomp,
    Sysno::set_robust_list,
    Sysno::sigaltstack,
    // Ends the process when it panics.
    Sysno::tgkill,
    Sysno::write,
    Sysno::writev,
    // Looks at the file that it is about to remove, and at images; opening them is refused.
    Sysno::newfstatat,
    Sysno::statx,
    Sysno::lstat,
    Sysno::stat,
    Sysno::readlink,
    Sysno::readlinkat,
    Sysno::open,
    Sysno::openat,
    Sysno::access,
    Sysno::faccessat,
    Sysno::faccessat2,
];

/// Reads and writes of the image, in place or through io_uring.
const STORAGE: &[Sysno] = &[
    Sysno::eventfd2,
    Sysno::fallocate,
    Sysno::fdatasync,
    Sysno::flock,
    Sysno::fsync,
    Sysno::ftruncate,
    Sysno::getrusage,
    Sysno::io_uring_enter,
    Sysno::io_uring_register,
    Sysno::io_uring_setup,
    // Block devices: discard, zeroes, size.
    Sysno::ioctl,
    Sysno::mincore,
    Sysno::msync,
    Sysno::pread64,
    Sysno::preadv,
    Sysno::preadv2,
    Sysno::pwrite64,
    Sysno::pwritev,
    Sysno::pwritev2,
    Sysno::sync_file_range,
    Sysno::fadvise64,
];

/// Waiting for several things.
const WAIT: &[Sysno] = &[
    Sysno::epoll_create1,
    Sysno::epoll_ctl,
    Sysno::epoll_pwait,
    Sysno::epoll_wait,
    Sysno::poll,
    Sysno::ppoll,
    Sysno::timerfd_create,
    Sysno::timerfd_settime,
];

/// Talking over a socket that is there.
const SOCKET: &[Sysno] = &[
    Sysno::getpeername,
    Sysno::getsockname,
    Sysno::getsockopt,
    Sysno::recvfrom,
    Sysno::recvmsg,
    Sysno::sendmsg,
    Sysno::sendto,
    Sysno::setsockopt,
    Sysno::shutdown,
];

/// Taking in clients.
const ACCEPT: &[Sysno] = &[Sysno::accept4, Sysno::eventfd2];

/// Replacing guest memory that must not be mapped.
const RELAY: &[Sysno] = &[Sysno::fstatfs, Sysno::ftruncate, Sysno::memfd_create];

/// Starting and ending the threads of a connection; the end of the program.
const CONNECTION: &[Sysno] = &[
    Sysno::bind,
    // Threads only: see `filter`.
    Sysno::clone,
    Sysno::connect,
    // The page server tells its supervisor to unmount: see `filter` for the signal.
    Sysno::kill,
    Sysno::listen,
    Sysno::pipe2,
    Sysno::sched_setaffinity,
    // Unix sockets only: see `filter`.
    Sysno::socket,
    Sysno::socketpair,
    Sysno::unlink,
    Sysno::unlinkat,
    Sysno::wait4,
];

/// What is refused with EACCES rather than punished: libraries try it and can do without.
pub(super) const REFUSED: &[Sysno] =
    &[Sysno::open, Sysno::openat, Sysno::access, Sysno::faccessat, Sysno::faccessat2];
